"""What a monitored process leaves on its node: a record of who it is, its progress, and its stack on request.

Every process of a stage writes a small record into a folder of its node when it starts and removes it when it ends
well (`monitored`). `cluster.node_monitor` looks at the processes on one node, `cluster.stage_monitor` at all nodes.
"""

import contextlib
import faulthandler
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from cluster.plain import from_plain, to_plain
from cluster.process_info import ProcessInfo

STACK_SIGNAL = signal.SIGUSR2
"""Makes a monitored process write its Python stacks into `<pid>.stack` beside its record."""
STOP_FILE = "stop"
"""Its presence in a node's folder asks all processes there to stop after saving their work."""
_BEAT_INTERVAL_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessRecord:
    """The content of `<pid>.json`."""

    process: ProcessInfo
    log_death: bool
    """Whether the monitor logs its death as a warning: true where nobody else reports it, as Ray silently repeats the
    work."""
    log_offset: int
    """Bytes of its log that were there before it was registered, by an earlier user of the same worker process."""
    handles_stack_signal: bool
    """Whether it handles `STACK_SIGNAL`, which would kill any other process."""
    ended_with_exception: bool = False
    """Whether it ended by an exception, which whoever receives it reports."""

    @staticmethod
    def read(file: Path) -> "ProcessRecord":
        """The record in a file. Raises FileNotFoundError once the process has ended well."""
        return from_plain(ProcessRecord, json.loads(file.read_text()))

    def write(self, file: Path) -> None:
        _write_atomically(file, json.dumps(to_plain(self)))


class _Registration:
    """This process's own registration."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        """The node's folder; None as long as this process is not monitored."""
        self.process: ProcessInfo | None = None
        self.last_beat_s = 0.0
        self.stack_file: IO[str] | None = None
        self.stack_pid = 0
        """The process that has the handler which writes to `stack_file`: a forked child has none of its own yet."""


_registration = _Registration()


@contextlib.contextmanager
def monitored(stage: str | None, role: str, index: int, *, log_death: bool = False) -> Iterator[None]:
    """Have this process monitored for the length of the block; without a stage, do nothing."""
    file = None if stage is None else register(stage, role, index, log_death=log_death)
    if file is None:
        yield
        return
    try:
        yield
    except BaseException:  # reported by whoever receives it; the record stays, to name the process
        with contextlib.suppress(OSError):
            replace(ProcessRecord.read(file), ended_with_exception=True).write(file)
        raise
    with contextlib.suppress(OSError):
        file.unlink()


def monitored_class(cls: type, stage: str | None, role: str, index: int, *, log_death: bool = False) -> type:
    """The class, changed so that an actor made of it is monitored for as long as it lives."""
    if stage is None:
        return cls

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        register(stage, role, index, log_death=log_death)
        cls.__init__(self, *arguments, **named)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__doc__": cls.__doc__, "__module__": cls.__module__})


def register(stage: str, role: str, index: int, *, log_death: bool = False) -> Path | None:
    """Have this process monitored until the record that is returned is removed, or the process ends.

    Returns None where the record cannot be written (a full disk, for example): the work does not need a monitor.
    """
    try:
        return _register(stage, role, index, log_death)
    except OSError as error:
        log.warning("%s: %s %d is not monitored, its death would have no cause: %s", stage, role, index, error)
        return None


def _register(stage: str, role: str, index: int, log_death: bool) -> Path:
    stderr_path = os.readlink("/proc/self/fd/2") if os.path.exists("/proc/self/fd/2") else ""
    log_path = stderr_path if stderr_path.startswith("/") and os.path.isfile(stderr_path) else ""
    pid = os.getpid()
    _registration.process = ProcessInfo(
        stage=stage, role=role, index=index, node=socket.gethostname(), pid=pid, ip=node_ip(), log=log_path
    )
    _registration.folder = folder = node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    stack_path = folder / f"{pid}.stack"
    # The file may be missing (an earlier stage removed the folder) or belong to an earlier process with this id.
    if _registration.stack_pid != pid or not stack_path.exists():
        # By signal, because a thread that hangs in a call would never answer a question.
        _registration.stack_file = stack_path.open("w")
        faulthandler.register(STACK_SIGNAL, file=_registration.stack_file, all_threads=True)
        _registration.stack_pid = pid
    log_offset = os.path.getsize(log_path) if log_path else 0
    return write_record(_registration.process, log_death=log_death, log_offset=log_offset, handles_stack_signal=True)


def write_record(
    process: ProcessInfo, *, log_death: bool, log_offset: int = 0, handles_stack_signal: bool = False
) -> Path:
    """Write the record of a process on this node, where the node's monitor finds it; the record's path."""
    folder = node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{process.pid}.json"
    ProcessRecord(process, log_death, log_offset, handles_stack_signal).write(file)
    return file


def send_heartbeat(step: int) -> None:
    """Report that this process has reached a step. Cheap: written at most once a second."""
    now = time.monotonic()
    if _registration.folder is not None and now - _registration.last_beat_s > _BEAT_INTERVAL_S:
        _registration.last_beat_s = now
        with contextlib.suppress(OSError):  # the folder is gone or the disk full: the work does not depend on it
            _write_atomically(_registration.folder / f"{os.getpid()}.beat", str(step))


def stop_requested() -> bool:
    """Whether the driver asks this process to save its work and stop."""
    return _registration.folder is not None and (_registration.folder / STOP_FILE).exists()


def current_process_info() -> ProcessInfo | None:
    """What this process does, or did last; None where it was never monitored."""
    process = _registration.process
    return process if process is not None and process.pid == os.getpid() else None


def node_folder() -> Path:
    """The folder of this job's records on this node.

    It lies in Ray's session folder, on which all processes of a node agree whatever their TMPDIR; Ray's node id tells
    several nodes on one machine apart.
    """
    import ray  # late: `plan` need not wait for it
    from ray._private import worker

    context, node = ray.get_runtime_context(), worker._global_node
    assert node is not None, "node_folder needs a Ray session"
    return Path(node.get_session_dir_path()) / f"raymill-watch-{context.get_node_id()[:20]}-{context.get_job_id()}"


def node_ip() -> str:
    """This node's address, as Ray's reports give it."""
    import ray

    return ray.util.get_node_ip_address()


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(f"{path.suffix}.tmp")
    partial.write_text(text)
    partial.replace(path)
