"""What a process of a run leaves for the watch of its node: who it is, how far it has come, where it stands.

Each process of ours leaves a small file in a folder of its node when it starts (`monitored`) and takes it away when it
ends well. `cluster/node_monitor.py` looks at these processes, and `cluster/stage_monitor.py` at the nodes.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from cluster.process_info import ProcessInfo

STACK_SIGNAL = signal.SIGUSR2
"""Makes a watched process write its Python stacks beside its file."""
STOP_FILE = "stop"
"""The file in a node's folder by which processes are asked to come to a good end."""
_BEAT_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessRecord:
    """What a process's file says."""

    place: ProcessInfo
    log_death: bool
    log_from: int
    has_stack: bool
    has_raised: bool = False


def read_record(file: Path) -> ProcessRecord:
    """What a process's file says. Raises FileNotFoundError once the process has ended well."""
    said = json.loads(file.read_text())
    return ProcessRecord(**{**said, "place": ProcessInfo(**said["place"])})


class _Post:
    """This process's file in its node's folder."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.place: ProcessInfo | None = None
        self.beat_s = 0.0
        self.stack: IO[str] | None = None
        self.stack_pid = 0
        """The process that has the handler which writes to `stack`; a forked child has none of its own yet."""


_post = _Post()


@contextlib.contextmanager
def monitored(stage: str | None, role: str, index: int, *, log_death: bool = False) -> Iterator[None]:
    """Have this process watched for the length of the block; without a stage, nothing."""
    if stage is None:
        yield
        return
    file = register(stage, role, index, log_death=log_death)
    if file is None:
        yield
        return
    try:
        yield
    except BaseException:  # it is told by whoever gets it; the file stays, to say whose it was
        with contextlib.suppress(OSError):
            _write(file, json.dumps(asdict(replace(read_record(file), has_raised=True))))
        raise
    with contextlib.suppress(OSError):
        file.unlink()


def register(stage: str, role: str, index: int, *, log_death: bool = False) -> Path | None:
    """Have this process watched from now on, until the file that is returned is gone or the process is.

    None where it cannot be, as where the disk of Ray's folder is full: the work needs no watch.
    """
    try:
        return _register(stage, role, index, log_death)
    except OSError as error:
        log.warning("%s: %s %d is not watched, its death would have no cause: %s", stage, role, index, error)
        return None


def _register(stage: str, role: str, index: int, log_death: bool) -> Path:
    error_log = os.readlink("/proc/self/fd/2") if os.path.exists("/proc/self/fd/2") else ""
    error_log = error_log if error_log.startswith("/") and os.path.isfile(error_log) else ""
    pid = os.getpid()
    _post.place = ProcessInfo(
        stage=stage, role=role, index=index, node=socket.gethostname(), pid=pid, ip=node_ip(), log=error_log
    )
    _post.folder = folder = node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    stack = folder / f"{pid}.stack"
    # A file may be one that an earlier process of this id has left, or gone with an earlier stage.
    if _post.stack_pid != pid or not stack.exists():
        # By signal, for a thread that stands still in a call never comes to answer any other way.
        _post.stack = stack.open("w")
        faulthandler.register(STACK_SIGNAL, file=_post.stack, all_threads=True)
        _post.stack_pid = pid
    log_from = os.path.getsize(error_log) if error_log else 0
    return write_record(_post.place, log_death=log_death, log_from=log_from, has_stack=True)


def write_record(place: ProcessInfo, *, log_death: bool, log_from: int = 0, has_stack: bool = False) -> Path:
    """Write the file of a process on this node, which its watch finds there.

    Its log counts from `log_from` bytes; `has_stack` says that it writes its stack when it is asked: of any other
    process the signal would be the end.
    """
    folder = node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{place.pid}.json"
    _write(file, json.dumps(asdict(ProcessRecord(place, log_death, log_from, has_stack))))
    return file


def beat(step: int) -> None:
    """Say that this process has come to a step. Cheap: written at most once a second."""
    now = time.monotonic()
    if _post.folder is not None and now - _post.beat_s > _BEAT_S:
        _post.beat_s = now
        with contextlib.suppress(OSError):  # the watch is over, or the disk is full: not this process's trouble
            _write(_post.folder / f"{os.getpid()}.beat", str(step))


def stop_requested() -> bool:
    """Whether the driver has been told to end and asks this process to come to a good end."""
    return _post.folder is not None and (_post.folder / STOP_FILE).exists()


def monitored_class(cls: type, stage: str | None, role: str, index: int, *, log_death: bool = False) -> type:
    """The class, for an actor that is watched for as long as it lives."""
    if stage is None:
        return cls

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        register(stage, role, index, log_death=log_death)
        cls.__init__(self, *arguments, **named)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__doc__": cls.__doc__, "__module__": cls.__module__})


def own_process_info() -> ProcessInfo | None:
    """What this process does, or did last; None where it was never watched."""
    return _post.place if _post.place is not None and _post.place.pid == os.getpid() else None


def node_folder() -> Path:
    """The folder of this job on this node.

    It lies in Ray's own folder, which all processes of a node agree on whatever their TMPDIR; Ray's node id tells
    several nodes on one machine apart.
    """
    import ray  # late: `plan` need not wait for it
    from ray._private import worker

    here, node = ray.get_runtime_context(), worker._global_node
    assert node is not None, "there is a Ray session"
    return Path(node.get_session_dir_path()) / f"raymill-watch-{here.get_node_id()[:20]}-{here.get_job_id()}"


def node_ip() -> str:
    """This node's address, as Ray says it in its reports."""
    import ray

    return ray.util.get_node_ip_address()


def _write(path: Path, text: str) -> None:
    half = path.with_suffix(f"{path.suffix}.tmp")
    half.write_text(text)
    half.replace(path)
