"""Copies the metrics log of a run to W&B. A child process does this, so that no failure of W&B affects the run.

With a W&B API key the lines of the log are sent while the run continues. Without a key, or when W&B fails, the complete
log is written at the end of the run as an offline run into the folder `wandb/` of the output, for `wandb sync`. The
environment variable `WANDB_MODE` can choose one of the two, or turn both off. The log in the output is never changed.
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
from cluster.progress import show_activity
from cluster.session import is_connected, is_local_cluster, options_on_node, other_alive_nodes
from cluster.tracking import Tracker
from cluster.wandb_client import WANDB_FOLDER, Event, Request, RunInfo, scratch_folder, server_url, start_run

_FINISH_LIMIT_S = 30.0
"""How long W&B may take to send the last lines or to write an offline run, before this counts as a failure."""
_START_LIMIT_S, _START_LIMIT_AFTER_FAILURE_S = 15.0, 3.0
"""How long the end of a stage waits for W&B if W&B has not started the run yet. The second limit applies if W&B failed
in the previous stage of the command."""
_FINISH_LIMIT_AFTER_SIGNAL_S = 2.0
"""The limit in place of `_FINISH_LIMIT_S` when a signal has stopped the command, because the command must then end
within seconds. A resumed run sends the rest. It is also how long the samplers may take to send their last samples."""
_NODES_INTERVAL_S = 10.0
"""Interval at which new nodes are looked for, to start a `NodeSampler` on each of them."""

_MODES = {
    **dict.fromkeys(("online", "run", "shared"), "online"),
    **dict.fromkeys(("offline", "dryrun"), "offline"),
    "disabled": "disabled",
}
"""Values of `WANDB_MODE`, including older values of W&B, and the mode that they mean here."""

log = logging.getLogger(__name__)


def wandb_mode() -> str:
    """Return `online`, `offline` or `disabled`, as `WANDB_MODE` says.

    If the variable is not set, the mode is online with an API key and offline without one. Raises ValueError when
    `WANDB_MODE` has an unknown value.
    """
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    if mode:
        if mode not in _MODES:
            raise ValueError(f"WANDB_MODE: {os.environ['WANDB_MODE']!r} must be one of {', '.join(_MODES)}")
        return _MODES[mode]
    return "online" if os.environ.get("WANDB_API_KEY") or _has_logged_in() else "offline"


def _has_logged_in() -> bool:
    """Whether `wandb login` has stored an API key for the server in use."""
    host = urllib.parse.urlsplit(server_url()).hostname
    try:
        return bool(host and netrc.netrc().authenticators(host))
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_link(group: str) -> str | None:
    """Return where W&B shows the runs of a group: a URL, or a description if `WANDB_ENTITY` is not set.

    None unless the mode is online.
    """
    if wandb_mode() != "online":
        return None
    base = server_url().replace("://api.", "://").rstrip("/")
    project, entity = os.environ.get("WANDB_PROJECT", "raymill"), os.environ.get("WANDB_ENTITY")
    return f"{base}/{entity}/{project}/groups/{group}" if entity else f"{base}, project {project}, group {group}"


@contextmanager
def mirror_to_wandb(tracker: Tracker) -> Iterator[None]:
    """Copy the metrics log to W&B while the block runs and at its end. If W&B fails, a warning is logged.

    A second warning is logged if the offline run cannot be written either.

    Raises ValueError when `WANDB_MODE` has an unknown value.
    """
    mode = wandb_mode()
    if mode == "disabled":
        yield
        return
    mirror = _Mirror(tracker) if mode == "online" else None
    samplers = _NodeSamplers(tracker) if mirror is not None and mirror.is_shared else None
    limit_s = _FINISH_LIMIT_S
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        limit_s = _FINISH_LIMIT_AFTER_SIGNAL_S
        raise
    finally:
        if samplers is not None:
            samplers.stop()
        try:
            _finish(tracker, mirror, limit_s)
        except KeyboardInterrupt:  # the work is complete, so the command does not wait for W&B after a signal
            _finish(tracker, None, _FINISH_LIMIT_AFTER_SIGNAL_S)
            raise


def _finish(tracker: Tracker, mirror: "_Mirror | None", limit_s: float) -> None:
    """Send the rest of the log. Without a mirror, or if it fails, write the complete log as an offline run."""
    if mirror is None or not mirror.finish(limit_s):
        with show_activity("writing an offline run for W&B"):
            _write_offline(tracker, limit_s)


class _Client:
    """The child process that sends metrics to W&B. All stages of a command share it, and it is restarted if it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.has_failed = False
        """Whether W&B failed in the last stage."""

    def begin(self, request: Request) -> "_PendingRequest":
        """Send a request to the child process, which is started if it does not run."""
        if self._process is None or self._process.poll() is not None:
            environment = {**os.environ, "WANDB_SILENT": "true"}
            try:
                self._process = start_module("cluster.wandb_client", [], environment=environment, has_pipes=True)
            except OSError as error:  # no memory is left, or too many processes run
                failed = _PendingRequest(None, reason=f"its client cannot be started: {error}")
                failed.ended.set()
                return failed
        pending = _PendingRequest(self._process)
        pending.send(request)
        pending.reader.start()
        return pending

    def stop(self) -> None:
        """End the child process. The next request starts a new one."""
        if self._process is not None:
            stop_process(self._process, grace_s=0.5)
            self._process = None


