"""Exceptions of other processes: how they are sent to the driver, and how they are described to the user."""

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
_RAYMILL_FOLDER = Path(__file__).resolve().parent.parent
_PACKAGE_FOLDERS = tuple(f"{_RAYMILL_FOLDER}/{name}/" for name in RAYMILL_PACKAGES)


class WorkerError(Exception):
    """Wraps an exception that is sent to another process, with its traceback and the process that raised it.

    Pickling the exception alone would lose both.
    """

    def __init__(self, error: Exception, traceback: str, process: ProcessInfo | None) -> None:
        super().__init__(error, traceback, process)
        self.error, self.traceback, self.process = error, traceback, process


def wrap_error(error: Exception, process: ProcessInfo | None) -> WorkerError:
    """Wrap the exception that is currently handled, so that it can be sent to another process.

    An exception that cannot be pickled is replaced by a RuntimeError with its type and text. `process` is the process
    that raised the exception; None if it is not monitored.
    """
    try:
        pickle.loads(pickle.dumps(error))
        picklable = error
    except Exception as reason:  # pickling may run code of a user-provided class, which may raise anything
        picklable = RuntimeError(f"{type(error).__name__}: {error} (this exception cannot be pickled: {reason})")
    return WorkerError(picklable, traceback.format_exc(), process)


def describe_error(error: BaseException, traceback: str) -> str:
    """Describe an exception as `raised Type: message, at file.py:12 in function`.

    `traceback` is the text of the exception's traceback. The frame is the innermost one in code of Raymill or of the
    user, and is left out if there is none.
    """
    original, frame = original_error(error), innermost_frame(traceback)
    message = str(original).strip().partition("\n")[0]
    text = f"raised {type(original).__name__}" + (f": {message}" if message else "")
    return f"{text}, at {frame}" if frame else text


def is_ray_task_error(error: object) -> "TypeGuard[RayTaskError]":
    """Whether an exception was raised in another process and sent here by Ray."""
    if "ray" not in sys.modules:  # then Ray cannot have sent it, and `raymill plan` must not wait for the import
        return False
    from ray.exceptions import RayTaskError

    return isinstance(error, RayTaskError)


def original_error(error: BaseException) -> BaseException:
    """Return the exception that the work raised, without the exceptions that Ray and `wrap_error` put around it."""
    while True:
        if isinstance(error, WorkerError):
            error = error.error
        elif is_ray_task_error(error) and isinstance(error.cause, BaseException):
            error = error.cause
        else:
            return error


def traceback_text(error: BaseException) -> str:
    """Return the traceback of the original exception, from the process that raised it."""
    if isinstance(error, WorkerError):
        return error.traceback
    if is_ray_task_error(error):
        return strip_colors(str(error))
    return "".join(traceback.format_exception(error))


def strip_colors(text: str) -> str:
    """Remove terminal color codes, which Ray writes into its messages, from a text."""
    return re.sub(r"\x1b\[\d*m", "", text)


def innermost_frame(traceback: str, *, is_innermost_first: bool = False) -> str | None:
    """Return the innermost frame that is not in a library, as `file.py:12 in function`.

    None if all frames are in libraries. A traceback lists the innermost frame last, unless `is_innermost_first`.
    """
    frames = [match for match in _FRAME.finditer(traceback) if _is_outside_libraries(match["file"])]
    if not frames:
        return None
    frame = frames[0 if is_innermost_first else -1]
    file = Path(frame["file"])
    short_path = file.relative_to(_RAYMILL_FOLDER) if file.is_relative_to(_RAYMILL_FOLDER) else file
    return f"{short_path}:{frame['line']} in {frame['function']}"


def _is_outside_libraries(file: str) -> bool:
    """Whether a file belongs to the user or to Raymill, even if Raymill is installed among the libraries."""
    return file.startswith(_PACKAGE_FOLDERS) or not file.startswith((*_LIBRARY_FOLDERS, "<"))
