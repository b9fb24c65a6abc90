"""A cleaning step of the user's own: a function of one text in a Python file.

    def no_shouting(text: str) -> str | None:
        return None if text.isupper() else text

It returns the text to keep, changed or not, or None to drop the document. An `async def` function is called for up to
`MAX_CONCURRENT` texts at a time. A call that fails, or returns something else, drops its document under a reason of
its own, so that it is counted and costs no other document.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from cluster.user_program import Program, load_function
from data.cleaning.step import Outcome

MAX_CONCURRENT = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UserStep:
    """A function of your own of one text: it returns the text to keep, or None to drop the document."""

    function: str = field(metadata={"source": True, "function": True})
    """The function as path/to/file.py:function. Modules in the file's folder that it imports are shipped with it."""
    sources: dict[str, str] = field(default_factory=dict, metadata={"internal": True})
    """Source text of its file, under the empty path, and of those modules, as they are when the run starts."""

    def check(self, where: str) -> None:
        """Every value that the type allows is right."""


def with_program(rule: UserStep, program: Program) -> UserStep:
    """The step with the text of its program, for the tasks of one run."""
    return replace(rule, sources={"": program.source, **program.modules})


def user_step(texts: list[str], rule: UserStep) -> Outcome:
    name = rule.function.rpartition(":")[2]
    results = _call_all(_function(rule.function, tuple(sorted(rule.sources.items()))), texts)
    reasons = [_reason(name, result) for result in results]
    kept = [result if isinstance(result, str) else text for text, result in zip(texts, results, strict=True)]
    num_changed = sum(before != after for before, after in zip(texts, kept, strict=True))
    return Outcome(kept, reasons, {f"{name}/documents": num_changed})


def _reason(name: str, result: Any) -> str | None:
    """Why a document is dropped whose text gave this result; None keeps it."""
    if isinstance(result, str):
        return None
    if result is None:
        return f"user_step/{name}"
    error = result if isinstance(result, Exception) else TypeError(f"returned {type(result).__name__}, not str or None")
    log.warning("cleaning step %s: %s: %s; the document is dropped", name, type(error).__name__, error)
    return f"user_step/{name} failed"


@lru_cache(maxsize=8)
def _function(name: str, sources: Sequence[tuple[str, str]]) -> Callable[[str], Any]:
    path, _, function = name.rpartition(":")
    modules: Mapping[str, str] = dict(sources)
    assert "" in modules, f"{name}: its source is set when a run starts"
    own = {at: text for at, text in modules.items() if at}
    return load_function(Program(modules[""], path, function, own))


def _call_all(function: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    """What the function returned for each text, or the exception that it raised."""
    if inspect.iscoroutinefunction(function):
        return asyncio.run(_call_concurrently(function, texts))
    results: list[Any] = []
    for text in texts:
        try:
            results.append(function(text))
        except Exception as error:
            results.append(error)
    return results


async def _call_concurrently(function: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    free = asyncio.Semaphore(MAX_CONCURRENT)

    async def call(text: str) -> Any:
        async with free:
            return await function(text)

    return await asyncio.gather(*map(call, texts), return_exceptions=True)
