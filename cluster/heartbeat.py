"""The part of monitoring that runs inside each monitored process.

Every process of a stage writes a record, `<pid>.json`, into a folder of its node when it starts. When its work ends
without an exception, the process removes the record. When its work ends with an exception, the process marks the record
(`monitored`). The record of an actor or server that is ended on purpose is removed by the monitor (`ignore_exits`). So
an unmarked record without a process means that the process died. A running process writes heartbeats, and on request
its Python stacks, into the same folder. `cluster.node_monitor` reads the folder of one node, and
`cluster.stage_monitor` combines the reports of all nodes.
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
from typing import IO, Any, NamedTuple

from cluster.plain import from_plain, to_plain
from cluster.process_info import ProcessInfo

STACK_SIGNAL = signal.SIGUSR2
"""The signal that makes a monitored process write its Python stacks into `<pid>.stack`, next to its record."""
STOP_FILE = "stop"
"""A file of this name in a node's folder asks all processes of the node to save their work and stop."""
MESSAGE_SUFFIX = ".message"
"""A file with this suffix in a node's folder is a `DriverMessage`. The monitor removes it when it has read it."""
_MIN_HEARTBEAT_INTERVAL_S = 1.0

log = logging.getLogger(__name__)


class DriverMessage(NamedTuple):
    """A message that the driver logs for another process."""

    text: str
    level: int
    """A level of `logging`."""


@dataclass(frozen=True)
class ProcessRecord:
    """The content of `<pid>.json`, the record of one monitored process."""

    process: ProcessInfo
    log_death: bool
    """Whether the monitor logs a warning when the process dies. It is true for processes whose work Ray silently
    repeats, because otherwise nothing reports their death."""
    log_offset: int
    """The size of the process's log, in bytes, when the process was registered. What precedes the offset was written by
    earlier work in the same Ray worker process, because Ray reuses its workers."""
    handles_stack_signal: bool
    """Whether the process handles `STACK_SIGNAL`. The signal kills a process that does not handle it."""
    ended_with_exception: bool = False
    """Whether the work of the process ended with an exception. The monitor does not report the end of such a process,
    because the receiver of the exception reports the exception."""

    @staticmethod
    def read(file: Path) -> "ProcessRecord":
        """Read a record. Raises FileNotFoundError if it was removed, because the process ended without an exception."""
        return from_plain(ProcessRecord, json.loads(file.read_text()))

    def write(self, file: Path) -> None:
        _write_atomically(file, json.dumps(to_plain(self)))


class _Registration:
    """The registration of the process that runs this code. A forked child begins with the values of its parent."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        """The node's folder of records. None if this process has never been monitored."""
        self.process: ProcessInfo | None = None
        """The identity under which this process was last monitored. None if it has never been monitored."""
        self.last_heartbeat_s = 0.0
        """The time of the last heartbeat, by `time.monotonic`."""
        self.stack_file: IO[str] | None = None
        """The open file `<pid>.stack`. None if this process has never been monitored."""
        self.stack_pid = 0
        """The id of the process whose signal handler writes to `stack_file`. It differs from this process's id in a
        forked child that has not registered yet. 0 if there is no handler."""


_registration = _Registration()


@contextlib.contextmanager
def monitored(stage: str | None, role: str, index: int, *, log_death: bool = False) -> Iterator[None]:
    """Have this process monitored while the block runs. Does nothing if `stage` is None.

    `role` and `index` name the process within the stage, as in `generator 0`. `log_death` is described in
    `ProcessRecord`.
    """
    file = None if stage is None else register_process(stage, role, index, log_death=log_death)
    if file is None:
        yield
        return
    with _marking_exception(file):
        yield
    with contextlib.suppress(OSError):
        file.unlink()


@contextlib.contextmanager
def _marking_exception(file: Path) -> Iterator[None]:
    """Set `ended_with_exception` in the record `file` if the block raises."""
    try:
        yield
    except BaseException:  # The record is kept, so that the monitor knows the process that raised the exception.
        with contextlib.suppress(OSError):
            replace(ProcessRecord.read(file), ended_with_exception=True).write(file)
        raise


def monitored_class(cls: type, stage: str | None, role: str, index: int, *, log_death: bool = False) -> type:
    """A subclass of `cls` for a Ray actor. Its constructor has the actor's process monitored until the process ends.

    An exception of the constructor is not reported as a death, although Ray then ends the process. Returns `cls` itself
    if `stage` is None.
    """
    if stage is None:
        return cls

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        file = register_process(stage, role, index, log_death=log_death)
        with _marking_exception(file) if file else contextlib.nullcontext():
            cls.__init__(self, *args, **kwargs)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__doc__": cls.__doc__, "__module__": cls.__module__})


