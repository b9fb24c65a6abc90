"""The scorers: what a response is worth, by a learned reward model or by a program."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from actors.program import Program, load_program
from actors.ranks import own_device, pid
from cluster.storage import Storage
from cluster.worker_errors import innermost_frame
from model.batch import pad_sequences
from model.huggingface import load_scalar_folder
from model.objectives import rewards
from model.precision import ComputePrecision, autocast_dtype
from model.train import autocast


@dataclass(frozen=True)
class Sample:
    """One response to be scored, as text and as tokens."""

    prompt: str
    """The user's text, or the raw prompt where there is no chat template."""
    response: str
    """Without the stop token."""
    token_ids: tuple[int, ...]
    """The whole sequence, prompt and response, ending with the stop token even where the response was cut: a reward
    model has learned to judge there."""
    record: Mapping[str, Any]
    """All fields of the prompt's line in its file, for a verifier."""


class Scorer(Protocol):
    """consumes: samples; waits for: nothing; produces: one finite reward for each, in order."""

    def score(self, samples: Sequence[Sample]) -> list[float]: ...


class RewardModel:
    """A learned reward: the scalar at the last token. A pure function of its folder, so Ray may restart it."""

    def __init__(self, folder: Storage, micro_batch_rows: int, precision: ComputePrecision) -> None:
        self._device = own_device()
        self._model = load_scalar_folder(folder.local()).to(self._device).requires_grad_(False)
        self._micro_batch_rows = micro_batch_rows
        self._dtype = autocast_dtype(precision)

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(samples), self._micro_batch_rows):
            sequences = [sample.token_ids for sample in samples[start : start + self._micro_batch_rows]]
            ids, last = pad_sequences(sequences, length=max(map(len, sequences)), pad_id=0)
            with autocast(self._device, self._dtype):
                scores += rewards(self._model, ids.to(self._device), last.to(self._device)).tolist()
        if not all(map(math.isfinite, scores)):
            raise RuntimeError("the reward model gave a score that is no finite number: look at its training")
        return scores


class Verifier:
    """A reward by a program of the user: `function(prompt: str, response: str, record: dict) -> float`."""

    def __init__(self, program: Program) -> None:
        self._name = program.name
        self._function = load_program(program)

    def pid(self) -> int:
        return pid()

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [self._score_one(sample) for sample in samples]

    def _score_one(self, sample: Sample) -> float:
        try:
            value = float(self._function(sample.prompt, sample.response, dict(sample.record)))
        except Exception as error:
            frame = innermost_frame(traceback.format_exc())
            where = f", at {frame}" if frame else ""
            raise RuntimeError(
                f"verifier {self._name} failed with {type(error).__name__}: {error}{where}; "
                f"prompt {sample.prompt[:200]!r}, response {sample.response[:200]!r}"
            ) from error
        if not math.isfinite(value):
            raise RuntimeError(
                f"verifier {self._name} gave {value} for response {sample.response[:200]!r}; rewards must be finite"
            )
        return value
