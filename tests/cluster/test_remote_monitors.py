"""What the driver sees of several nodes, some of them slow, silent or gone. Real watches, on nodes that stand in."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import NodeDiedError, RayActorError, RayTaskError

from cluster import remote_monitors, signals, stage_monitor
from cluster.cgroups import MemoryUse
from cluster.failures import explain
from cluster.heartbeat import ProcessRecord, monitored_class
from cluster.node_monitor import NodeMonitor
from cluster.process_info import ProcessInfo
from cluster.remote_monitors import RemoteMonitors
from cluster.session import connect
from cluster.stage_monitor import StageMonitor
from cluster.worker_errors import WorkerError

NO_PID = 2**22 + 1
"""No process has it, so what is said to have it is dead."""


class StandIn:
    """A node whose watch answers one call after another, as an actor does, while it is let to."""

    def __init__(self, folder: Path) -> None:
        self.watch = NodeMonitor(folder)
        self.answers = threading.Event()
        self.answers.set()
        self.is_gone = False
        self._pool = ThreadPoolExecutor(1)

    def ask(self, method: Callable[..., Any], *arguments: Any) -> Future[Any]:
        def answer() -> Any:
            assert self.answers.wait(60)
            if self.is_gone:
                raise RayActorError
            return method(self.watch, *arguments)

        return self._pool.submit(answer)

    def end(self) -> None:
        self.answers.set()
        self._pool.shutdown(wait=False)


class Nodes:
    """A cluster of them."""

    def __init__(self, folder: Path, names: str) -> None:
        self.names, self.folder = set(names), folder
        self.started: list[str] = []
        self.nodes: dict[str, StandIn] = {}
        self.error: Exception | None = None

    def alive(self) -> set[str]:
        if self.error is not None:
            raise self.error
        return self.names

    def watch(self, name: str) -> StandIn:
        self.started.append(name)
        self.nodes[name] = StandIn(self.folder / name)
        return self.nodes[name]

    def leave(self, name: str, index: int, *, pid: int = NO_PID) -> ProcessInfo:
        """The file of a process on a node."""
        place = ProcessInfo(stage="rlhf", role="generator", index=index, node=name, pid=pid, ip=f"192.0.2.{ord(name)}")
        (self.folder / name / f"{pid}.json").write_text(
            json.dumps(asdict(ProcessRecord(place, False, 0, has_stack=False)))
        )
        return place


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setattr(remote_monitors, "_ANSWER_S", 0.6)
    nodes = Nodes(tmp_path, "abc")
    yield nodes
    for node in nodes.nodes.values():
        node.end()


@pytest.fixture
def others(three: Nodes) -> RemoteMonitors:
    found = RemoteMonitors(three)
    found.meet()
    return found


@pytest.fixture
def driver(three: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageMonitor]:
    """A watch of all of them, which looks when it is asked and not by itself."""
    monkeypatch.setattr(stage_monitor, "_LOOK_S", 3600.0)
    found = StageMonitor("rlhf", own=NodeMonitor(tmp_path / "own"), cluster=three)
    found._others.meet()
    monkeypatch.setattr(stage_monitor, "_current_monitor", found)
    yield found
    found.close()


def deaths(others: RemoteMonitors) -> list[ProcessInfo]:
    return [sighting.place for look in others.looks() for sighting in look.sightings]


def test_a_death_that_a_slow_node_tells_late_is_not_lost(three: Nodes, others: RemoteMonitors) -> None:
    place, slow = three.leave("b", 1), three.nodes["b"]
    slow.answers.clear()
    assert deaths(others) == []
    began = time.monotonic()
    assert deaths(others) == [] and time.monotonic() - began < 0.5  # it is waited for once
    slow.answers.set()
    while not (found := deaths(others)):
        time.sleep(0.01)
    assert found == [place] and deaths(others) == []


def test_what_a_slow_node_has_seen_of_processes_that_were_ended_on_purpose_is_no_death(
    three: Nodes, others: RemoteMonitors
) -> None:
    three.leave("b", 1)
    other = three.leave("b", 2, pid=NO_PID + 1)
    three.nodes["b"].answers.clear()
    others.looks()
    others.dismiss("generator", 1)
    three.nodes["b"].answers.set()
    while not (found := deaths(others)):
        time.sleep(0.01)
    assert found == [other]


def test_a_watch_that_is_gone_is_replaced_and_a_node_that_is_gone_is_forgotten(
    three: Nodes, others: RemoteMonitors
) -> None:
    three.nodes["a"].is_gone = True
    others.looks()
    others.meet()
    place = three.leave("a", 1)
    assert sorted(three.started) == ["a", "a", "b", "c"] and deaths(others) == [place]
    three.names.remove("c")
    others.meet()
    assert len(others.looks()) == 2
    for _ in range(5):
        three.nodes["b"].is_gone = True
        others.looks()
        others.meet()
    assert three.started.count("b") == 3  # no more processes are spent on what always dies


def test_silent_nodes_are_waited_for_together_and_shortly_once_a_signal_has_come(
    three: Nodes, others: RemoteMonitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in three.nodes.values():
        node.answers.clear()
    began = time.monotonic()
    others.ask(NodeMonitor.request_stop)
    assert 0.5 < time.monotonic() - began < 1.2
    monkeypatch.setattr(remote_monitors, "_ANSWER_S", 60.0)
    monkeypatch.setattr(remote_monitors, "_HURRY_S", 0.2)
    monkeypatch.setattr(signals._signals, "received", signals.signal.SIGTERM)
    began = time.monotonic()
    others.ask(NodeMonitor.request_stop), others.looks(), others.dismiss(None, None), others.looks()
    assert time.monotonic() - began < 1.5


def test_the_same_process_id_on_two_nodes_is_two_processes(three: Nodes, driver: StageMonitor) -> None:
    first, second = three.leave("a", 1), three.leave("b", 2)
    text = f"ray::Generator.generate() (pid={NO_PID}, ip={first.ip}, actor_id=0f)\nKeyError: 4"
    error = RayTaskError("generate", text, KeyError(4), "ray::Generator", pid=NO_PID, ip=first.ip).as_instanceof_cause()
    assert explain(error).sentence.startswith("rlhf: generator 1 on node a ")
    report = f"The actor died unexpectedly before finishing this task.\n\tpid: {NO_PID}\n\tip: {second.ip}\n"
    said = explain(RayActorError(error_msg=report)).sentence
    assert said == f"rlhf: generator 2 on node b (pid {NO_PID}) was killed by signal 9 (SIGKILL)"
    assert driver.death_of(pid=NO_PID, ip=second.ip, patience_s=0.0) is None
    assert driver.death_of(pid=NO_PID, ip=first.ip, patience_s=0.0)


def test_whose_exception_it_was_comes_with_it(driver: StageMonitor) -> None:
    place = ProcessInfo(stage="rlhf", role="task", index=4, node="a", pid=5)
    said = explain(WorkerError(KeyError("x"), "", place)).sentence
    assert said == "rlhf: task 4 on node a (pid 5) raised KeyError: 'x'"


def test_only_the_deaths_of_who_is_dismissed_are_forgotten(three: Nodes, driver: StageMonitor) -> None:
    places = [three.leave(name, index) for index, name in enumerate("ab")]
    driver._look()
    driver.dismiss("generator", 0)
    death = driver.death_of(role="generator", patience_s=0.0)
    assert death is not None and death.place == places[1]


def test_a_node_that_is_lost_log_death_with_what_its_group_had_used(
    three: Nodes, driver: StageMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NodeMonitor, "_memory", lambda self: MemoryUse(used=8 * 1000**3, limit=8 << 30))
    monkeypatch.setattr(driver, "death_of", lambda **asked: None)
    with subprocess.Popen(["sleep", "600"]) as process:
        place = three.leave("b", 1, pid=process.pid)
        driver._look()
        process.kill()
    report = f"\tpid: {place.pid}\n\tip: {place.ip}\nThe actor is temporarily unavailable: RpcError"
    assert "died, and nothing was seen of why" in explain(RayActorError(error_msg=report)).sentence
    used = "was lost with its node, whose control group had used 7.45 GiB of 8.00 GiB when it was last seen"
    for gone in (lambda: setattr(three.nodes["b"], "is_gone", True), lambda: three.names.clear()):
        gone()
        driver._look()
        driver._others.meet()
        said = explain(RayActorError(error_msg=report), role="generator", index=1).sentence
        assert said == f"rlhf: generator 1 on node b (pid {place.pid}) {used}"
    report = f"\tpid: {place.pid}\n\tip: {place.ip}\nThe actor died because its node has died. Node Id: 04d3"
    assert explain(RayActorError(error_msg=report)).sentence == f"rlhf: generator 1 on node b (pid {place.pid}) {used}"
    report = (
        "Task failed because the node it was running on is dead or unavailable. "
        f"Node IP: {place.ip}, node ID: 04d3. This can happen if the node was preempted"
    )
    assert explain(NodeDiedError(report)).sentence == f"rlhf: a worker on node {place.ip} {used}"


def test_a_stall_of_nobody_log_death_with_what_is_missing(
    driver: StageMonitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage_monitor, "_IDLE_S", 0.0)
    monkeypatch.setattr(stage_monitor, "_STILL_FACTOR", 0.0)
    monkeypatch.setattr(stage_monitor, "missing_capacity", lambda: "cleaning: needs 1 CPU, the cluster has 0")
    driver._tell_stillness(driver._look())
    time.sleep(0.01)
    driver._tell_stillness(driver._look())
    assert "rlhf: no progress for 0 s; no process is at work; missing: cleaning: needs 1 CPU, the cluster has 0" in (
        caplog.text
    )
    caplog.clear()
    monkeypatch.setattr(stage_monitor, "is_waiting_for_capacity", lambda: True)  # which says for what by itself
    driver._tell_stillness(driver._look())
    assert caplog.text == ""


def test_whatever_a_look_meets_the_next_one_comes_and_it_log_death_once(
    three: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage_monitor, "_LOOK_S", 0.01)
    caplog.set_level(logging.WARNING)
    three.error = KeyError("whatever")
    found = StageMonitor("rlhf", own=NodeMonitor(tmp_path / "own"), cluster=three)
    time.sleep(0.5)
    assert caplog.text.count("a look at the processes failed, the next one tries again: KeyError: 'whatever'") == 1
    three.error = None
    while len(three.started) < 3:
        time.sleep(0.01)
    found.close()


@pytest.mark.slow
def test_a_death_and_the_loss_of_a_node_are_told_of_another_node_of_a_real_cluster() -> None:
    class Generator:
        def pid(self) -> int:
            return os.getpid()

    def start() -> Any:
        watched: Any = ray.remote(monitored_class(Generator, "rlhf", "generator", 0)).options(resources={"there": 1.0})
        return watched.remote()

    def told(actor: Any) -> str:
        with pytest.raises(RayActorError) as caught:
            while ray.get(actor.pid.remote()):  # a process outlives its raylet for a moment
                time.sleep(0.1)
        return explain(caught.value, role="generator", index=0).sentence

    def wait_until_watched(pid: int) -> ProcessInfo:
        while (here := stage_monitor.current_monitor()) is None or (place := here.place_of(pid=pid)) is None:
            time.sleep(0.1)
        return place

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    try:
        there = cluster.add_node(num_cpus=1, resources={"there": 1.0}, object_store_memory=100_000_000)
        with connect(cluster.address), stage_monitor.monitoring("rlhf"):
            actor: Any = start()
            pid: Any = ray.get(actor.pid.remote())
            place = wait_until_watched(pid)
            assert place.ip == ray.util.get_node_ip_address()
            others = stage_monitor.current_monitor()._others  # pyright: ignore[reportOptionalMemberAccess]
            (known,) = others._nodes.values()
            known.node.end()  # another watch is started, and it sees the death
            while known in others._nodes.values() or not others.looks():
                time.sleep(0.1)
            os.kill(pid, signals.signal.SIGKILL)
            assert told(actor).startswith(f"{place} was killed by signal 9 (SIGKILL)")
            actor = start()
            pid = ray.get(actor.pid.remote())
            place = wait_until_watched(pid)
            (raylet,) = (one.process.pid for one in there.all_processes["raylet"])
            for process in (*psutil.Process(raylet).children(recursive=True), psutil.Process(raylet)):
                process.kill()
            assert told(actor).startswith(f"{place} was lost with its node")
    finally:
        cluster.shutdown()
