"""What a rank of the learner and a rank of the critic have in common: process group, training state, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from actors.device import assigned_device
from actors.logprobs import compute_by_row
from actors.rollout import micro_batches, minibatch_rows, rank_rows
from cluster.placement import Placement
from cluster.process_group import RankContext, join_process_group
from cluster.storage import Storage
from model.batch import Batch, PolicyBatch, ValueBatch
from model.checkpoint import Checkpoints
from model.heads import Model
from model.learning import LearningConfig
from model.objectives import Objective
from model.optim import adamw, constant_schedule
from model.parallel import shard
from model.precision import autocast_dtype, resolved_precision
from model.train import StepReport, TrainState, fit

_KEPT_CHECKPOINTS = 2
_COLLECTIVE_TIMEOUT_S = 300.0
"""How long a rank waits for another in a collective."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a group trains; the same on every rank, and for learner and critic alike."""

    folder: Storage
    """Hugging Face folder of the model that training starts from."""
    checkpoints: Storage
    learning: LearningConfig
    seed: int
    """Seed of the minibatches."""
    placement: Placement
    micro_batch_size: int
    """Sequences of one forward and backward pass on one rank."""


class TrainingRank:
    """The training state of one rank, and its share of every batch."""

    def __init__(self, settings: TrainingSettings, rank: int) -> None:
        self._settings = settings
        self.context = RankContext(rank, settings.placement.workers)
        self.state: TrainState

    def join(self, address: str, load_model: Callable[[Path], Model], *, lr: float) -> None:
        """Meet the other ranks, load the model and shard it over the group."""
        settings, learning = self._settings, self._settings.learning
        if self.context.world_size > 1:
            join_process_group(
                self.context, backend=settings.placement.backend, address=address, timeout_s=_COLLECTIVE_TIMEOUT_S
            )
        device = assigned_device()
        model = load_model(settings.folder.local()).to(device)
        if self.context.world_size > 1:
            shard(model, mesh=init_device_mesh(device.type, (self.context.world_size,)))
        self.state = TrainState(
            model,
            adamw(model, lr=lr, weight_decay=learning.weight_decay),
            constant_schedule(lr, warmup_steps=learning.warmup_steps),
            clip_norm=learning.clip_norm,
            autocast_dtype=autocast_dtype(resolved_precision(learning.precision)),
        )
        self._checkpoints = Checkpoints(settings.checkpoints.fs, settings.checkpoints.root, keep=_KEPT_CHECKPOINTS)

    def compute(self, function: Callable[[Any, Batch], Tensor], batch: Batch) -> Tensor:
        """`function(model, batch)` [n, T], without gradient, for this rank's share of the rows of a whole batch."""
        return compute_by_row(
            function,
            self.state.model,
            batch,
            self._share(torch.arange(len(batch.input_ids))),
            micro_batch_size=self._settings.micro_batch_size,
            dtype=self.state.autocast_dtype,
        )

    def update(self, batch: PolicyBatch | ValueBatch, objective: Objective, step: int) -> list[StepReport]:
        """One optimizer step for each minibatch of each epoch; their reports in order."""
        learning = self._settings.learning
        num_rows = len(batch.tokens.input_ids)
        batches = (
            list(micro_batches(batch, self._share(rows), self._settings.micro_batch_size))
            for epoch in range(learning.epochs)
            for rows in minibatch_rows(num_rows, learning.minibatches, seed=self._settings.seed, step=step, epoch=epoch)
        )
        return list(fit(self.state, batches, objective))

    def save(self) -> None:
        """Begin a checkpoint of the current state."""
        self._checkpoints.save(self.state, {})

    def finish_save(self) -> None:
        """Wait until the last checkpoint is whole."""
        self._checkpoints.wait()

    def restore(self, optimizer_step: int | None) -> None:
        """Load the checkpoint of this optimizer step; None keeps the model that training starts from."""
        if optimizer_step is not None:
            self._checkpoints.load(self.state, step=optimizer_step)

    def _share(self, rows: Tensor) -> Tensor:
        return rank_rows(rows, self.context.rank, self.context.world_size)
