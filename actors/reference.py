"""The reference: the policy as it was at the start, frozen; the KL penalty measures the distance to it."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.logprobs import batch_logprobs
from actors.ranks import own_device
from cluster.storage import Storage
from model.batch import Batch
from model.huggingface import load_folder
from model.precision import ComputePrecision, autocast_dtype


class Reference:
    """Frozen logprobs. A pure function of its folder, so Ray may restart it and ask again.

    consumes: batches of rollouts; waits for: nothing; produces: their logprobs.
    """

    def __init__(
        self,
        folder: Storage,
        temperature: float,
        micro_batch_rows: int,
        precision: ComputePrecision,
    ) -> None:
        self._model = load_folder(folder.local()).to(own_device()).requires_grad_(False)
        self._temperature = temperature
        self._micro_batch_rows = micro_batch_rows
        self._dtype = autocast_dtype(precision)

    def logprobs(self, batch: Batch) -> Tensor:
        """Logprobs [N, T] of the targets at the sampling temperature; 0 where loss_mask is false."""
        return batch_logprobs(
            self._model,
            batch,
            torch.arange(len(batch.input_ids)),
            temperature=self._temperature,
            num_rows=self._micro_batch_rows,
            dtype=self._dtype,
        )
