"""The child process that sends metrics to W&B, so that W&B can neither delay nor stop the work of the command.

The process reads requests from stdin and writes events to stdout, one JSON object per line. While it mirrors a metrics
log, it reads the log every `_POLL_S`, or less often if the log is long, and sends the new lines. A finish request ends
the pause between two reads at once: the process sends the last lines and ends the W&B run.

This is the only file that imports wandb.
"""

import json
import os
import queue
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.metrics_log import read_lines
from cluster.plain import from_plain, to_plain
from cluster.storage import Storage

WANDB_FOLDER = "wandb"
"""The folder for the files of an offline run, in the output of the run."""
_POLL_S = 2.0
"""Shortest interval at which the metrics log is read."""
_INIT_TIMEOUT_S = 60.0
_CONNECT_LIMIT_S = 15.0
_BLOCK_BYTES, _HEADER_BYTES = 32768, 7
"""Sizes of a block and of a record header in LevelDB's log format, in which W&B writes an offline run. The file begins
with a header of W&B, which has the size of a record header too."""


@dataclass(frozen=True)
class RunInfo:
    """Id, name, group and config with which a run appears in W&B."""

    id: str
    name: str
    group: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A request to the client: one line of its stdin."""

    kind: Literal["mirror", "offline", "finish"]
    """`mirror` sends the log while it grows, until `finish`. `offline` writes the complete log as an offline run."""
    storage: str = ""
    """URL of the output that contains the metrics log; empty in a `finish` request."""
    run: RunInfo | None = None
    """The run to send or write; None in a `finish` request."""
    is_shared: bool = False
    """Whether W&B clients on other nodes add system metrics to the same run."""


@dataclass(frozen=True)
class Event:
    """What has happened to a request: one line of the client's stdout."""

    kind: Literal["started", "done", "failed"]
    url: str = ""
    """URL of the run in a `started` event."""
    reason: str = ""
    """What went wrong, in a `failed` event."""


def main() -> None:
    """Handle requests until stdin ends."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print to stdout goes to stderr, because stdout is for events
    requests: queue.Queue[Request] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(from_plain(Request, json.loads(line)))
        os._exit(0)  # the command that started this process has ended

    def emit(event: Event) -> None:
        print(json.dumps(to_plain(event)), file=events)

    threading.Thread(target=read, daemon=True).start()
    while True:
        request = requests.get()
        if request.kind == "finish":
            continue  # the mirror that this request would end has failed already
        try:
            if request.kind == "mirror":
                mirror(request, requests, emit)
            else:
                write_offline(request)
            emit(Event("done"))
        except Exception as error:  # any error: the command continues, and the metrics are still in their log
            emit(Event("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0][:300]))


def mirror(request: Request, requests: "queue.Queue[Request]", emit: Callable[[Event], None]) -> None:
    """Send every line of a metrics log to W&B once, until a finish request arrives.

    Lines that an earlier attempt of the run has logged but not sent are sent too, if their steps are higher than the
    last step that W&B has of this run. `requests` is where the finish request arrives, and `emit` writes an event to
    stdout.
    """
    assert request.run is not None, "a mirror request has a run"
    storage = Storage(request.storage)
    check_reachable(server_url())
    with scratch_folder() as scratch:
        run = start_run(request.run, scratch, mode="shared" if request.is_shared else "online")
        emit(Event("started", url=run.url))
        unsent = UnsentLines(float(run.summary.get("step", -1.0)))
        is_finishing = False
        while not is_finishing:
            started_s = time.monotonic()
            log_lines(run, unsent.pop_new(read_lines(storage)))
            try:
                # Reading a long log takes longer, so it is read less often.
                next_request = requests.get(timeout=max(_POLL_S, 20 * (time.monotonic() - started_s)))
                is_finishing = next_request.kind == "finish"
            except queue.Empty:
                continue
        log_lines(run, unsent.pop_new(read_lines(storage)))
        run.finish()


def server_url() -> str:
    """Return the URL of the W&B server in use."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def check_reachable(server: str) -> None:
    """Raises OSError if the server cannot be reached. W&B itself would try for a minute."""
    url = urllib.parse.urlsplit(server)
    host = url.hostname or ""
    if url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # a proxy is used, and only a request could show whether the proxy reaches the server
    try:
        socket.create_connection((host, url.port or (80 if url.scheme == "http" else 443)), _CONNECT_LIMIT_S).close()
    except OSError as error:
        raise OSError(f"{server} cannot be reached: {error}") from error


