"""The only training step and loop; pretraining, SFT, reward, policy and critic pass different batches and objectives.

A step consumes micro-batches and an objective's sums, and divides once by the weight over all micro-batches and
ranks, so the update does not depend on how the batch was cut or on how many ranks took part.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from model.batch import TrainBatch, to_device
from model.heads import Model
from model.objectives import Loss, Objective
from model.optim import Schedule
from model.parallel import mesh_of, set_gradient_sync, sum_over_ranks


class NonFiniteError(RuntimeError):
    """The loss or the gradient of a step is infinite or not a number; the parameters are those before the step."""


@dataclass
class TrainState:
    """What a training run carries from step to step; a checkpoint holds its tensors and its step."""

    model: Model
    """Whole on one rank, or sharded by `model.parallel.shard` before the optimizer was created."""
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    step: int = 0
    """Optimizer steps done."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; it is scaled down to this. math.inf for no clipping."""
    autocast_dtype: torch.dtype | None = None
    """torch.bfloat16 multiplies matrices in bfloat16 over float32 parameters; None computes in float32."""

    def __post_init__(self) -> None:
        if mesh_of(self.model) is None and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"an unsharded model in a world of {dist.get_world_size()} ranks would train separately on each: "
                f"call model.parallel.shard on it before creating the optimizer"
            )


@dataclass(frozen=True)
class StepReport:
    """The result of one optimizer step; every number is over all ranks."""

    step: int
    """Steps done after this one."""
    loss: float
    """Sum divided by weight, before the update."""
    num_terms: float
    num_tokens: int
    """Input positions read, as `num_tokens` of the batches counts them."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    lr: float
    metrics: dict[str, float]
    """The objective's metrics divided by weight."""


def fit(state: TrainState, batches: Iterable[Sequence[TrainBatch]], objective: Objective) -> Iterator[StepReport]:
    """Train on each list of micro-batches and yield its report; the caller logs, evaluates, saves and stops."""
    for micro_batches in batches:
        yield train_step(state, micro_batches, objective)


def train_step(state: TrainState, micro_batches: Sequence[TrainBatch], objective: Objective) -> StepReport:
    """Make one optimizer step on the micro-batches, which every rank must have the same number of.

    Raises ValueError when the total weight is zero and NonFiniteError when loss or gradient is not finite, on all
    ranks alike and before any parameter changes.
    """
    device = next(state.model.parameters()).device
    mesh = mesh_of(state.model)
    losses: list[Loss] = []
    num_tokens = 0
    for index, batch in enumerate(micro_batches):
        set_gradient_sync(state.model, is_last=index == len(micro_batches) - 1)
        with autocast(device, state.autocast_dtype):
            loss = objective(state.model, to_device(batch, device))
        loss.sum.backward()
        losses.append(Loss(loss.sum.detach(), loss.num_terms, loss.metrics))
        num_tokens += batch.num_tokens

    totals = sum_over_ranks(_totals(losses, num_tokens, device), mesh).tolist()
    loss_sum, weight, total_tokens, metric_sums = totals[0], totals[1], int(totals[2]), totals[3:]
    if weight == 0:
        state.optimizer.zero_grad()
        raise ValueError(f"step {state.step}: no token or pair to learn from, every loss mask of the step is empty")
    grad_norm = _divide_and_clip(state, 1.0 / weight if mesh is None else mesh.size() / weight)
    if not (math.isfinite(loss_sum) and math.isfinite(grad_norm)):
        state.optimizer.zero_grad()
        raise NonFiniteError(
            f"step {state.step}: loss {loss_sum / weight}, gradient norm {grad_norm}; the parameters are unchanged. "
            f"Lower the learning rate or look at the data of this step"
        )
    lr = state.schedule(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    metrics = {name: value / weight for name, value in zip(losses[0].metrics, metric_sums, strict=True)}
    return StepReport(state.step, loss_sum / weight, weight, total_tokens, grad_norm, lr, metrics)


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Mixed precision in `dtype` on `device`; with None nothing changes."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _totals(losses: Sequence[Loss], num_tokens: int, device: torch.device) -> Tensor:
    """Vector of this rank's loss sum, weight, tokens and metric sums, float64, so one collective carries them all."""
    if not losses:
        raise ValueError("a training step needs at least one micro-batch")
    rows = [torch.stack([x.double() for x in (loss.sum, loss.num_terms, *loss.metrics.values())]) for loss in losses]
    total = torch.stack(rows).sum(0)
    tokens = torch.tensor([num_tokens], dtype=torch.float64, device=device)
    return torch.cat([total[:2], tokens, total[2:]])


def _divide_and_clip(state: TrainState, scale: float) -> float:
    """Scale the summed gradients to their mean and clip its norm, in one pass over them; return the mean's norm.

    FSDP has averaged the gradients over the ranks, so for a sharded model `scale` is ranks / weight.
    """
    from torch.distributed.tensor import DTensor  # late: two seconds that `plan` need not wait for

    # The optimizer's parameters are the shards; the model's may be gathered ones after an evaluation.
    parameters = (p for group in state.optimizer.param_groups for p in group["params"])
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    mean_norm = norm.item() * scale
    factor = scale * min(1.0, state.clip_norm / (mean_norm + 1e-6))
    for gradient in gradients:
        gradient.mul_(factor)
    return mean_norm
