"""The scorer that computes rewards with a trained reward model. The other scorer is `actors.verifier`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from actors.device import assigned_device
from actors.verifier import ScorerInput
from cluster.storage import Storage
from model.batch import pad_sequences
from model.huggingface import load_hf_scalar_model
from model.objectives import rewards
from model.precision import ComputePrecision, autocast_dtype
from model.train import autocast


class RewardModel:
    """A scorer whose reward is the scalar that a reward model outputs at the last token.

    The rewards depend only on the arguments of the constructor and of the call. So when the actor dies, Ray restarts it
    and repeats the call.
    """

    def __init__(self, folder: Storage, micro_batch_size: int, precision: ComputePrecision) -> None:
        self._device = assigned_device()
        self._model = load_hf_scalar_model(folder.local()).to(self._device).requires_grad_(False)
        self._micro_batch_size = micro_batch_size
        self._dtype = autocast_dtype(precision)

    @torch.no_grad()
    def score(self, inputs: Sequence[ScorerInput]) -> list[float]:
        """Return one finite reward for each input, in order. Raises RuntimeError for a reward that is not finite."""
        scores: list[float] = []
        for start in range(0, len(inputs), self._micro_batch_size):
            sequences = [scorer_input.token_ids for scorer_input in inputs[start : start + self._micro_batch_size]]
            ids, last = pad_sequences(sequences, length=max(map(len, sequences)), pad_id=0)
            with autocast(self._device, self._dtype):
                scores += rewards(self._model, ids.to(self._device), last.to(self._device)).tolist()
        if not all(map(math.isfinite, scores)):
            raise RuntimeError("the reward model returned a reward that is not finite; check how it was trained")
        return scores
