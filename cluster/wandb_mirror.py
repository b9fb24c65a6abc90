"""Copies a run's metrics log to W&B from a child process, so that no failure of W&B affects the run.

The log in the output stays the original. With a W&B key its lines are sent while the run continues. Without one, or
when W&B fails, all lines are written at the end as one offline run into `wandb/` of the output, for `wandb sync`.
"""

import json
import logging
import netrc
import os
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.child_process import start_module, stop_process
from cluster.metrics_log import METRICS_LOG
from cluster.plain import from_plain, to_plain
from cluster.progress import working
from cluster.session import is_connected, is_local_cluster, options_on_node, other_alive_nodes
from cluster.tracking import Tracker
from cluster.wandb_client import WANDB_FOLDER, Event, Request, RunInfo, scratch_folder, server_url, start_run

_FINISH_S = 30.0
"""How long sending the last lines, or writing an offline run, may take before W&B counts as failed."""
_START_S, _START_AGAIN_S = 15.0, 3.0
"""How long a stage that has ended waits for W&B's first answer, and how long when W&B failed in the stage before."""
_FINISH_WHEN_STOPPED_S = 2.0
"""The limit when a signal has stopped the command, which must end within seconds; a resume sends the rest."""
_NODES_INTERVAL_S = 10.0
"""Interval between searches for nodes that have no sampler yet."""

_MODES = {
    **dict.fromkeys(("online", "run", "shared"), "online"),
    **dict.fromkeys(("offline", "dryrun"), "offline"),
    "disabled": "disabled",
}
"""The values of `WANDB_MODE`, including W&B's older ones, and their meaning here."""

log = logging.getLogger(__name__)


def wandb_mode() -> str:
    """`online`, `offline` or `disabled`: `WANDB_MODE` when set; else online with a key and offline without one.

    Raises ValueError when `WANDB_MODE` has another value.
    """
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    if mode:
        if mode not in _MODES:
            raise ValueError(f"WANDB_MODE: {os.environ['WANDB_MODE']!r} must be one of {', '.join(_MODES)}")
        return _MODES[mode]
    return "online" if os.environ.get("WANDB_API_KEY") or _has_logged_in() else "offline"


def _has_logged_in() -> bool:
    """Whether `wandb login` has stored a key for the server in use."""
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
def mirror_to_wandb(tracker: Tracker) -> Iterator[None]:
    """Copy to W&B what is logged in the block; a failure of W&B is one warning.

    Raises ValueError when `WANDB_MODE` is unknown.
    """
    mode = wandb_mode()
    if mode == "disabled":
        yield
        return
    mirror = _Mirror(tracker) if mode == "online" else None
    samplers = _Samplers(tracker) if mirror is not None and mirror.is_shared else None
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
        except KeyboardInterrupt:  # a signal that came now: the work is complete, so W&B need not get all metrics
            _finish(tracker, None, _FINISH_WHEN_STOPPED_S)
            raise


def _finish(tracker: Tracker, mirror: "_Mirror | None", limit_s: float) -> None:
    """Send the rest of the log, or else write all of it as an offline run."""
    if mirror is None or not mirror.finish(limit_s):
        with working("writing an offline run for W&B"):
            _write_offline(tracker, limit_s)


