"""The child process that talks to W&B for a command, so that W&B can neither delay nor end the work.

    consumes: requests on stdin, one JSON object per line; waits for: new lines of a metrics log, or a finish request;
    is unblocked by: a poll; produces: events on stdout, one JSON object per line

The only file that imports wandb.
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
"""The folder of an output that holds the files of an offline run."""
_POLL_S = 2.0
_INIT_TIMEOUT_S = 60.0
_CONNECT_LIMIT_S = 15.0
_BLOCK_BYTES, _HEADER_BYTES = 32768, 7
"""Of LevelDB's log format, in which W&B keeps an offline run."""


@dataclass(frozen=True)
class RunInfo:
    """How W&B shows a run."""

    id: str
    name: str
    group: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One line of stdin."""

    kind: Literal["mirror", "offline", "finish"]
    """Send the log while it grows, write it as an offline run, or end a mirror."""
    storage: str = ""
    """URL of the output that holds the metrics log."""
    run: RunInfo | None = None
    is_shared: bool = False
    """Whether clients on other nodes write to the same run."""


@dataclass(frozen=True)
class Event:
    """One line of stdout."""

    kind: Literal["started", "done", "failed"]
    url: str = ""
    """Of the run, when it has started."""
    reason: str = ""
    """Of a failure."""


def main() -> None:
    """Handle requests until stdin ends."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may print events
    requests: queue.Queue[Request] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(from_plain(Request, json.loads(line)))
        os._exit(0)  # the command that started this process is gone

    def emit(event: Event) -> None:
        print(json.dumps(to_plain(event)), file=events)

    threading.Thread(target=read, daemon=True).start()
    while True:
        request = requests.get()
        if request.kind == "finish":
            continue  # of a mirror that has failed before
        try:
            if request.kind == "mirror":
                mirror(request, requests, emit)
            else:
                write_offline(request)
            emit(Event("done"))
        except Exception as error:  # whatever it is, the work continues and the metrics are kept
            emit(Event("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0][:300]))


def mirror(request: Request, requests: "queue.Queue[Request]", emit: Callable[[Event], None]) -> None:
    """Send every line of a metrics log once, including those from before a kill, until a finish request comes."""
    assert request.run is not None, "a mirror names its run"
    storage = Storage(request.storage)
    check_reachable(server_url())
    with scratch_folder() as scratch:
        run = start_run(request.run, scratch, mode="shared" if request.is_shared else "online")
        emit(Event("started", url=run.url))
        unsent = UnsentLines(float(run.summary.get("step", -1.0)))
        is_finishing = False
        while not is_finishing:
            started_s = time.monotonic()
            log_lines(run, unsent.take(read_lines(storage)))
            try:
                # A long log is read less often.
                next_request = requests.get(timeout=max(_POLL_S, 20 * (time.monotonic() - started_s)))
                is_finishing = next_request.kind == "finish"
            except queue.Empty:
                continue
        log_lines(run, unsent.take(read_lines(storage)))
        run.finish()


def server_url() -> str:
    """The W&B server in use."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def check_reachable(server: str) -> None:
    """Raises OSError at once for a server that cannot be reached; W&B itself would try for a minute."""
    url = urllib.parse.urlsplit(server)
    host = url.hostname or ""
    if url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # only a request shows what the proxy reaches
    try:
        socket.create_connection((host, url.port or (80 if url.scheme == "http" else 443)), _CONNECT_LIMIT_S).close()
    except OSError as error:
        raise OSError(f"{server} cannot be reached: {error}") from error


class UnsentLines:
    """The lines of a growing log that are still to be sent. A resume may cut the log back and log other steps."""

    def __init__(self, last_step: float) -> None:
        """`last_step` is the last step of the run that the server has; -1 without any."""
        self._last_step = self._sent_step = last_step
        self._num_taken, self._last_line = 0, ""

    def take(self, lines: Sequence[str]) -> list[str]:
        """The lines that were not returned before, without those of repeated steps."""
        if self._num_taken and (len(lines) < self._num_taken or lines[self._num_taken - 1] != self._last_line):
            self._num_taken, self._sent_step = 0, self._last_step  # the log was cut back
        steps = [json.loads(line)["step"] for line in lines[self._num_taken :]]
        new = [line for line, step in zip(lines[self._num_taken :], steps, strict=True) if step > self._sent_step]
        if lines:
            self._last_step = max([self._last_step, *steps])
            self._num_taken, self._last_line = len(lines), lines[-1]
        return new


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for W&B's files of a run that is sent: in `WANDB_DIR`, or where temporary files go."""
    base = os.environ.get("WANDB_DIR")
    if base:
        Path(base).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="raymill-wandb-", dir=base, ignore_cleanup_errors=True)


def write_offline(request: Request) -> None:
    """Write the whole metrics log as one offline run into the output, replacing that of an earlier attempt.

    As all attempts are in one run, `wandb sync` sends each line once.
    """
    assert request.run is not None, "an offline run has a name"
    storage = Storage(request.storage)
    storage.remove(WANDB_FOLDER)
    with tempfile.TemporaryDirectory(prefix="raymill-wandb-") as scratch:
        folder = storage.root if storage.is_local else scratch
        run, lines = start_run(request.run, folder, mode="offline"), read_lines(storage)
        log_lines(run, lines)
        run.finish()
        written = Path(folder) / WANDB_FOLDER
        for path in [*written.glob("offline-run-*/*"), *written.glob("logs")]:
            if path.is_dir():  # logs of the client, and empty folders
                shutil.rmtree(path)
        num_written = sum(len(read_history(file)) for file in written.glob("offline-run-*/*.wandb"))
        if num_written != len(lines):  # W&B does not report a full disk
            raise OSError(f"{written} holds {num_written} of {len(lines)} lines; is the disk full?")
        if not storage.is_local:
            storage.put_folder(written, WANDB_FOLDER)


def read_history(file: Path) -> list[dict[str, Any]]:
    """The logged values of an offline run, in order, from records in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, position, fragment = file.read_bytes(), _HEADER_BYTES, b""
    history: list[dict[str, Any]] = []
    while position + _HEADER_BYTES <= len(data):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _HEADER_BYTES:  # too little for the header of another record
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        fragment += data[position + _HEADER_BYTES : position + _HEADER_BYTES + length]
        position += _HEADER_BYTES + length
        if position > len(data):  # the end is cut off
            break
        if kind in (1, 4):  # a whole record, or the last fragment of one
            record, fragment = Record.FromString(fragment), b""
            if record.HasField("history"):
                items = record.history.item
                history.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return history


def log_lines(run: Any, lines: Sequence[str]) -> None:
    """Send lines of a metrics log, with the step as a metric: W&B drops lines at a step of its own that it has seen."""
    for line in lines:
        values = json.loads(line)
        time_s = values.pop("time")
        run.log({**values, "_timestamp": time_s})


def start_run(run: RunInfo, folder: str, *, mode: str, label: str = "driver", primary: bool = True) -> Any:
    """A started W&B run, whose client also samples this node's processors, memory and GPUs.

    Raises what wandb raises when the server cannot be reached or refuses.
    """
    import wandb  # late: it takes seconds

    os.environ["WANDB_DISABLE_WEAVE"] = "true"  # otherwise it advertises itself wherever openai is imported
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
        x_primary=primary,
        x_update_finish_state=primary,
    )
    started = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "raymill"),
        id=run.id,
        name=run.name,
        group=run.group,
        config=run.config if primary else None,
        dir=folder,
        mode=mode,  # pyright: ignore[reportArgumentType]
        resume="allow" if mode != "offline" and primary else None,
        settings=settings,
    )
    if primary:
        started.define_metric("step")
        started.define_metric("*", step_metric="step")
    return started


if __name__ == "__main__":
    main()
