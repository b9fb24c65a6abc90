"""What a process of a run leaves for the watch of its node: who it is, how far it has come, where it stands.

Each process of ours leaves a small file in a folder of its node when it starts (`watched`) and takes it away when it
ends well. `cluster/node_watch.py` looks at these processes, and `cluster/watch.py` at the nodes.
"""

import contextlib
import faulthandler
import json
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from cluster.causes import Place

STACK_SIGNAL = signal.SIGUSR2
"""Makes a watched process write its Python stacks beside its file."""
STOP = "stop"
"""The file in a node's folder by which processes are asked to come to a good end."""
_BEAT_S = 1.0

log = logging.getLogger(__name__)


class _Post:
    """This process's file in its node's folder."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.beat_s = 0.0
        self.stack: IO[str] | None = None


_post = _Post()


@contextlib.contextmanager
def watched(stage: str | None, role: str, index: int, *, is_told: bool = False) -> Iterator[None]:
    """Have this process watched for the length of the block; without a stage, nothing."""
    if stage is None:
        yield
        return
    file = register(stage, role, index, is_told=is_told)
    if file is None:
        yield
        return
    try:
        yield
    except BaseException:  # it is told by whoever gets it; the file stays, to say whose it was
        with contextlib.suppress(OSError):
            _write(file, json.dumps({**json.loads(file.read_text()), "has_raised": True}))
        raise
    with contextlib.suppress(OSError):
        file.unlink()


def register(stage: str, role: str, index: int, *, is_told: bool = False) -> Path | None:
    """Have this process watched from now on, until the file that is returned is gone or the process is.

    None where it cannot be, as where temporary files have no room: the work needs no watch.
    """
    try:
        return _register(stage, role, index, is_told)
    except OSError as error:
        log.warning("%s: %s %d is not watched, its death would have no cause: %s", stage, role, index, error)
        return None


def _register(stage: str, role: str, index: int, is_told: bool) -> Path:
    folder = node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    pid = os.getpid()
    if not (folder / f"{pid}.stack").exists():
        # By signal, for a thread that stands still in a call never comes to answer any other way.
        _post.stack = (folder / f"{pid}.stack").open("w")
        faulthandler.register(STACK_SIGNAL, file=_post.stack, all_threads=True)
    error_log = os.readlink("/proc/self/fd/2") if os.path.exists("/proc/self/fd/2") else ""
    error_log = error_log if error_log.startswith("/") and os.path.isfile(error_log) else ""
    place = Place(stage=stage, role=role, index=index, node=socket.gethostname(), pid=pid, log=error_log)
    _post.folder = folder
    return leave_file(place, is_told=is_told, log_from=os.path.getsize(error_log) if error_log else 0)


def leave_file(place: Place, *, is_told: bool, log_from: int = 0) -> Path:
    """Write the file of a process on this node, which its watch finds there; its log counts from `log_from` bytes."""
    folder = node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{place.pid}.json"
    about = {"place": asdict(place), "is_told": is_told, "log_from": log_from, "has_raised": False}
    _write(file, json.dumps(about))
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
    return _post.folder is not None and (_post.folder / STOP).exists()


def watched_class(cls: type, stage: str | None, role: str, index: int, *, is_told: bool = False) -> type:
    """The class, for an actor that is watched for as long as it lives."""
    if stage is None:
        return cls

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        register(stage, role, index, is_told=is_told)
        cls.__init__(self, *arguments, **named)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__doc__": cls.__doc__, "__module__": cls.__module__})


def node_folder() -> Path:
    """The folder of this job on this node; Ray's node id tells several nodes on one machine apart."""
    import ray  # late: `plan` need not wait for it

    here = ray.get_runtime_context()
    return Path(tempfile.gettempdir()) / f"raymill-watch-{here.get_node_id()[:20]}-{here.get_job_id()}"


def _write(path: Path, text: str) -> None:
    half = path.with_suffix(f"{path.suffix}.tmp")
    half.write_text(text)
    half.replace(path)
