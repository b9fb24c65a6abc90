"""Logprobs of rollouts by a model at hand: what learner and reference answer with, and what a proof compares."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from actors.rollout import token_micro_batches
from model.batch import Batch, to_device
from model.huggingface import hf_name
from model.objectives import logprobs
from model.train import autocast
from model.transformer import Transformer, TransformerConfig


@torch.no_grad()
def batch_logprobs(
    model: nn.Module,
    batch: Batch,
    rows: Tensor,
    *,
    temperature: float,
    num_rows: int,
    dtype: torch.dtype | None,
) -> Tensor:
    """Logprobs [len(rows), T], on CPU, of the chosen rows of `batch`; 0 where loss_mask is false."""
    device = next(model.parameters()).device
    out = torch.zeros(len(rows), batch.targets.shape[1])
    for start, part in zip(range(0, len(rows), num_rows), token_micro_batches(batch, rows, num_rows), strict=True):
        with autocast(device, dtype):
            part_logprobs = logprobs(model, to_device(part, device), temperature)  # pyright: ignore[reportArgumentType]
        out[start : start + len(part_logprobs), : part_logprobs.shape[1]] = part_logprobs.cpu()
    return out


def logprobs_under(
    config: TransformerConfig, weights: Iterable[tuple[str, Tensor]], batch: Batch, *, temperature: float
) -> Tensor:
    """Logprobs [N, T] under weights given by their Hugging Face names: what an engine with those weights would say."""
    model = Transformer(config)
    ours = {hf_name(name): name for name in model.state_dict()}
    model.load_state_dict({ours[name]: tensor.float() for name, tensor in weights})
    rows = torch.arange(len(batch.input_ids))
    return batch_logprobs(model, batch, rows, temperature=temperature, num_rows=16, dtype=None)
