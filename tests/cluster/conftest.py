"""Fixtures: stores of every kind, an archive, and fake nodes of a cluster with real monitors."""

from __future__ import annotations

import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from ray.exceptions import RayActorError

from cluster import remote_monitors, stage_monitor
from cluster.heartbeat import ProcessRecord
from cluster.node_monitor import NodeMonitor
from cluster.process_info import ProcessInfo
from cluster.stage_monitor import StageMonitor
from cluster.storage import Storage

NO_PID = 2**22 + 1
"""Larger than any process id of Linux, so that a process with it counts as dead."""


class FakeNode:
    """A node whose monitor answers one call at a time, like an actor. It only answers while `is_answering` is set."""

    def __init__(self, folder: Path) -> None:
        self.monitor = NodeMonitor(folder)
        self.is_answering = threading.Event()
        self.is_answering.set()
        self.is_gone = False
        self._pool = ThreadPoolExecutor(1)

    def call(self, method: Callable[..., Any], *arguments: Any) -> Future[Any]:
        def answer() -> Any:
            assert self.is_answering.wait(60)
            if self.is_gone:
                raise RayActorError
            return method(self.monitor, *arguments)

        return self._pool.submit(answer)

    def end(self) -> None:
        self.is_answering.set()
        self._pool.shutdown(wait=False)


class FakeNodes:
    """Three fake nodes, `a`, `b` and `c`."""

    def __init__(self, folder: Path, names: str) -> None:
        self.names, self.folder = set(names), folder
        self.started: list[str] = []
        self.nodes: dict[str, FakeNode] = {}
        self.error: Exception | None = None

    def alive_ids(self) -> set[str]:
        if self.error is not None:
            raise self.error
        return self.names

    def start_monitor(self, node_id: str) -> FakeNode:
        self.started.append(node_id)
        self.nodes[node_id] = FakeNode(self.folder / node_id)
        return self.nodes[node_id]

    def add_process(self, name: str, index: int, *, pid: int = NO_PID) -> ProcessInfo:
        """Write the record of a process on a node."""
        process = ProcessInfo(
            stage="rlhf", role="generator", index=index, node=name, pid=pid, ip=f"192.0.2.{ord(name)}"
        )
        ProcessRecord(process, log_death=False, log_offset=0, handles_stack_signal=False).write(
            self.folder / name / f"{pid}.json"
        )
        return process


@pytest.fixture
def fake_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNodes]:
    monkeypatch.setattr(remote_monitors, "_ANSWER_LIMIT_S", 0.6)
    nodes = FakeNodes(tmp_path, "abc")
    yield nodes
    for node in nodes.nodes.values():
        node.end()


@pytest.fixture
def monitor(fake_nodes: FakeNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageMonitor]:
    """A stage monitor of the fake nodes, whose own thread does not poll."""
    monkeypatch.setattr(stage_monitor, "_POLL_INTERVAL_S", 3600.0)
    monitor = StageMonitor("rlhf", own_monitor=NodeMonitor(tmp_path / "own"), nodes=fake_nodes)
    monitor._remote_monitors.update_nodes()
    monkeypatch.setattr(stage_monitor, "_current_monitor", monitor)
    yield monitor
    monitor.close()


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """A local folder, then fsspec's in-memory file system, then an S3 server through a proxy that fails."""
    name = uuid.uuid4().hex[:8]
    if request.param == "s3":
        yield Storage(request.getfixturevalue("s3"))
        return
    yield Storage(str(tmp_path / name) if request.param == "folder" else f"memory://bucket-{name}/runs")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A zip file with three members."""
    path = tmp_path / "archive.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("package/data/b.jsonl", "bb")
        file.writestr("package/data/a.jsonl", "a")
        file.writestr("package/readme.txt", "read me")
    return path