class UnsentLines:
    """Finds the lines of a growing log that have not been sent yet.

    A run that resumes removes the last lines of the log and logs the steps of these lines again.
    """

    def __init__(self, last_step: float) -> None:
        """`last_step` is the last step that the server has of this run; -1 if it has none."""
        self._last_step = last_step
        """The highest step that was ever returned, or at first the highest step that the server has."""
        self._skipped_step = last_step
        """Steps up to this one are not returned, because they were sent before the log was shortened."""
        self._num_read, self._last_line = 0, ""
        """Number of lines that the last call of `pop_new` was given, and the last of these lines."""

    def pop_new(self, lines: Sequence[str]) -> list[str]:
        """Return the lines that were not returned before. `lines` are all lines of the log.

        A line that a resumed run has logged again is left out if a line of its step or of a later step was returned
        before.
        """
        if self._num_read and (len(lines) < self._num_read or lines[self._num_read - 1] != self._last_line):
            self._num_read, self._skipped_step = 0, self._last_step  # a resumed run has shortened the log
        steps = [json.loads(line)["step"] for line in lines[self._num_read :]]
        new = [line for line, step in zip(lines[self._num_read :], steps, strict=True) if step > self._skipped_step]
        if lines:
            self._last_step = max([self._last_step, *steps])
            self._num_read, self._last_line = len(lines), lines[-1]
        return new


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """Create a temporary folder for the files of a W&B client, in `WANDB_DIR` if it is set."""
    base = os.environ.get("WANDB_DIR")
    if base:
        Path(base).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="raymill-wandb-", dir=base, ignore_cleanup_errors=True)


def write_offline(request: Request) -> None:
    """Write the complete metrics log as one offline run into the output of the run.

    The new offline run replaces that of an earlier attempt, so that `wandb sync` sends each line once. Raises OSError
    when lines are missing in the written files.
    """
    assert request.run is not None, "an offline request has a run"
    storage = Storage(request.storage)
    storage.remove(WANDB_FOLDER)
    with tempfile.TemporaryDirectory(prefix="raymill-wandb-") as scratch:
        folder = storage.root if storage.is_local else scratch
        run, lines = start_run(request.run, folder, mode="offline"), read_lines(storage)
        log_lines(run, lines)
        run.finish()
        written = Path(folder) / WANDB_FOLDER
        for path in [*written.glob("offline-run-*/*"), *written.glob("logs")]:
            if path.is_dir():  # the client's own logs, and empty folders
                shutil.rmtree(path)
        num_written = sum(len(read_history(file)) for file in written.glob("offline-run-*/*.wandb"))
        if num_written != len(lines):  # W&B does not report a full disk
            raise OSError(f"{written} contains {num_written} of {len(lines)} lines; is the disk full?")
        if not storage.is_local:
            storage.put_folder(written, WANDB_FOLDER)


def read_history(file: Path) -> list[dict[str, Any]]:
    """Return {metric: value} for each line that was logged to an offline run, in order.

    The file has LevelDB's log format.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, position, fragment = file.read_bytes(), _HEADER_BYTES, b""
    history: list[dict[str, Any]] = []
    while position + _HEADER_BYTES <= len(data):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _HEADER_BYTES:  # the rest of a block that is too small for a header is unused
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        fragment += data[position + _HEADER_BYTES : position + _HEADER_BYTES + length]
        position += _HEADER_BYTES + length
        if position > len(data):  # the last record is cut off
            break
        if kind in (1, 4):  # a complete record, or the last fragment of a record
            record, fragment = Record.FromString(fragment), b""
            if record.HasField("history"):
                items = record.history.item
                history.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return history


def log_lines(run: Any, lines: Sequence[str]) -> None:
    """Log lines of a metrics log to a W&B run.

    The step of a line is logged as a metric and not as the step of W&B, because W&B drops a line whose W&B step is not
    higher than the last one.
    """
    for line in lines:
        values = json.loads(line)
        time_s = values.pop("time")
        run.log({**values, "_timestamp": time_s})


def start_run(run: RunInfo, folder: str, *, mode: str, label: str = "driver", is_primary: bool = True) -> Any:
    """Start or continue a W&B run. Unless `mode` is `offline`, its client samples this node's CPUs, memory and GPUs.

    folder: where the client keeps its files.
    mode: W&B's mode: `online`, `offline`, or `shared`, in which the clients of several nodes add to one run.
    label: name of this client in the run's system metrics.
    is_primary: whether this client logs the metrics of the run. Other clients only add system metrics.

    Raises an exception of wandb when the server cannot be reached or rejects the request.
    """
    import wandb  # imported here because it takes seconds

    os.environ["WANDB_DISABLE_WEAVE"] = "true"  # otherwise wandb prints an advertisement where openai is imported
    os.environ.update({f"WANDB_{kind}_DIR": folder for kind in ("CACHE", "DATA", "CONFIG", "ARTIFACT")})
    settings = wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        symlink=False,
        init_timeout=_INIT_TIMEOUT_S,
        x_disable_meta=True,
        x_save_requirements=False,
        x_disable_stats=mode == "offline",
        x_label=label,
        x_primary=is_primary,
        x_update_finish_state=is_primary,
    )
    started = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "raymill"),
        id=run.id,
        name=run.name,
        group=run.group,
        config=run.config if is_primary else None,
        dir=folder,
        mode=mode,  # pyright: ignore[reportArgumentType]
        resume="allow" if mode != "offline" and is_primary else None,
        settings=settings,
    )
    if is_primary:
        started.define_metric("step")
        started.define_metric("*", step_metric="step")
    return started


if __name__ == "__main__":
    main()
