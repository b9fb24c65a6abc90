"""Computes logprobs and values of rollouts with a PyTorch model, in micro-batches and without gradient.

Shape legend: N is the number of rows of a batch, and T the number of positions of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from actors.rollout import micro_batches
from model.batch import Batch, to_device
from model.huggingface import hf_name
from model.objectives import logprobs
from model.train import autocast
from model.transformer import Transformer
from model.transformer_config import TransformerConfig

_SNAPSHOT_MICRO_BATCH_SIZE = 16
"""Micro-batch size of `logprobs_under`."""


@torch.no_grad()
def compute_by_row(
    function: Callable[[Any, Batch], Tensor],
    model: nn.Module,
    batch: Batch,
    rows: Tensor,
    *,
    micro_batch_size: int,
    dtype: torch.dtype | None,
) -> Tensor:
    """Return `function(model, batch)` [len(rows), T] for the rows with the indices `rows`, on CPU.

    `function` is called on one micro-batch after the other. `dtype` is the dtype of autocast, and None means no
    autocast. The result is 0 where loss_mask is false.
    """
    device = next(model.parameters()).device
    result = torch.zeros(len(rows), batch.targets.shape[1])
    start = 0
    for part in micro_batches(batch, rows, micro_batch_size):
        with autocast(device, dtype):
            values = function(model, to_device(part, device)).cpu()
        num_rows, length = values.shape
        result[start : start + num_rows, :length] = torch.where(part.loss_mask, values, 0.0)
        start += num_rows
    return result


def batch_logprobs(
    model: nn.Module, batch: Batch, *, temperature: float, micro_batch_size: int, dtype: torch.dtype | None
) -> Tensor:
    """Return the logprobs [N, T] of the targets of all rows, on CPU.

    `dtype` is the dtype of autocast, and None means no autocast. The result is 0 where loss_mask is false.
    """
    rows = torch.arange(len(batch.input_ids))
    function = partial(logprobs, temperature=temperature)
    return compute_by_row(function, model, batch, rows, micro_batch_size=micro_batch_size, dtype=dtype)


def logprobs_under(
    config: TransformerConfig, weights: Iterable[tuple[str, Tensor]], batch: Batch, *, temperature: float
) -> Tensor:
    """Return the logprobs [N, T] of the targets under a float32 model with this config and these weights.

    `weights` has pairs of a Hugging Face name and a tensor. The result is 0 where loss_mask is false.
    """
    model = Transformer(config)
    names = {hf_name(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: tensor.float() for name, tensor in weights})
    return batch_logprobs(
        model, batch, temperature=temperature, micro_batch_size=_SNAPSHOT_MICRO_BATCH_SIZE, dtype=None
    )
