"""Fused lm_head and cross entropy that never stores the logits of all positions.

In a small model the lm_head uses a large share of the time of a training step. The positions are processed in chunks,
so that the logits of a chunk stay in the CPU cache. For each chunk, forward computes the logits, the loss, and the
gradients with respect to hidden states and weight. Forward can compute them because the loss is a sum over positions:
the gradient with respect to the logits of a position is softmax minus one-hot and depends on no other position.
Backward only multiplies the gradients by the incoming gradient.

On CPU this is 20 % faster than a linear layer, a cast and `F.cross_entropy`. `linear_cross_entropy` has only the logits
of one chunk in memory, while those three operations store four tensors with an entry for each logit. PyTorch's
`F.linear_cross_entropy` is similar and is made for GPUs, but on CPU it was five times slower.

Suffixes of tensor names give their dimensions: N positions, D hidden size, V vocabulary size, M positions of one chunk.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

CHUNK_POSITIONS = 1024
"""Number of positions whose logits are in memory at the same time."""


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the cross entropy of the targets in nats, summed over the N positions, as a float32 scalar.

    The logits are hidden · weightᵀ. The matmuls run in the autocast dtype, the softmax and the sum in float32. With no
    positions the loss is 0 and has zero gradients, so that a rank without targets still joins the collectives of
    backward.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
    needs_gradients = torch.is_grad_enabled()
    loss = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, dtype, needs_gradients)
    return cast(Tensor, loss)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, needs_gradients: bool
    ) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            loss, hidden_grad_ND, weight_grad_VD = _loss_and_gradients(
                hidden_ND.to(dtype), weight_VD.to(dtype), targets_N, needs_gradients
            )
        if needs_gradients:
            ctx.save_for_backward(hidden_grad_ND.to(hidden_ND.dtype), weight_grad_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_grad_ND, weight_grad_VD = ctx.saved_tensors
        return hidden_grad_ND * grad_outputs[0], weight_grad_VD * grad_outputs[0], None, None, None


def _loss_and_gradients(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, needs_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, and its gradients with respect to hidden (in the dtype of hidden) and to weight (in float32).

    With `needs_gradients` false both gradients are 0.
    """
    loss = torch.zeros((), device=hidden_ND.device)
    hidden_grad_ND = torch.zeros_like(hidden_ND)
    weight_grad_VD = torch.zeros(weight_VD.shape, device=weight_VD.device)
    for start in range(0, len(hidden_ND), CHUNK_POSITIONS):
        chunk = slice(start, start + CHUNK_POSITIONS)
        hidden_MD, targets_M1 = hidden_ND[chunk], targets_N[chunk, None]
        logprobs_MV = torch.log_softmax((hidden_MD @ weight_VD.T).float(), dim=-1)
        loss -= logprobs_MV.gather(1, targets_M1).sum()
        if not needs_gradients:
            continue
        logits_grad_MV = logprobs_MV.exp_()
        logits_grad_MV.scatter_add_(1, targets_M1, -torch.ones_like(targets_M1, dtype=torch.float32))
        logits_grad_MV = logits_grad_MV.to(hidden_ND.dtype)
        hidden_grad_ND[chunk] = logits_grad_MV @ weight_VD
        weight_grad_VD += logits_grad_MV.T @ hidden_MD
    return loss, hidden_grad_ND, weight_grad_VD
