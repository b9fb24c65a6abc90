"""W&B as a copy of a run's metrics log, made by a process of its own: it can fail in any way and costs no work.

The log in the output is the truth. With a key its lines are sent while the run goes on. Without one, or when W&B
fails, all of them are written at the end as one offline run into `wandb/` of the output, for `wandb sync`.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.lifeline import start_module, stop
from cluster.progress import working
from cluster.tracking import Tracker
from cluster.wandb_client import WANDB_FOLDER, scratch_folder, start

_FINISH_S = 30.0
"""So long the last lines may take, and an offline run; then W&B counts as failed."""
_START_S, _START_AGAIN_S = 15.0, 3.0
"""So long a stage that has ended waits for W&B's first answer, and when the stage before had none."""
_FINISH_WHEN_STOPPED_S = 2.0
"""The same when a signal has stopped the command, which must end within seconds; a resume sends what is missing."""

log = logging.getLogger(__name__)


def wandb_mode() -> str:
    """`WANDB_MODE` when set; else online with a key and offline without one."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        return chosen
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def wandb_link(group: str) -> str | None:
    """Where W&B shows the runs of a group; None unless they are logged online."""
    if wandb_mode() != "online":
        return None
    base = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").replace("://api.", "://").rstrip("/")
    project, entity = os.environ.get("WANDB_PROJECT", "raymill"), os.environ.get("WANDB_ENTITY")
    return f"{base}/{entity}/{project}/groups/{group}" if entity else f"{base}, project {project}, group {group}"


@contextmanager
def mirrored(tracker: Tracker) -> Iterator[None]:
    """Copy to W&B what is logged in the block. Never raises for W&B's sake; what fails is one warning."""
    mode = wandb_mode()
    if mode == "disabled":
        yield
        return
    with ExitStack() as stack:
        mirror = _Mirror(tracker) if mode != "offline" else None
        if mirror is not None and mirror.shared:
            stack.enter_context(_sampled_nodes(tracker))
        limit_s = _FINISH_S
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            limit_s = _FINISH_WHEN_STOPPED_S
            raise
        finally:
            stack.close()
            if mirror is None or not mirror.finish(limit_s):
                with working("writing an offline run for W&B"):
                    _write_offline(tracker, limit_s)


class _Client:
    """The process that speaks to W&B; one for all stages of a command, started anew when it was lost."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.has_failed = False
        """Whether W&B has failed the last stage."""

    def begin(self, task: dict[str, Any]) -> "_Task":
        if self._process is None or self._process.poll() is not None:
            environment = {**os.environ, "WANDB_SILENT": "true"}
            self._process = start_module("cluster.wandb_client", [], environment=environment, talks=True)
        begun = _Task(self._process)
        begun.tell(task)
        begun.reader.start()
        return begun

    def stop(self) -> None:
        """End a client that does not answer; the next task gets another."""
        if self._process is not None:
            stop(self._process, grace_s=0.5)
            self._process = None


@dataclass
class _Task:
    """What a client was told to do. consumes: its events; is unblocked by: `done`, `failed` or its end."""

    process: subprocess.Popen[bytes]
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    why: str = ""
    """Why it failed; empty when it has not, or not yet."""
    on_failure: Any = None

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)

    def tell(self, task: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:  # it is gone, which its reader sees
            return

    def _read(self) -> None:
        assert self.process.stdout is not None
        why = "its client ended by itself"
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "started":
                log.info("W&B: %s", event["url"])
                self.started.set()
            else:
                why = event.get("why", "")
                break
        self.why = why
        self.ended.set()
        if why and self.on_failure:
            self.on_failure(why)


_client = _Client()


class _Mirror:
    """A run that is being sent to W&B while it goes on."""

    def __init__(self, tracker: Tracker) -> None:
        self.shared = len(_other_nodes()) > 0
        self._tracker, self._warned = tracker, threading.Lock()
        task = {"do": "mirror", "shared": self.shared, **_task_of(tracker)}
        self._task = _client.begin(task)
        self._task.on_failure = self._warn

    def finish(self, limit_s: float) -> bool:
        """Send what is left; whether all of the log is there."""
        with working("sending the last metrics to W&B"):
            self._task.tell({"do": "finish"})
            if not self._task.started.is_set():
                limit_s = min(limit_s, _START_AGAIN_S if _client.has_failed else _START_S)
            if not self._task.ended.wait(limit_s):
                answered = self._task.started.is_set()
                self._warn("it has not taken the last metrics in time" if answered else "it has not answered in time")
                _client.has_failed = True
                _client.stop()
                return False
        _client.has_failed = bool(self._task.why)
        if self._task.why:
            _client.stop()
            self._warn(self._task.why)
        return not self._task.why

    def _warn(self, why: str) -> None:
        """Once, whoever sees it first."""
        if self._warned.acquire(blocking=False):
            name, place = self._tracker.name, (self._tracker.storage / WANDB_FOLDER).url
            fetch = "" if self._tracker.storage.is_local else "copy that folder here, and "
            log.warning(
                "W&B failed (%s); %s goes on without it. All metrics will be kept in %s: %ssend them later with "
                "`wandb sync %s/offline-run-*`",
                why,
                name,
                place,
                fetch,
                place if self._tracker.storage.is_local else WANDB_FOLDER,
            )


def _task_of(tracker: Tracker) -> dict[str, Any]:
    run = {"id": tracker.run_id, "name": tracker.name, "group": tracker.group, "config": dict(tracker.config)}
    return {"storage": tracker.storage.url, "run": run}


def _write_offline(tracker: Tracker, limit_s: float) -> None:
    task = _client.begin({"do": "offline", **_task_of(tracker)})
    if not task.ended.wait(limit_s):
        _client.stop()
        task.why = f"not done within {limit_s:.0f} s"
    if task.why:
        _client.stop()
        log.warning("%s: no offline run for W&B was written (%s); its metrics are in its log", tracker.name, task.why)


# System metrics of the nodes that the client above is not on.


class NodeSampler:
    """An actor on one node: a W&B client that samples its processors, memory and GPUs into the run of a stage."""

    def __init__(self, run: dict[str, Any], label: str) -> None:
        self._folder = scratch_folder()
        self._run = start(run, self._folder.name, mode="shared", label=label, primary=False)


def _other_nodes() -> list[dict[str, Any]]:
    """The living nodes of the Ray cluster beside this one."""
    if "ray" not in sys.modules:  # seconds of import, for nothing where no cluster is
        return []
    import ray

    if not ray.is_initialized():
        return []
    here = ray.get_runtime_context().get_node_id()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]


@contextmanager
def _sampled_nodes(tracker: Tracker) -> Iterator[None]:
    """A sampler on every other node. Nobody waits for them: what W&B refuses, the client of the run tells."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    sampler: Any = ray.remote(NodeSampler)
    samplers = []
    for node in _other_nodes():
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = sampler.options(num_cpus=0, scheduling_strategy=strategy)
        samplers.append(options.remote(_task_of(tracker)["run"], node["NodeManagerAddress"]))
    try:
        yield
    finally:
        for sampler in samplers:
            ray.kill(sampler)