def register_process(stage: str, role: str, index: int, *, log_death: bool = False) -> Path | None:
    """Have this process monitored, until its record is removed or the process ends. Returns the path of the record.

    If the record cannot be written, for example because the disk is full, the function logs a warning and returns None,
    because the work can run without a monitor.
    """
    try:
        return _write_registration(stage, role, index, log_death)
    except OSError as error:
        log.warning("%s: %s %d is not monitored; if it dies, the cause will be unknown: %s", stage, role, index, error)
        return None


def _write_registration(stage: str, role: str, index: int, log_death: bool) -> Path:
    # Ray redirects a worker's stderr to a file, which is the worker's log. A terminal or a pipe is not a log.
    stderr_path = os.readlink("/proc/self/fd/2") if os.path.exists("/proc/self/fd/2") else ""
    log_path = stderr_path if stderr_path.startswith("/") and os.path.isfile(stderr_path) else ""
    pid = os.getpid()
    _registration.process = ProcessInfo(
        stage=stage, role=role, index=index, node=socket.gethostname(), pid=pid, ip=node_ip(), log=log_path
    )
    _registration.folder = folder = node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    stack_path = folder / f"{pid}.stack"
    # The stack file may be missing because an earlier stage removed the folder, or it may be left from an earlier
    # process with the same process id.
    if _registration.stack_pid != pid or not stack_path.exists():
        # Stacks are requested by a signal, because a process that hangs in a call would not answer a message.
        _registration.stack_file = stack_path.open("w")
        faulthandler.register(STACK_SIGNAL, file=_registration.stack_file, all_threads=True)
        _registration.stack_pid = pid
    log_offset = os.path.getsize(log_path) if log_path else 0
    return write_record(_registration.process, log_death=log_death, log_offset=log_offset, handles_stack_signal=True)


def write_record(
    process: ProcessInfo, *, log_death: bool, log_offset: int = 0, handles_stack_signal: bool = False
) -> Path:
    """Write the record of a process of this node into the node's folder, and return the record's path.

    The parameters are the fields of `ProcessRecord`.
    """
    folder = node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{process.pid}.json"
    ProcessRecord(process, log_death, log_offset, handles_stack_signal).write(file)
    return file


def send_heartbeat(step: int) -> None:
    """Report that this process has reached a step.

    You may call this function as often as you like, because it writes at most one report a second. It writes none if
    the process has never been monitored.
    """
    now = time.monotonic()
    if _registration.folder is not None and now - _registration.last_heartbeat_s > _MIN_HEARTBEAT_INTERVAL_S:
        _registration.last_heartbeat_s = now
        # If the folder was removed or the disk is full, the work goes on without heartbeats.
        with contextlib.suppress(OSError):
            _write_atomically(_registration.folder / f"{os.getpid()}.beat", str(step))


def log_on_driver(message: str, *, level: int = logging.WARNING) -> None:
    """Log a message in this process, and have the driver log it too, because users do not see the logs of workers.

    Only a process that is or was monitored reaches the driver.
    """
    log.log(level, "%s", message)
    if _registration.folder is not None:
        file = _registration.folder / f"{time.time_ns()}-{os.getpid()}{MESSAGE_SUFFIX}"
        with contextlib.suppress(OSError):  # as in `send_heartbeat`
            _write_atomically(file, json.dumps(DriverMessage(message, level)._asdict()))


def stop_requested() -> bool:
    """Whether the driver has asked this process to save its work and stop."""
    return _registration.folder is not None and (_registration.folder / STOP_FILE).exists()


def current_process_info() -> ProcessInfo | None:
    """The identity under which this process was last monitored. None if it has never been monitored."""
    process = _registration.process
    return process if process is not None and process.pid == os.getpid() else None


def node_folder() -> Path:
    """The folder of the current Ray job's records on this node.

    It is in Ray's session folder, because that is the same folder for all processes of a node, whatever their TMPDIR.
    Its name contains Ray's node id, because several nodes can run on one machine.
    """
    import ray  # Imported here so that `raymill plan` does not import Ray.
    from ray._private import worker

    context, node = ray.get_runtime_context(), worker._global_node
    assert node is not None, "node_folder needs a Ray session"
    return Path(node.get_session_dir_path()) / f"raymill-watch-{context.get_node_id()[:20]}-{context.get_job_id()}"


def node_ip() -> str:
    """The IP address of this node, written as in Ray's reports."""
    import ray

    return ray.util.get_node_ip_address()


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(f"{path.suffix}.tmp")
    partial.write_text(text)
    partial.replace(path)
