"""The scorer that calls a user-provided reward function, a verifier. The other scorer is `actors.reward_model`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.user_program import Program, load_function
from cluster.worker_errors import innermost_frame

MAX_CONCURRENT = 64
"""Maximum number of simultaneous calls of an `async def` verifier."""


@dataclass(frozen=True)
class ScorerInput:
    """A completion that a scorer scores, as text for a verifier and as tokens for a reward model."""

    prompt: str
    """The last user message, or the raw prompt if there is no chat template."""
    completion: str
    """The completion's text without the stop token."""
    token_ids: tuple[int, ...]
    """The tokens of prompt and completion. For a reward model, the last token is a stop token even if the completion
    was truncated, because the reward model was trained to give the reward at a stop token."""
    record: Mapping[str, Any]
    """All fields of the prompt's line in its file."""
    truncated: bool
    """Whether the completion was cut at the maximum number of new tokens and has no stop token."""


class Verifier:
    """A scorer that calls a user's function: `function(prompt: str, completion: str, record: dict) -> float`.

    If the function also has a parameter named `truncated`, it receives `ScorerInput.truncated` under this name.
    An `async def` function is called for up to MAX_CONCURRENT completions at the same time. This is useful for a
    function that sends requests to a service.
    """

    def __init__(self, program: Program) -> None:
        self._name = program.name
        self._function = load_function(program)
        self._reads_truncated = "truncated" in inspect.signature(self._function).parameters
        # All calls of an `async def` function share one event loop, so that the function can keep a connection open.
        self._event_loop = asyncio.Runner()

    def score(self, inputs: Sequence[ScorerInput]) -> list[float]:
        """Return one finite reward for each input, in order. Raises RuntimeError when the function fails.

        A function fails when it raises an exception, and when its result is not a finite number.
        """
        if inspect.iscoroutinefunction(self._function):
            return self._score_concurrently(inputs)
        rewards: list[float] = []
        for scorer_input in inputs:
            with self._errors_named(scorer_input):
                rewards.append(_finite_reward(self._call(scorer_input)))
        return rewards

    def _score_concurrently(self, inputs: Sequence[ScorerInput]) -> list[float]:
        # This is no `async def` method, because Ray runs all methods of a class that has one inside an event loop. The
        # loop of this object could then not run.
        async def score_all() -> list[float]:
            semaphore = asyncio.Semaphore(MAX_CONCURRENT)

            async def score(scorer_input: ScorerInput) -> float:
                async with semaphore:
                    with self._errors_named(scorer_input):
                        return _finite_reward(await self._call(scorer_input))

            return await asyncio.gather(*map(score, inputs))

        return self._event_loop.run(score_all())

    def _call(self, scorer_input: ScorerInput) -> Any:
        options = {"truncated": scorer_input.truncated} if self._reads_truncated else {}
        return self._function(scorer_input.prompt, scorer_input.completion, dict(scorer_input.record), **options)

    @contextlib.contextmanager
    def _errors_named(self, scorer_input: ScorerInput) -> Iterator[None]:
        """Turn an exception of the block into a RuntimeError.

        The error names the verifier, the line at which the verifier failed, the prompt and the completion. It names no
        line if the call has wrong arguments or a wrong result, because then the exception is raised in this module.
        """
        try:
            yield
        except Exception as error:
            is_raised_here = traceback.extract_tb(error.__traceback__)[-1].filename == __file__
            frame = None if is_raised_here else innermost_frame(traceback.format_exc())
            location = f", at {frame}" if frame else ""
            raise RuntimeError(
                f"verifier {self._name} failed with {type(error).__name__}: {error}{location}; "
                f"prompt {scorer_input.prompt[:200]!r}, completion {scorer_input.completion[:200]!r}"
            ) from error


def _finite_reward(value: Any) -> float:
    """Convert a verifier's result to a reward. Raises ValueError when the reward is not finite."""
    reward = float(value)
    if not math.isfinite(reward):
        raise ValueError(f"the reward must be finite, but it is {reward}")
    return reward
