"""The step `user_step`: a user-provided function of one text, in a Python file.

    def no_shouting(text: str) -> str | None:
        return None if text.isupper() else text

The function returns the text to keep, which it may have changed, or None to drop the document. An `async def` function
is called for up to `MAX_CONCURRENT` texts at the same time. If a call raises an exception or returns another type, only
the document of this call is dropped, with a reason that is counted separately (`user_step/FUNCTION failed`).
"""

import asyncio
import bdb
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from cluster.user_program import Program, load_function
from data.cleaning.step import Outcome

MAX_CONCURRENT = 64
"""Maximum number of simultaneous calls of an `async def` function in one process."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UserStep:
    """Apply your own function to each text. It returns the text to keep, or None to drop the document."""

    function: str = field(metadata={"source": True, "function": True})
    """The function as path/to/file.py:function. The file may import modules from its folder."""
    sources: dict[str, str] = field(default_factory=dict, metadata={"internal": True})
    """Source code of the function's file, under the key "", and of the imported modules, under their paths. The run
    sets this field when it starts."""

    def check(self, field_path: str) -> None:
        """Raises nothing. Before a run starts, the stage loads the function and raises ValueError if that fails."""


def with_program(settings: UserStep, program: Program) -> UserStep:
    """Return the settings with the source code of the program, so that every task of a run executes the same code."""
    return replace(settings, sources={"": program.source, **program.modules})


def user_step(texts: list[str], settings: UserStep) -> Outcome:
    """Apply the user-provided function."""
    name = function_name(settings)
    results = _call_all(_load_function(settings.function, tuple(sorted(settings.sources.items()))), texts)
    reasons = [_drop_reason(name, result) for result in results]
    kept = [result if isinstance(result, str) else text for text, result in zip(texts, results, strict=True)]
    return Outcome(kept, reasons)


def function_name(settings: UserStep) -> str:
    """Return the name of the user-provided function."""
    return settings.function.rpartition(":")[2]


def _drop_reason(name: str, result: Any) -> str | None:
    """Return the reason why a document is dropped, or None to keep it.

    `result` is what the user-provided function returned for the document's text, or the exception that it raised. An
    exception and a result of a wrong type are also logged.
    """
    if isinstance(result, str):
        return None
    if result is None:
        return f"user_step/{name}"
    error = result if isinstance(result, Exception) else TypeError(f"returned {type(result).__name__}, not str or None")
    log.warning("cleaning step %s: %s: %s; the document is dropped", name, type(error).__name__, error)
    return f"user_step/{name} failed"


@lru_cache(maxsize=8)
def _load_function(path_and_name: str, sources: Sequence[tuple[str, str]]) -> Callable[[str], Any]:
    path, _, name = path_and_name.rpartition(":")
    code_by_path: Mapping[str, str] = dict(sources)
    assert "" in code_by_path, f"{path_and_name}: the source code is missing; call `with_program` first"
    modules = {module_path: code for module_path, code in code_by_path.items() if module_path}
    return load_function(Program(code_by_path[""], path, name, modules))


def _call_all(function: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    """Return for each text what the function returned, or the exception that the function raised."""
    if inspect.iscoroutinefunction(function):
        return asyncio.run(_call_concurrently(function, texts))
    results: list[Any] = []
    for text in texts:
        try:
            results.append(function(text))
        except bdb.BdbQuit:  # the user left the debugger
            raise
        except Exception as error:
            results.append(error)
    return results


async def _call_concurrently(function: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    semaphore = asyncio.Semaphore(MAX_CONCURRENT)

    async def call(text: str) -> Any:
        async with semaphore:
            return await function(text)

    return await asyncio.gather(*map(call, texts), return_exceptions=True)
