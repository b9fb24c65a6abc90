"""The optimizer and the learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

Schedule = Callable[[int], float]
"""A function from the index of a step (0, 1, 2, …) to the learning rate. It has no state, so checkpoints do not store
it."""


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> torch.optim.AdamW:
    """Return fused AdamW (arXiv 1711.05101) for all parameters. Weight decay applies to matrices, not to norm weights.

    Call this function after sharding, because sharding replaces the parameters of the model. The parameter groups
    contain the names of the parameters, under which checkpoints store the optimizer's state. On CPU the fused kernel is
    about three times as fast as a loop over the parameters.
    """
    named_parameters = list(model.named_parameters())
    groups = [
        {"params": [(name, p) for name, p in named_parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [(name, p) for name, p in named_parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def warmup_cosine(*, peak_lr: float, warmup_steps: int, total_steps: int, final_ratio: float = 0.1) -> Schedule:
    """Return a schedule with linear warmup to `peak_lr`, then cosine decay to peak_lr · final_ratio at the last step.

    A warmup starts at peak_lr / warmup_steps and not at 0, so that the first step changes the parameters. After
    `total_steps` the learning rate is constant.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be between 0 and total_steps={total_steps}")

    def lr_of_step(step: int) -> float:
        if step < warmup_steps:
            return peak_lr * (step + 1) / warmup_steps
        progress = (step - warmup_steps + 1) / max(1, total_steps - warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return peak_lr * (final_ratio + (1.0 - final_ratio) * cosine)

    return lr_of_step


def constant_schedule(lr: float, *, warmup_steps: int = 0) -> Schedule:
    """Return a schedule with linear warmup over `warmup_steps`, then the constant learning rate `lr`."""
    return lambda step: lr * min(1.0, (step + 1) / max(1, warmup_steps))