class _Client:
    """The child process that talks to W&B, one for all stages of a command; it is started again when it was lost."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.has_failed = False
        """Whether W&B failed in the last stage."""

    def begin(self, request: Request) -> "_Task":
        """Send a request to the child process; its progress."""
        if self._process is None or self._process.poll() is not None:
            environment = {**os.environ, "WANDB_SILENT": "true"}
            try:
                self._process = start_module("cluster.wandb_client", [], environment=environment, has_pipes=True)
            except OSError as error:  # for want of memory or processes
                failed = _Task(None, reason=f"its client cannot be started: {error}")
                failed.ended.set()
                return failed
        task = _Task(self._process)
        task.send(request)
        task.reader.start()
        return task

    def stop(self) -> None:
        """End a client that does not answer; the next request starts another."""
        if self._process is not None:
            stop_process(self._process, grace_s=0.5)
            self._process = None


@dataclass
class _Task:
    """A request and its progress.

    The reader consumes: the events of the child process; waits for: the next one; is unblocked by: `done`, `failed` or
    the end of the process; produces: `started`, `ended` and `reason`.
    """

    process: subprocess.Popen[bytes] | None
    """None when it could not be started."""
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    reason: str = ""
    """Why it failed; empty when it has not, or not yet."""
    on_failure: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)

    def send(self, request: Request) -> None:
        if self.process is None:
            return
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(to_plain(request)).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:  # the process is gone, which the reader notices
            return

    def _read(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        reason = "its client ended by itself"
        for line in self.process.stdout:
            event = from_plain(Event, json.loads(line))
            if event.kind == "started":
                log.info("W&B: %s", event.url)
                self.started.set()
            else:
                reason = event.reason
                break
        self.reason = reason
        self.ended.set()
        if reason and self.on_failure:
            self.on_failure(reason)


_client = _Client()


class _Mirror:
    """Sends a run's metrics to W&B while the run continues."""

    def __init__(self, tracker: Tracker) -> None:
        self.is_shared = is_connected() and not is_local_cluster()
        self._tracker, self._warned = tracker, threading.Lock()
        self._task = _client.begin(Request("mirror", tracker.storage.url, _run_info(tracker), self.is_shared))
        self._task.on_failure = self._warn

    def finish(self, limit_s: float) -> bool:
        """Send the rest of the log; whether W&B has all of it."""
        with working("sending the last metrics to W&B"):
            self._task.send(Request("finish"))
            if not self._task.started.is_set():
                limit_s = min(limit_s, _START_AGAIN_S if _client.has_failed else _START_S)
            if not self._task.ended.wait(limit_s):
                answered = self._task.started.is_set()
                self._warn(
                    "it has not received the last metrics in time" if answered else "it has not answered in time"
                )
                _client.has_failed = True
                _client.stop()
                return False
        _client.has_failed = bool(self._task.reason)
        if self._task.reason:
            _client.stop()
            self._warn(self._task.reason)
        return not self._task.reason

    def _warn(self, reason: str) -> None:
        """Log a failure once, whichever thread sees it first."""
        if self._warned.acquire(blocking=False):
            name, folder = self._tracker.name, (self._tracker.storage / WANDB_FOLDER).url
            copy_first = "" if self._tracker.storage.is_local else "copy that folder here, and "
            log.warning(
                "W&B failed (%s); %s continues without it. All metrics will be kept in %s: %ssend them later with "
                "`wandb sync %s/offline-run-*`",
                reason,
                name,
                folder,
                copy_first,
                folder if self._tracker.storage.is_local else WANDB_FOLDER,
            )


def _run_info(tracker: Tracker) -> RunInfo:
    return RunInfo(tracker.run_id, tracker.name, tracker.group, dict(tracker.config))


def _write_offline(tracker: Tracker, limit_s: float) -> None:
    task = _client.begin(Request("offline", tracker.storage.url, _run_info(tracker)))
    if not task.ended.wait(limit_s):
        _client.stop()
        task.reason = f"not done within {limit_s:.0f} s"
    if task.reason:
        _client.stop()
        metrics = tracker.storage.path(METRICS_LOG)
        text = "%s: no offline run for W&B was written (%s); all metrics are in %s, and a resume writes it"
        log.warning(text, tracker.name, task.reason, metrics)


# System metrics of the other nodes.


class NodeSampler:
    """An actor on another node: a W&B client that adds samples of its processors, memory and GPUs to a stage's run."""

    def __init__(self, run: RunInfo, label: str) -> None:
        self._folder = scratch_folder()
        self._run = start_run(run, self._folder.name, mode="shared", label=label, primary=False)

    def finish(self) -> None:
        """Send the last samples and remove the client's files."""
        self._run.finish()
        self._folder.cleanup()


class _Samplers:
    """A sampler on every node except the driver's, including nodes that join while the stage runs.

    Nothing waits for them, and their failures are not reported: the run's own client reports those of W&B.
    consumes: the list of nodes; waits for: new ones; is unblocked by: a poll; produces: a sampler on each.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._run = _run_info(tracker)
        self._actors: dict[str, Any] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="wandb-samplers")
        self._thread.start()

    def stop(self) -> None:
        """Let the samplers finish, and kill those that do not in time."""
        import ray

        self._stopped.set()
        self._thread.join()
        answers = [actor.finish.remote() for actor in self._actors.values()]
        if answers:
            with working("ending W&B's clients on the other nodes"):
                ray.wait(answers, num_returns=len(answers), timeout=_FINISH_WHEN_STOPPED_S)
        for actor in self._actors.values():
            ray.kill(actor)

    def _follow(self) -> None:
        while not self._stopped.is_set():
            try:
                self._start_missing()
            except Exception as error:  # an error of Ray's; the metrics of the run do not depend on it
                log.debug("the nodes could not be listed for W&B: %s", error)
            self._stopped.wait(_NODES_INTERVAL_S)

    def _start_missing(self) -> None:
        import ray

        for id, address in other_alive_nodes().items():
            if id not in self._actors:
                sampler = ray.remote(NodeSampler).options(**options_on_node(id))
                self._actors[id] = sampler.remote(self._run, address)
