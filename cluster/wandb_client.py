"""The process that speaks to W&B for a command, so that nothing of W&B can hold up or end the work.

    consumes: tasks on stdin, one JSON object a line; waits for: new lines of a metrics log, or {"do": "finish"};
    is unblocked by: a poll; produces: events on stdout, one JSON object a line

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.metrics_log import read_lines
from cluster.storage import Storage

WANDB_FOLDER = "wandb"
"""In an output: the files of an offline run."""
_POLL_S = 2.0
_INIT_TIMEOUT_S = 60.0
_CONNECT_S = 15.0


def main() -> None:
    """Do tasks until stdin ends."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints must not speak in our name
    tasks: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            tasks.put(json.loads(line))
        os._exit(0)  # whoever started this is gone

    threading.Thread(target=read, daemon=True).start()
    while True:
        task = tasks.get()
        if task["do"] == "finish":
            continue  # of a run that has failed before
        try:
            if task["do"] == "mirror":
                mirror(task, tasks, lambda event: print(json.dumps(event), file=events))
            else:
                write_offline(task)
            answer = {"event": "done"}
        except Exception as error:  # whatever it is, the work goes on and the metrics are kept
            answer = {"event": "failed", "why": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=events)


def mirror(task: Mapping[str, Any], tasks: "queue.Queue[dict[str, Any]]", tell: Any) -> None:
    """Send every line of a metrics log once, those from before a kill included, until told to finish."""
    storage = Storage(task["storage"])
    require_reachable(server_url())
    with scratch_folder() as scratch:
        run = start_run(task["run"], scratch, mode="shared" if task["shared"] else "online")
        tell({"event": "started", "url": run.url})
        unsent = UnsentLines(float(run.summary.get("step", -1.0)))
        finishing = False
        while not finishing:
            began_s = time.monotonic()
            lines = read_lines(storage)
            log_lines(run, unsent.take(lines))
            try:
                # A long log is read less often.
                finishing = tasks.get(timeout=max(_POLL_S, 20 * (time.monotonic() - began_s)))["do"] == "finish"
            except queue.Empty:
                continue
        log_lines(run, unsent.take(read_lines(storage)))
        run.finish()


def server_url() -> str:
    """The W&B server in use."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def require_reachable(server: str) -> None:
    """Raises OSError at once for a server to which there is no way; W&B itself would try for a minute."""
    url = urllib.parse.urlsplit(server)
    host = url.hostname or ""
    if url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # what the proxy reaches, only a request tells
    try:
        socket.create_connection((host, url.port or (80 if url.scheme == "http" else 443)), _CONNECT_S).close()
    except OSError as error:
        raise OSError(f"{server} cannot be reached: {error}") from error


class UnsentLines:
    """Which lines of a growing log are still to be sent, though a resume cuts it back and may log other steps then."""

    def __init__(self, last_step: float) -> None:
        """`last_step` is the last that the server has of the run; -1 where it has none."""
        self._last_step = self._had_step = last_step
        self._number, self._last_line = 0, ""

    def take(self, lines: Sequence[str]) -> list[str]:
        """The lines that were not taken before, and of steps done again none."""
        if self._number and (len(lines) < self._number or lines[self._number - 1] != self._last_line):
            self._number, self._had_step = 0, self._last_step  # cut back
        steps = [json.loads(line)["step"] for line in lines[self._number :]]
        new = [line for line, step in zip(lines[self._number :], steps, strict=True) if step > self._had_step]
        if lines:
            self._last_step = max([self._last_step, *steps])
            self._number, self._last_line = len(lines), lines[-1]
        return new


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for what W&B's client keeps of a run that it sends: in `WANDB_DIR`, or where temporary files go."""
    base = os.environ.get("WANDB_DIR")
    if base:
        Path(base).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="raymill-wandb-", dir=base, ignore_cleanup_errors=True)


def write_offline(task: Mapping[str, Any]) -> None:
    """Write the whole metrics log as one offline run into the output, in place of one that an earlier attempt left.

    One run of all attempts: what `wandb sync` sends holds each line once.
    """
    storage = Storage(task["storage"])
    storage.remove(WANDB_FOLDER)
    with tempfile.TemporaryDirectory(prefix="raymill-wandb-") as scratch:
        folder = storage.root if storage.is_local else scratch
        run, lines = start_run(task["run"], folder, mode="offline"), read_lines(storage)
        log_lines(run, lines)
        run.finish()
        written = Path(folder) / WANDB_FOLDER
        for path in [*written.glob("offline-run-*/*"), *written.glob("logs")]:
            if path.is_dir():  # logs of the client, and empty folders
                shutil.rmtree(path)
        kept = sum(len(read_history(file)) for file in written.glob("offline-run-*/*.wandb"))
        if kept != len(lines):  # W&B says nothing of a disk that is full
            raise OSError(f"{written} holds {kept} of {len(lines)} lines; is the disk full?")
        if not storage.is_local:
            storage.put_folder(written, WANDB_FOLDER)


def read_history(file: Path) -> list[dict[str, Any]]:
    """The logged values of an offline run, in order: records in LevelDB's log format, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, place, part = file.read_bytes(), 7, b""
    history: list[dict[str, Any]] = []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # too little for the head of another record
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if place > len(data):  # torn
            break
        if kind in (1, 4):  # a whole record, or the last part of one
            record, part = Record.FromString(part), b""
            if record.HasField("history"):
                items = record.history.item
                history.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return history


def log_lines(run: Any, lines: Sequence[str]) -> None:
    """Log lines of a metrics log under our own steps: W&B drops what is logged under a step of its own it has seen."""
    for line in lines:
        values = json.loads(line)
        time_s = values.pop("time")
        run.log({**values, "_timestamp": time_s})


def start_run(run: Mapping[str, Any], folder: str, *, mode: str, label: str = "driver", primary: bool = True) -> Any:
    """A started W&B run. Raises what wandb raises when the server cannot be reached or refuses.

    Each client samples its node's processors, memory and GPUs.
    """
    import wandb  # late: seconds

    os.environ["WANDB_DISABLE_WEAVE"] = "true"  # or it advertises itself wherever openai is imported
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
        id=run["id"],
        name=run["name"],
        group=run["group"],
        config=run["config"] if primary else None,
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
