"""The scorers: the reward of a completion, from a learned reward model or from a program of the user's."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from actors.device import assigned_device
from cluster.storage import Storage
from cluster.user_program import Program, load_function
from cluster.worker_errors import innermost_frame
from model.batch import pad_sequences
from model.huggingface import load_hf_scalar_model
from model.objectives import rewards
from model.precision import ComputePrecision, autocast_dtype
from model.train import autocast

MAX_CONCURRENT = 64
"""Calls of an `async def` verifier that are under way at the same time."""


@dataclass(frozen=True)
class ScorerInput:
    """One completion to be scored, as text and as tokens."""

    prompt: str
    """The user's text, or the raw prompt where there is no chat template."""
    completion: str
    """Without the stop token."""
    token_ids: tuple[int, ...]
    """Prompt and completion, ending with the stop token even where the completion was cut: there a reward model has
    learned to score."""
    record: Mapping[str, Any]
    """All fields of the prompt's line in its file."""


class RewardModel:
    """The reward model's scalar at the last token. A pure function of its folder, so Ray may restart it.

    consumes: samples; waits for: nothing; produces: one finite reward for each, in order.
    """

    def __init__(self, folder: Storage, micro_batch_size: int, precision: ComputePrecision) -> None:
        self._device = assigned_device()
        self._model = load_hf_scalar_model(folder.local()).to(self._device).requires_grad_(False)
        self._micro_batch_size = micro_batch_size
        self._dtype = autocast_dtype(precision)

    @torch.no_grad()
    def score(self, samples: Sequence[ScorerInput]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(samples), self._micro_batch_size):
            sequences = [sample.token_ids for sample in samples[start : start + self._micro_batch_size]]
            ids, last = pad_sequences(sequences, length=max(map(len, sequences)), pad_id=0)
            with autocast(self._device, self._dtype):
                scores += rewards(self._model, ids.to(self._device), last.to(self._device)).tolist()
        if not all(map(math.isfinite, scores)):
            raise RuntimeError("the reward model gave a score that is not finite: look at its training")
        return scores


class Verifier:
    """A reward by a function of the user's: `function(prompt: str, completion: str, record: dict) -> float`.

    An `async def` function scores up to MAX_CONCURRENT completions at the same time, as a client of a service can.

    consumes: samples; waits for: the function; produces: one finite reward for each, in order.
    """

    def __init__(self, program: Program) -> None:
        self._name = program.name
        self._function = load_function(program)
        self._event_loop = asyncio.Runner()  # the same for all calls, so that the function may keep a connection

    def score(self, samples: Sequence[ScorerInput]) -> list[float]:
        if inspect.iscoroutinefunction(self._function):
            return self._event_loop.run(self._score_concurrently(samples))
        rewards: list[float] = []
        for sample in samples:
            with self._errors_named(sample):
                rewards.append(_finite(self._call(sample)))
        return rewards

    async def _score_concurrently(self, samples: Sequence[ScorerInput]) -> list[float]:
        free = asyncio.Semaphore(MAX_CONCURRENT)

        async def score(sample: ScorerInput) -> float:
            async with free:
                with self._errors_named(sample):
                    return _finite(await self._call(sample))

        return await asyncio.gather(*map(score, samples))

    def _call(self, sample: ScorerInput) -> Any:
        return self._function(sample.prompt, sample.completion, dict(sample.record))

    @contextlib.contextmanager
    def _errors_named(self, sample: ScorerInput) -> Iterator[None]:
        """Errors of the block as RuntimeErrors that name the verifier, its line and the completion."""
        try:
            yield
        except Exception as error:
            frame = innermost_frame(traceback.format_exc())
            where = f", at {frame}" if frame else ""
            raise RuntimeError(
                f"verifier {self._name} failed with {type(error).__name__}: {error}{where}; "
                f"prompt {sample.prompt[:200]!r}, completion {sample.completion[:200]!r}"
            ) from error


def _finite(value: Any) -> float:
    """The value as a reward. Raises ValueError for one that is not finite."""
    reward = float(value)
    if not math.isfinite(reward):
        raise ValueError(f"its reward {reward} must be finite")
    return reward
