"""The reference: the frozen policy that training started from. The KL penalty keeps the policy close to it."""

from __future__ import annotations

from torch import Tensor

from actors.device import assigned_device
from actors.logprobs import batch_logprobs
from cluster.storage import Storage
from model.batch import Batch
from model.huggingface import load_hf_model
from model.precision import ComputePrecision, autocast_dtype


class Reference:
    """Computes the reference's logprobs of rollouts.

    The results depend only on the arguments of the constructor and of the call. So Ray can restart a dead actor and
    repeat the call.
    """

    def __init__(self, folder: Storage, temperature: float, micro_batch_size: int, precision: ComputePrecision) -> None:
        self._model = load_hf_model(folder.local()).to(assigned_device()).requires_grad_(False)
        self._temperature = temperature
        self._micro_batch_size = micro_batch_size
        self._dtype = autocast_dtype(precision)

    def logprobs(self, batch: Batch) -> Tensor:
        """Return the logprobs [N, T] of the targets of N rows with T positions, at the sampling temperature.

        The result is 0 where loss_mask is false.
        """
        return batch_logprobs(
            self._model,
            batch,
            temperature=self._temperature,
            micro_batch_size=self._micro_batch_size,
            dtype=self._dtype,
        )
