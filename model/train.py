"""The training step and the training loop that every kind of training shares.

Pretraining, SFT, the reward model, the policy and the critic call `train_step` with their own batches and their own
objective (`model.objectives`). A micro-batch is the rows that one rank computes in one forward and backward pass.

An objective returns the sum of its loss terms (one term per token or per pair) and the number of terms. `train_step`
adds both over all micro-batches and ranks and divides once. The update therefore does not depend on how a batch was
split into micro-batches, nor on the number of ranks.
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
    """The loss or the gradient of a step is infinite or NaN. The step did not change the parameters."""


@dataclass
class TrainState:
    """The state of a training run. A checkpoint stores its tensors and its step."""

    model: Model
    """The model is unsharded on a single rank. On several ranks `model.parallel.shard` must have sharded it before the
    optimizer was created."""
    optimizer: torch.optim.Optimizer
    """The optimizer of the model's parameters."""
    schedule: Schedule
    """The learning rate of each step."""
    step: int = 0
    """Number of finished optimizer steps."""
    clip_norm: float = 1.0
    """Largest allowed L2 norm of the gradient of all parameters. A gradient with a larger norm is scaled down to this
    norm. math.inf disables clipping."""
    autocast_dtype: torch.dtype | None = None
    """Dtype of the matmuls. The parameters stay float32. None disables autocast, so that everything is float32."""

    def __post_init__(self) -> None:
        if mesh_of(self.model) is None and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"the model is not sharded, but the process group has {dist.get_world_size()} ranks, and each of them "
                f"would train its own copy: call model.parallel.shard before creating the optimizer"
            )


@dataclass(frozen=True)
class StepReport:
    """The result of one optimizer step. Every sum and mean is taken over all ranks."""

    step: int
    """Number of finished optimizer steps, this one included."""
    loss: float
    """Mean over the loss terms, computed with the parameters before the update."""
    num_loss_terms: float
    """Number of loss terms: tokens whose loss mask is true, or preference pairs."""
    num_tokens: int
    """Sum of `num_tokens` of the batches. `model.batch` documents for each class of batches whether padding counts."""
    grad_norm: float
    """L2 norm of the gradient of all parameters, before clipping."""
    lr: float
    """Learning rate of this step."""
    metrics: dict[str, float]
    """The objective's metrics, each a mean over the loss terms."""


def fit(state: TrainState, batches: Iterable[Sequence[TrainBatch]], objective: Objective) -> Iterator[StepReport]:
    """Make one optimizer step on each list of micro-batches and yield the report of the step.

    The caller logs the reports, evaluates, saves checkpoints and decides when to stop.
    """
    for micro_batches in batches:
        yield train_step(state, micro_batches, objective)


def train_step(state: TrainState, micro_batches: Sequence[TrainBatch], objective: Objective) -> StepReport:
    """Make one optimizer step on the micro-batches. Every rank must pass the same number of micro-batches.

    Raises ValueError when the step has no loss term, and NonFiniteError when the loss or the gradient is not finite.
    All ranks raise the same error, before any parameter changes.
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
        losses.append(Loss(loss.sum.detach(), loss.num_loss_terms, loss.metrics))
        num_tokens += batch.num_tokens

    totals = sum_over_ranks(_sum_over_micro_batches(losses, num_tokens, device), mesh).tolist()
    loss_sum, num_loss_terms, total_tokens, metric_sums = totals[0], totals[1], int(totals[2]), totals[3:]
    if num_loss_terms == 0:
        state.optimizer.zero_grad()
        raise ValueError(f"step {state.step}: the loss mask of every batch is empty, so there is nothing to train on")
    grad_norm = _average_and_clip_gradients(
        state, 1.0 / num_loss_terms if mesh is None else mesh.size() / num_loss_terms
    )
    if not (math.isfinite(loss_sum) and math.isfinite(grad_norm)):
        state.optimizer.zero_grad()
        raise NonFiniteError(
            f"step {state.step}: the loss is {loss_sum / num_loss_terms} and the gradient norm is {grad_norm}. The "
            f"parameters are unchanged. Lower the learning rate, or look at the data of this step"
        )
    lr = state.schedule(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    metrics = {name: value / num_loss_terms for name, value in zip(losses[0].metrics, metric_sums, strict=True)}
    return StepReport(state.step, loss_sum / num_loss_terms, num_loss_terms, total_tokens, grad_norm, lr, metrics)


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Return a context that runs matmuls on `device` in `dtype`. With None the context changes nothing."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _sum_over_micro_batches(losses: Sequence[Loss], num_tokens: int, device: torch.device) -> Tensor:
    """Return this rank's loss sum, number of terms, number of tokens and metric sums as one float64 vector.

    They are in one vector so that a single all-reduce adds them over the ranks.
    """
    if not losses:
        raise ValueError("a training step needs at least one micro-batch")
    vectors = [
        torch.stack([x.double() for x in (loss.sum, loss.num_loss_terms, *loss.metrics.values())]) for loss in losses
    ]
    totals = torch.stack(vectors).sum(0)
    tokens = torch.tensor([num_tokens], dtype=torch.float64, device=device)
    return torch.cat([totals[:2], tokens, totals[2:]])


def _average_and_clip_gradients(state: TrainState, scale: float) -> float:
    """Turn the gradients of the loss sum into clipped gradients of the mean loss. Returns the norm before clipping.

    `scale` times a gradient of the loss sum is the gradient of the mean loss. It is 1 / num_loss_terms for an unsharded
    model. FSDP divides the gradients by the number of ranks, so for a sharded model it is num_ranks / num_loss_terms.
    The scaling and the clipping are one multiplication, so that each gradient is read and written once.
    """
    from torch.distributed.tensor import DTensor  # imported here for the reason given in `model.parallel`

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
