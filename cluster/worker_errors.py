"""Exceptions that cross process boundaries: how they travel, and how one is described in a sentence."""

import pickle
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from cluster.process_info import ProcessInfo
from cluster.session import RAYMILL_PACKAGES

if TYPE_CHECKING:
    from ray.exceptions import RayTaskError

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+),? in (?P<function>\S+)', re.MULTILINE)
_LIBRARY_FOLDERS = tuple(
    dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
)
_HOME = Path(__file__).resolve().parent.parent
_OWN_FOLDERS = tuple(f"{_HOME}/{name}/" for name in RAYMILL_PACKAGES)


class WorkerError(Exception):
    """An exception of another process, with what pickling it would lose: its traceback and whose it was."""

    def __init__(self, error: Exception, traceback: str, process: ProcessInfo | None) -> None:
        super().__init__(error, traceback, process)
        self.error, self.traceback, self.process = error, traceback, process


def wrap_error(error: Exception, process: ProcessInfo | None) -> WorkerError:
    """The exception that is being handled, ready to be sent to another process.

    One that does not pickle is replaced by a RuntimeError with its type and text. `process` is the one that raised
    it, None where it is not monitored.
    """
    try:
        pickle.loads(pickle.dumps(error))
        sent = error
    except Exception as reason:  # whatever a class of the user's does when it is pickled
        sent = RuntimeError(f"{type(error).__name__}: {error} (it does not pickle: {reason})")
    return WorkerError(sent, traceback.format_exc(), process)


def describe_error(error: BaseException, traceback: str) -> str:
    """`raised Type: message, at file.py:12 in function`; the frame is the innermost of our code or the user's."""
    inner, frame = original_error(error), innermost_frame(traceback)
    message = str(inner).strip().partition("\n")[0]
    return f"raised {type(inner).__name__}" + (f": {message}" if message else "") + (f", at {frame}" if frame else "")


def is_ray_task_error(error: object) -> "TypeGuard[RayTaskError]":
    """Whether an exception was raised in another process and sent here by Ray."""
    if "ray" not in sys.modules:  # then nothing was; and `plan` need not wait for the import
        return False
    from ray.exceptions import RayTaskError

    return isinstance(error, RayTaskError)


def original_error(error: BaseException) -> BaseException:
    """The exception that the work itself raised, taken out of what Ray and `wrap_error` wrapped around it."""
    while True:
        if isinstance(error, WorkerError):
            error = error.error
        elif is_ray_task_error(error) and isinstance(error.cause, BaseException):
            error = error.cause
        else:
            return error


def traceback_text(error: BaseException) -> str:
    """The traceback of the original exception, in whichever process it was raised."""
    if isinstance(error, WorkerError):
        return error.traceback
    if is_ray_task_error(error):
        return strip_colors(str(error))
    return "".join(traceback.format_exception(error))


def strip_colors(text: str) -> str:
    """The text without terminal color codes, which Ray writes into its messages."""
    return re.sub(r"\x1b\[\d*m", "", text)


def innermost_frame(traceback: str, *, is_innermost_first: bool = False) -> str | None:
    """`file.py:12 in function` of the innermost frame that is not in a library; None when all are."""
    frames = [match for match in _FRAME.finditer(traceback) if _is_outside_libraries(match["file"])]
    if not frames:
        return None
    frame = frames[0 if is_innermost_first else -1]
    file = Path(frame["file"])
    shown = file.relative_to(_HOME) if file.is_relative_to(_HOME) else file
    return f"{shown}:{frame['line']} in {frame['function']}"


def _is_outside_libraries(file: str) -> bool:
    """Whether a file is Raymill's (also where that is installed among the libraries) or the user's."""
    return file.startswith(_OWN_FOLDERS) or not file.startswith((*_LIBRARY_FOLDERS, "<"))
