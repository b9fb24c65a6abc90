"""Why a process or a piece of work ended, in one sentence: from an exception, from Ray's report, from what was seen.

Ray names three guesses where a process is gone; here one is said, from evidence.
"""

import pickle
import re
import signal
import sys
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from cluster.session import OWN_PACKAGES

if TYPE_CHECKING:
    from ray.exceptions import RayTaskError

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+),? in (?P<function>\S+)', re.MULTILINE)
_LIBRARIES = tuple(dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")))
_HOME = Path(__file__).resolve().parent.parent
_OWN = tuple(f"{_HOME}/{name}/" for name in OWN_PACKAGES)
_FATAL = {
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Floating point exception": signal.SIGFPE,
    "Floating-point exception": signal.SIGFPE,
    "Illegal instruction": signal.SIGILL,
}
"""What faulthandler writes into a worker's log before the signal ends it."""

LOST_WITH_NODE = "was lost with its node"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A process of a run, for a reader: `rlhf: generator 0 on node n1 (pid 17)`."""

    stage: str
    role: str
    index: int
    node: str = ""
    pid: int = 0
    ip: str = ""
    """Its node's, as Ray says it in its reports: process ids alone are the same in many containers."""
    log: str = ""
    """Path of its log on its node."""

    def __str__(self) -> str:
        node = f" on node {self.node}" if self.node else ""
        pid = f" (pid {self.pid})" if self.pid else ""
        return f"{self.stage}: {self.role} {self.index}{node}{pid}"

    def fits(self, *, role: str | None = None, index: int | None = None, pid: int | None = None, ip: str = "") -> bool:
        """Whether it is what is asked for; what is None or empty may be anything."""
        is_one = role in (None, self.role) and index in (None, self.index)
        return is_one and pid in (None, self.pid) and (ip in ("", self.ip) or not self.ip)


class WorkerError(Exception):
    """What was raised in another process, with whose it was and its traceback, which an exception loses on its way."""

    def __init__(self, error: Exception, traceback: str, place: Place | None) -> None:
        super().__init__(error, traceback, place)
        self.error, self.traceback, self.place = error, traceback, place


def to_bring(error: Exception, place: Place | None) -> WorkerError:
    """An exception that is being handled, for another process; what does not pickle is told by its type and text.

    place: what this process did; None where it is not watched.
    """
    try:
        pickle.loads(pickle.dumps(error))
        brought = error
    except Exception as reason:  # whatever a class of the user's does when it is pickled
        brought = RuntimeError(f"{type(error).__name__}: {error} (it does not pickle: {reason})")
    return WorkerError(brought, traceback.format_exc(), place)


def sentence(place: Place, cause: str) -> str:
    """`<place> <cause>; log: PATH`."""
    return f"{place} {cause}" + (f"; log: {place.log}" if place.log else "")


def raised(error: BaseException, traceback: str) -> str:
    """`raised Type: message, at file.py:12 in function`: the innermost frame that is ours or the user's."""
    inner, frame = original(error), own_frame(traceback)
    message = str(inner).strip().partition("\n")[0]
    return f"raised {type(inner).__name__}" + (f": {message}" if message else "") + (f", at {frame}" if frame else "")


def is_from_worker(error: object) -> "TypeGuard[RayTaskError]":
    """Whether an exception was raised in another process, and Ray has brought it."""
    if "ray" not in sys.modules:  # then nothing did; and `plan` need not wait for the import
        return False
    from ray.exceptions import RayTaskError

    return isinstance(error, RayTaskError)


def original(error: BaseException) -> BaseException:
    """The exception that the work itself raised: Ray wraps it, also more than once."""
    while True:
        if isinstance(error, WorkerError):
            error = error.error
        elif is_from_worker(error) and isinstance(error.cause, BaseException):
            error = error.cause
        else:
            return error


def traceback_text(error: BaseException) -> str:
    """The traceback of the work's own exception, from whichever process it came."""
    if isinstance(error, WorkerError):
        return error.traceback
    if is_from_worker(error):
        return uncoloured(str(error))
    return "".join(traceback.format_exception(error))


def uncoloured(text: str) -> str:
    """A text of Ray's without the colours that it has for terminals."""
    return re.sub(r"\x1b\[\d*m", "", text)


def own_frame(text: str, *, is_innermost_first: bool = False) -> str | None:
    """`file.py:12 in function` of the innermost frame of a traceback that is in no library; None without one."""
    frames = [match for match in _FRAME.finditer(text) if _is_own(match["file"])]
    if not frames:
        return None
    frame = frames[0 if is_innermost_first else -1]
    file = Path(frame["file"])
    shown = file.relative_to(_HOME) if file.is_relative_to(_HOME) else file
    return f"{shown}:{frame['line']} in {frame['function']}"


def _is_own(file: str) -> bool:
    """Whether a file is ours, also where we are installed among the libraries, or the user's."""
    return file.startswith(_OWN) or not file.startswith((*_LIBRARIES, "<"))


def killed_by(number: int) -> str:
    """`was killed by signal 9 (SIGKILL)`."""
    return f"was killed by signal {number} ({signal.Signals(number).name})"


def exited(code: int) -> str:
    """What an exit code says, as `subprocess` gives it: negative for a signal."""
    return killed_by(-code) if code < 0 else f"ended by itself with exit code {code}"


def fatal_signal(log: str) -> str | None:
    """What a worker's log says of a signal that ended it; None where it says nothing."""
    found = re.search(r"^Fatal Python error: (.+)$", log, re.MULTILINE)
    number = _FATAL.get(found[1].strip()) if found else None
    if number is not None:
        frame = own_frame(log[found.start() :], is_innermost_first=True) if found else None
        return killed_by(number) + (f" at {frame}" if frame else "")
    if found := re.search(r"\*\*\* (SIG[A-Z]+) received at time", log):
        return killed_by(signal.Signals[found[1]])
    return None


def ray_says(report: str) -> str | None:
    """What Ray's report of a death knows for certain; None where it would only guess."""
    if re.search(r"OutOfMemoryError|running low on memory|memory usage threshold|memory monitor", report):
        found = re.search(r"memory used was ([^;,.]*GB / [0-9.]+GB)[^.]*", report)
        return "ran out of memory: Ray's memory monitor ended it" + (f" (node: {found[1]})" if found else "")
    if re.search(r"receives a SIGTERM|SIGTERM (?:handler|received)", report):
        return killed_by(signal.SIGTERM)
    if found := re.search(r"exits? with an? (?:exit )?code[ =]*(-?\d+)", report):
        return exited(int(found[1]))
    if re.search(
        r"[Nn]ode (?:it was running on is|was|has been|has|is) (?:terminated|dead|died|lost|crashed|preempted)", report
    ):
        return LOST_WITH_NODE
    if re.search(r"lost due to node failure|local raylet died", report):
        return LOST_WITH_NODE
    return None


def pid_in(report: str) -> int | None:
    """The process id in Ray's report of a death or of an exception; of several, where one met another's, the last."""
    found = re.findall(r"\bpid: (\d+)|Worker PID: (\d+)|\(pid=(\d+), ip=", report)
    return int(next(filter(None, found[-1]))) if found else None


def ip_in(report: str) -> str:
    """The node's address in the same report; empty where it has none."""
    found = re.findall(r"(?:\bip|\bIP|IP address)(?:: |=)([\w.:]+)", report)
    return found[-1] if found else ""
