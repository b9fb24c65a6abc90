"""The critic of PPO: trains a value function, which predicts at each completion token the return from there to the
end."""

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
    """One rank of the critic.

    Training starts from the reward model or, when a verifier gives the rewards, from the policy with a value head of
    zeros. Every rank receives the full batch of an RLHF step, computes on its own share of the rows, and returns
    values and step reports. In collectives, a rank waits for all other ranks. If another rank dies, the collective ends
    with an error.
    """

    def __init__(self, settings: TrainingSettings, rank: int) -> None:
        self._learning = settings.learning
        self._training_rank = TrainingRank(settings, rank)

    def free_address(self) -> str:
        """Return a free `host:port` on this node."""
        return free_address()

    def load_model(self, address: str) -> None:
        """Join the process group at `address` and load the critic. The address is "" if there is only one rank."""
        self._training_rank.load_model(address, load_hf_scalar_model, lr=self._learning.critic_lr)

    def values(self, batch: Batch) -> Tensor:
        """Return the values [n, T] of this rank's n rows with T positions each. `batch` has the rows of all ranks.

        The result is 0 where loss_mask is false.
        """
        return self._training_rank.compute(values, batch)

    def update(self, batch: ValueBatch, step: int) -> list[StepReport]:
        """Run one optimizer step for each minibatch of each epoch. Returns the step reports in order.

        `batch` has the rows of all ranks. `step` is the index of the RLHF step. The random order in which the rows are
        divided into minibatches depends on this index.
        """
        objective = functools.partial(value_loss, value_clip_range=self._learning.value_clip_range)
        return self._training_rank.update(batch, objective, step)

    def save(self) -> None:
        """See `TrainingRank.save`."""
        self._training_rank.save()

    def finish_save(self) -> None:
        """See `TrainingRank.finish_save`."""
        self._training_rank.finish_save()

    def restore(self, optimizer_step: int) -> str | None:
        """See `TrainingRank.restore`."""
        return self._training_rank.restore(optimizer_step)


class CriticGroup:
    """The driver's interface to all ranks of the critic."""

    def __init__(self, ranks: RankGroup) -> None:
        self.ranks = ranks

    def values(self, batch: Batch | ray.ObjectRef) -> Pending[Tensor]:
        """Start computing the values [N, T] of all N rows with T positions each.

        The result is 0 where loss_mask is false.
        """
        batch_ref = to_object_ref(batch)
        return self.ranks.call(lambda actor: actor.values.remote(batch_ref), torch.cat)

    def update(self, batch: ValueBatch, step: int) -> Pending[list[StepReport]]:
        """Start one optimizer step for each minibatch of each epoch. The result is the list of step reports."""
        batch_ref = to_object_ref(batch)
        return self.ranks.call(lambda actor: actor.update.remote(batch_ref, step), rank_0_result)