@dataclass
class _PendingRequest:
    """A request to the child process, and what has happened to it.

    The reader thread waits for events of the child process. It sets `started` at a `started` event. At a `done` or
    `failed` event, or when the child process ends, it sets `reason` and `ended`, and then the thread ends.
    """

    process: subprocess.Popen[bytes] | None
    """The child process; None if it could not be started."""
    started: threading.Event = field(default_factory=threading.Event)
    """Set when W&B has started the run."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the request is done or has failed."""
    reason: str = ""
    """Why the request failed; empty if it has not failed."""
    on_failure: Callable[[str], None] | None = None
    """Called with the reason when the request has failed, by the reader thread."""

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)

    def send(self, request: Request) -> None:
        """Send a request line to the child process."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(to_plain(request)).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:  # the process has ended, which the reader notices
            return

    def _read(self) -> None:
        """Read events until the request has ended. Runs in a thread."""
        assert self.process is not None and self.process.stdout is not None
        reason = "its client process ended unexpectedly"
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
        """Whether the run has samplers on other nodes."""
        self._tracker = tracker
        self._warned = threading.Lock()
        """Acquired by the first thread that logs the warning, and never released."""
        self._request = _client.begin(Request("mirror", tracker.storage.url, _run_info(tracker), self.is_shared))
        self._request.on_failure = self._warn

    def finish(self, limit_s: float) -> bool:
        """Send the rest of the log. Returns whether W&B has received the complete log."""
        with show_activity("sending the last metrics to W&B"):
            self._request.send(Request("finish"))
            if not self._request.started.is_set():
                limit_s = min(limit_s, _START_LIMIT_AFTER_FAILURE_S if _client.has_failed else _START_LIMIT_S)
            if not self._request.ended.wait(limit_s):
                has_started = self._request.started.is_set()
                self._warn(
                    "it has not received the last metrics in time" if has_started else "it has not answered in time"
                )
                _client.has_failed = True
                _client.stop()
                return False
        _client.has_failed = bool(self._request.reason)
        if self._request.reason:
            _client.stop()
            self._warn(self._request.reason)
        return not self._request.reason

    def _warn(self, reason: str) -> None:
        """Log the failure, unless another thread has logged it already."""
        if self._warned.acquire(blocking=False):
            name, folder = self._tracker.name, (self._tracker.storage / WANDB_FOLDER).url
            copy_first = "" if self._tracker.storage.is_local else "copy that folder to this directory, and "
            log.warning(
                "W&B failed (%s); %s continues without it. All metrics will be written to %s; %ssend them later with "
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
    request = _client.begin(Request("offline", tracker.storage.url, _run_info(tracker)))
    if not request.ended.wait(limit_s):
        _client.stop()
        request.reason = f"not done within {limit_s:.0f} s"
    if request.reason:
        _client.stop()
        metrics = tracker.storage.path(METRICS_LOG)
        text = (
            "%s: no offline run for W&B was written (%s). All metrics are in %s. The same command "
            "writes the offline run if it resumes this stage"
        )
        log.warning(text, tracker.name, request.reason, metrics)


# System metrics of the nodes other than the driver's node.


class NodeSampler:
    """A W&B client on another node, as an actor. It adds samples of the node's CPUs, memory and GPUs to a W&B run."""

    def __init__(self, run: RunInfo, label: str) -> None:
        self._folder = scratch_folder()
        self._run = start_run(run, self._folder.name, mode="shared", label=label, is_primary=False)

    def finish(self) -> None:
        """Send the last samples, and remove the files of the client."""
        self._run.finish()
        self._folder.cleanup()


class _NodeSamplers:
    """Starts a `NodeSampler` on every node except the driver's, also on nodes that join while the stage runs.

    The stage does not wait for the samplers, and their failures are not reported. The client on the driver's node
    reports failures of W&B.

    A thread lists the nodes every `_NODES_INTERVAL_S` and starts a sampler on each new node. It wakes early when `stop`
    is called.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._run = _run_info(tracker)
        self._actors: dict[str, Any] = {}
        """The actors that run the samplers, by node id."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="wandb-samplers")
        self._thread.start()

    def stop(self) -> None:
        """Let the samplers send their last samples, and kill those that take too long."""
        import ray

        self._stopped.set()
        self._thread.join()
        finishing = [actor.finish.remote() for actor in self._actors.values()]
        if finishing:
            with show_activity("stopping W&B's clients on the other nodes"):
                ray.wait(finishing, num_returns=len(finishing), timeout=_FINISH_LIMIT_AFTER_SIGNAL_S)
        for actor in self._actors.values():
            ray.kill(actor)

    def _follow(self) -> None:
        while not self._stopped.is_set():
            try:
                self._start_missing()
            except Exception as error:  # an error of Ray, on which the metrics of the run do not depend
                log.debug("the nodes of the cluster could not be listed to start W&B's samplers: %s", error)
            self._stopped.wait(_NODES_INTERVAL_S)

    def _start_missing(self) -> None:
        import ray

        for id, address in other_alive_nodes().items():
            if id not in self._actors:
                sampler = ray.remote(NodeSampler).options(**options_on_node(id))
                self._actors[id] = sampler.remote(self._run, address)
