"""The critic (PPO): it learns the value of each state of a completion."""

from __future__ import annotations

import functools

import ray
import torch
from torch import Tensor

from actors.rank_group import Pending, RankGroup, rank_0_result, to_object_ref
from actors.training_rank import TrainingRank, TrainingSettings
from cluster.process_group import free_address
from model.batch import Batch, ValueBatch
from model.huggingface import load_hf_scalar_model
from model.objectives import value_loss, values
from model.train import StepReport


class Critic:
    """One rank. It starts from the reward model, or from the policy with a head of zeros.

    consumes: whole batches of a step, of which it takes its share of the rows; waits for: the other ranks, in
    collectives; is unblocked by: their arrival, or an error when one died; produces: values and step reports.
    """

    def __init__(self, settings: TrainingSettings, rank: int) -> None:
        self._learning = settings.learning
        self._rank = TrainingRank(settings, rank)

    def free_address(self) -> str:
        """`host:port` on this node at which nothing listens."""
        return free_address()

    def join(self, address: str) -> None:
        """Meet the other ranks and load the critic."""
        self._rank.join(address, load_hf_scalar_model, lr=self._learning.critic_lr)

    def values(self, batch: Batch) -> Tensor:
        """Values [n, T] of this rank's rows, 0 where loss_mask is false."""
        return self._rank.compute(values, batch)

    def update(self, batch: ValueBatch, step: int) -> list[StepReport]:
        """One optimizer step for each minibatch of each epoch; their reports in order."""
        objective = functools.partial(value_loss, value_clip_range=self._learning.value_clip_range)
        return self._rank.update(batch, objective, step)

    def save(self) -> None:
        self._rank.save()

    def finish_save(self) -> None:
        self._rank.finish_save()

    def restore(self, optimizer_step: int | None) -> None:
        self._rank.restore(optimizer_step)


class CriticGroup:
    """The driver's view of the critic's ranks."""

    def __init__(self, ranks: RankGroup) -> None:
        self.ranks = ranks

    def values(self, batch: Batch | ray.ObjectRef) -> Pending[Tensor]:
        """Values [N, T] of all rows, 0 where loss_mask is false."""
        batch_ref = to_object_ref(batch)
        return self.ranks.start(lambda rank: rank.values.remote(batch_ref), torch.cat)

    def update(self, batch: ValueBatch, step: int) -> Pending[list[StepReport]]:
        """One optimizer step for each minibatch of each epoch; their reports in order."""
        batch_ref = to_object_ref(batch)
        return self.ranks.start(lambda rank: rank.update.remote(batch_ref, step), rank_0_result)
