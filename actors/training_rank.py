"""One rank of the learner or the critic: its part of the process group, its training state and its checkpoints."""

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
from cluster.heartbeat import log_on_driver
from cluster.placement import Placement
from cluster.process_group import RankContext, join_process_group
from cluster.storage import Storage
from model.batch import Batch, PolicyBatch, ValueBatch
from model.checkpoint import Checkpoints
from model.checkpoint_steps import DamagedCheckpointError
from model.heads import Model
from model.learning import LearningConfig
from model.objectives import Objective
from model.optim import adamw, constant_schedule
from model.parallel import shard
from model.precision import autocast_dtype, require_resolved
from model.train import StepReport, TrainState, fit

_COLLECTIVE_TIMEOUT_S = 300.0
"""How long a rank waits in a collective for the other ranks, in seconds."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a group of ranks trains. All ranks of the group have equal settings."""

    folder: Storage
    """Hugging Face folder of the model that training starts from."""
    checkpoints: Storage
    """Folder of the group's checkpoints."""
    learning: LearningConfig
    seed: int
    """Seed of the random order in which rows are divided into minibatches."""
    placement: Placement
    """Where the ranks run."""
    micro_batch_size: int
    """Number of rows in one forward and backward pass on one rank."""


class TrainingRank:
    """The training state of one rank. The rank computes on its share of the rows of every batch."""

    def __init__(self, settings: TrainingSettings, rank: int) -> None:
        self._settings = settings
        self.context = RankContext(rank, settings.placement.workers)
        self.state: TrainState
        """Model, optimizer and schedule. `load_model` sets this attribute."""

    def load_model(self, address: str, read_model: Callable[[Path], Model], *, lr: float) -> None:
        """Join the process group at `address`, load the model and shard it over the ranks.

        If there is only one rank, there is no process group, and `address` is not used. `lr` is the learning rate after
        the warmup.
        """
        settings, learning = self._settings, self._settings.learning
        if self.context.world_size > 1:
            join_process_group(
                self.context, backend=settings.placement.backend, address=address, timeout_s=_COLLECTIVE_TIMEOUT_S
            )
        device = assigned_device()
        model = read_model(settings.folder.local()).to(device)
        if self.context.world_size > 1:
            shard(model, mesh=init_device_mesh(device.type, (self.context.world_size,)))
        self.state = TrainState(
            model,
            adamw(model, lr=lr, weight_decay=learning.weight_decay),
            constant_schedule(lr, warmup_steps=learning.warmup_steps),
            clip_norm=learning.clip_norm,
            autocast_dtype=autocast_dtype(require_resolved(learning.precision)),
        )
        folder = settings.checkpoints
        # None, because `actors.group_checkpoints` removes old checkpoints.
        self._checkpoints = Checkpoints(folder.fs, folder.root, keep=None, warn=log_on_driver)

    def compute(self, function: Callable[[Any, Batch], Tensor], batch: Batch) -> Tensor:
        """Return `function(model, batch)` [n, T] for the n rows of this rank, without gradient.

        `batch` has the rows of all ranks.
        """
        return compute_by_row(
            function,
            self.state.model,
            batch,
            self._share(torch.arange(len(batch.input_ids))),
            micro_batch_size=self._settings.micro_batch_size,
            dtype=self.state.autocast_dtype,
        )

    def update(self, batch: PolicyBatch | ValueBatch, objective: Objective, step: int) -> list[StepReport]:
        """Run one optimizer step for each minibatch of each epoch. Returns the step reports in order.

        `batch` has the rows of all ranks. `step` is the index of the RLHF step. The rows are assigned to minibatches at
        random, and this index is part of the random seed.
        """
        learning = self._settings.learning
        num_rows = len(batch.tokens.input_ids)
        batches = (
            list(micro_batches(batch, self._share(rows), self._settings.micro_batch_size))
            for epoch in range(learning.epochs)
            for rows in minibatch_rows(num_rows, learning.minibatches, seed=self._settings.seed, step=step, epoch=epoch)
        )
        return list(fit(self.state, batches, objective))

    def save(self) -> None:
        """Start saving a checkpoint of the current training state. The files are written in the background."""
        self._checkpoints.save(self.state, {})

    def finish_save(self) -> None:
        """Wait until the checkpoint that `save` started last is complete."""
        self._checkpoints.wait()

    def restore(self, optimizer_step: int) -> str | None:
        """Load the checkpoint of this optimizer step.

        Returns None, or if the checkpoint is damaged a sentence that says so, the same on all ranks. The state may then
        have changed, and another checkpoint must be loaded.
        """
        try:
            self._checkpoints.load_step(self.state, optimizer_step)
        except DamagedCheckpointError as error:
            return str(error)
        return None

    def _share(self, rows: Tensor) -> Tensor:
        """Return the part of these row indices on which this rank computes."""
        return rank_rows(rows, self.context.rank, self.context.world_size)
