"""Exceptions that cross process boundaries: how they travel, and how one is described in a sentence."""

import pickle
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from cluster.session import PACKAGES

if TYPE_CHECKING:
    from ray.exceptions import RayTaskError
from cluster.process_info import ProcessInfo

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+),? in (?P<function>\S+)', re.MULTILINE)


_LIBRARIES = tuple(dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")))


_HOME = Path(__file__).resolve().parent.parent


_OWN = tuple(f"{_HOME}/{name}/" for name in PACKAGES)


class WorkerError(Exception):
    """What was raised in another process, with whose it was and its traceback, which an exception loses on its way."""

    def __init__(self, error: Exception, traceback: str, place: ProcessInfo | None) -> None:
        super().__init__(error, traceback, place)
        self.error, self.traceback, self.place = error, traceback, place


def wrap_error(error: Exception, place: ProcessInfo | None) -> WorkerError:
    """An exception that is being handled, for another process; what does not pickle is told by its type and text.

    place: what this process did; None where it is not watched.
    """
    try:
        pickle.loads(pickle.dumps(error))
        brought = error
    except Exception as reason:  # whatever a class of the user's does when it is pickled
        brought = RuntimeError(f"{type(error).__name__}: {error} (it does not pickle: {reason})")
    return WorkerError(brought, traceback.format_exc(), place)


def describe_error(error: BaseException, traceback: str) -> str:
    """`raised Type: message, at file.py:12 in function`: the innermost frame that is ours or the user's."""
    inner, frame = original_error(error), innermost_frame(traceback)
    message = str(inner).strip().partition("\n")[0]
    return f"raised {type(inner).__name__}" + (f": {message}" if message else "") + (f", at {frame}" if frame else "")


def is_ray_task_error(error: object) -> "TypeGuard[RayTaskError]":
    """Whether an exception was raised in another process, and Ray has brought it."""
    if "ray" not in sys.modules:  # then nothing did; and `plan` need not wait for the import
        return False
    from ray.exceptions import RayTaskError

    return isinstance(error, RayTaskError)


def original_error(error: BaseException) -> BaseException:
    """The exception that the work itself raised: Ray wraps it, also more than once."""
    while True:
        if isinstance(error, WorkerError):
            error = error.error
        elif is_ray_task_error(error) and isinstance(error.cause, BaseException):
            error = error.cause
        else:
            return error


def traceback_text(error: BaseException) -> str:
    """The traceback of the work's own exception, from whichever process it came."""
    if isinstance(error, WorkerError):
        return error.traceback
    if is_ray_task_error(error):
        return strip_colors(str(error))
    return "".join(traceback.format_exception(error))


def strip_colors(text: str) -> str:
    """A text of Ray's without the colours that it has for terminals."""
    return re.sub(r"\x1b\[\d*m", "", text)


def innermost_frame(text: str, *, is_innermost_first: bool = False) -> str | None:
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
