"""W&B as a copy of a run's metrics log, made by a process of its own: it can fail in any way and costs no work.

The log in the output is the truth. With a key its lines are sent while the run goes on. Without one, or when W&B
fails, all of them are written at the end as one offline run into `wandb/` of the output, for `wandb sync`.
"""

import json
import logging
import netrc
import os
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.child_process import start_module, stop_process
from cluster.metrics_log import METRICS_LOG
from cluster.progress import working
from cluster.session import is_connected, is_local_cluster, options_on_node, other_alive_nodes
from cluster.tracking import Tracker
from cluster.wandb_client import WANDB_FOLDER, scratch_folder, server_url, start_run

_FINISH_S = 30.0
"""So long the last lines may take, and an offline run; then W&B counts as failed."""
_START_S, _START_AGAIN_S = 15.0, 3.0
"""So long a stage that has ended waits for W&B's first answer, and when the stage before had none."""
_FINISH_WHEN_STOPPED_S = 2.0
"""The same when a signal has stopped the command, which must end within seconds; a resume sends what is missing."""
_NODES_S = 10.0
"""Between two looks for nodes that have no sampler yet."""

_MODES = {
    **dict.fromkeys(("online", "run", "shared"), "online"),
    **dict.fromkeys(("offline", "dryrun"), "offline"),
    "disabled": "disabled",
}
"""What `WANDB_MODE` may say, W&B's older words included, and what it means here."""

log = logging.getLogger(__name__)


def wandb_mode() -> str:
    """`online`, `offline` or `disabled`: `WANDB_MODE` when set; else online with a key and offline without one.

    Raises ValueError when `WANDB_MODE` says something else.
    """
    chosen = os.environ.get("WANDB_MODE", "").strip().lower()
    if chosen:
        if chosen not in _MODES:
            raise ValueError(f"WANDB_MODE: {os.environ['WANDB_MODE']!r} is none of {', '.join(_MODES)}")
        return _MODES[chosen]
    return "online" if os.environ.get("WANDB_API_KEY") or _has_logged_in() else "offline"


def _has_logged_in() -> bool:
    """Whether `wandb login` has left a key for the server in use."""
    host = urllib.parse.urlsplit(server_url()).hostname
    try:
        return bool(host and netrc.netrc().authenticators(host))
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_link(group: str) -> str | None:
    """Where W&B shows the runs of a group; None unless they are logged online."""
    if wandb_mode() != "online":
        return None
    base = server_url().replace("://api.", "://").rstrip("/")
    project, entity = os.environ.get("WANDB_PROJECT", "raymill"), os.environ.get("WANDB_ENTITY")
    return f"{base}/{entity}/{project}/groups/{group}" if entity else f"{base}, project {project}, group {group}"


@contextmanager
def mirrored(tracker: Tracker) -> Iterator[None]:
    """Copy to W&B what is logged in the block. Never raises for W&B's sake; what fails is one warning.

    Raises ValueError when `WANDB_MODE` is unknown.
    """
    mode = wandb_mode()
    if mode == "disabled":
        yield
        return
    mirror = _Mirror(tracker) if mode == "online" else None
    samplers = _Samplers(tracker) if mirror is not None and mirror.shared else None
    limit_s = _FINISH_S
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        limit_s = _FINISH_WHEN_STOPPED_S
        raise
    finally:
        if samplers is not None:
            samplers.stop()
        try:
            _finish(tracker, mirror, limit_s)
        except KeyboardInterrupt:  # a signal that came now: what is done stands already, so W&B need not have all of it
            _finish(tracker, None, _FINISH_WHEN_STOPPED_S)
            raise


def _finish(tracker: Tracker, mirror: "_Mirror | None", limit_s: float) -> None:
    """Send what is left, or keep all of it in the output."""
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
            try:
                self._process = start_module("cluster.wandb_client", [], environment=environment, has_pipes=True)
            except OSError as error:  # no memory or process left for it
                failed = _Task(None, why=f"its client cannot be started: {error}")
                failed.ended.set()
                return failed
        begun = _Task(self._process)
        begun.tell(task)
        begun.reader.start()
        return begun

    def stop(self) -> None:
        """End a client that does not answer; the next task gets another."""
        if self._process is not None:
            stop_process(self._process, grace_s=0.5)
            self._process = None


@dataclass
class _Task:
    """What a client was told to do. consumes: its events; is unblocked by: `done`, `failed` or its end."""

    process: subprocess.Popen[bytes] | None
    """None where none could be started."""
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    why: str = ""
    """Why it failed; empty when it has not, or not yet."""
    on_failure: Any = None

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)

    def tell(self, task: dict[str, Any]) -> None:
        if self.process is None:
            return
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:  # it is gone, which its reader sees
            return

    def _read(self) -> None:
        assert self.process is not None and self.process.stdout is not None
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
        self.shared = is_connected() and not is_local_cluster()
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
        metrics = tracker.storage.path(METRICS_LOG)
        text = "%s: no offline run for W&B was written (%s); all metrics are in %s, and whoever goes on writes it"
        log.warning(text, tracker.name, task.why, metrics)


# System metrics of the nodes that the client above is not on.


class NodeSampler:
    """An actor on one node: a W&B client that samples its processors, memory and GPUs into the run of a stage."""

    def __init__(self, run: dict[str, Any], label: str) -> None:
        self._folder = scratch_folder()
        self._run = start_run(run, self._folder.name, mode="shared", label=label, primary=False)

    def finish(self) -> None:
        """Send what is left and remove the client's files."""
        self._run.finish()
        self._folder.cleanup()


class _Samplers:
    """A sampler on every node but the driver's, also on those that come while the stage runs.

    Nobody waits for them: what W&B refuses, the client of the run tells.
    consumes: the cluster's nodes; waits for: a change of them; is unblocked by: a poll; produces: actors.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._run = _task_of(tracker)["run"]
        self._actors: dict[str, Any] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="wandb-samplers")
        self._thread.start()

    def stop(self) -> None:
        """Have them finish, and end those that do not in time."""
        import ray

        self._over.set()
        self._thread.join()
        asked = [actor.finish.remote() for actor in self._actors.values()]
        if asked:
            with working("ending W&B's clients on the other nodes"):
                ray.wait(asked, num_returns=len(asked), timeout=_FINISH_WHEN_STOPPED_S)
        for actor in self._actors.values():
            ray.kill(actor)

    def _follow(self) -> None:
        while not self._over.is_set():
            try:
                self._meet_nodes()
            except Exception as error:  # of Ray's: the metrics of the run do not depend on it
                log.debug("no look at the nodes for W&B: %s", error)
            self._over.wait(_NODES_S)

    def _meet_nodes(self) -> None:
        import ray

        for name, address in other_alive_nodes().items():
            if name not in self._actors:
                sampler = ray.remote(NodeSampler).options(**options_on_node(name))
                self._actors[name] = sampler.remote(self._run, address)
