"""The critic: one rank of the group that learns the value of each state of a response (PPO)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from actors import ranks
from actors.ranks import RankSettings
from actors.rollout import minibatch_rows, rank_rows, token_micro_batches, value_micro_batches
from cluster.storage import Storage
from model.batch import Batch, ValueBatch, to_device
from model.huggingface import load_scalar_folder
from model.objectives import value_loss, values
from model.train import StepReport, autocast, fit


@dataclass(frozen=True, kw_only=True)
class CriticSettings:
    """What an update of the critic is."""

    folder: Storage
    """The reward model or the policy; a policy's decoder gets a score of zeros."""
    clip_range: float | None
    epochs: int
    minibatches: int
    seed: int


class Critic:
    """One rank.

    consumes: whole batches of a step, of which it takes its own rows; waits for: the other ranks, in collectives;
    is unblocked by: their arrival, or an error when one died; produces: values and step reports.
    """

    def __init__(self, settings: CriticSettings, group: RankSettings, rank: int) -> None:
        self._settings = settings
        self._group = group
        self._rank = rank

    def free_address(self) -> str:
        return ranks.free_address()

    def pid(self) -> int:
        return ranks.pid()

    def join(self, address: str) -> None:
        """Meet the other ranks and load the critic."""
        ranks.join_group(rank=self._rank, num_ranks=self._group.num_ranks, backend=self._group.backend, address=address)
        self._state = ranks.make_state(load_scalar_folder(self._settings.folder.local()), self._group)
        self._checkpoints = ranks.open_checkpoints(self._group.checkpoints)

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """Values [n, T] of this rank's rows, 0 where loss_mask is false."""
        rows = rank_rows(torch.arange(len(batch.input_ids)), self._rank, self._group.num_ranks)
        num_rows = self._group.micro_batch_rows
        device = next(self._state.model.parameters()).device
        out = torch.zeros(len(rows), batch.targets.shape[1])
        for start, part in zip(range(0, len(rows), num_rows), token_micro_batches(batch, rows, num_rows), strict=True):
            with autocast(device, self._state.autocast_dtype):
                part_values = values(self._state.model, to_device(part, device))  # pyright: ignore[reportArgumentType]
            masked = torch.where(part.loss_mask, part_values.cpu(), 0.0)
            out[start : start + len(masked), : masked.shape[1]] = masked
        return out

    def update(self, batch: ValueBatch, step: int) -> list[StepReport]:
        """One optimizer step for each minibatch of each epoch; their reports in order."""
        settings = self._settings
        objective = functools.partial(value_loss, clip_range=settings.clip_range)
        batches = (
            list(value_micro_batches(batch, self._my(rows), self._group.micro_batch_rows))
            for epoch in range(settings.epochs)
            for rows in minibatch_rows(
                len(batch.returns), settings.minibatches, seed=settings.seed, step=step, epoch=epoch
            )
        )
        return list(fit(self._state, batches, objective))

    def save(self) -> None:
        """Begin a checkpoint of the state as it is."""
        self._checkpoints.save(self._state, {})

    def finish_save(self) -> None:
        """Return when the last checkpoint is whole."""
        self._checkpoints.wait()

    def restore(self, optimizer_step: int | None) -> None:
        """Go back to a checkpoint; None leaves the critic that training starts from."""
        if optimizer_step is not None:
            self._checkpoints.load(self._state, step=optimizer_step)

    def _my(self, rows: Tensor) -> Tensor:
        return rank_rows(rows, self._rank, self._group.num_ranks)
