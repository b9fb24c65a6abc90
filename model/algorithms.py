"""The RL algorithms: each is one row of `ALGORITHMS`, an advantage estimator and a policy loss.

A new algorithm is its two functions and a row, here or in a file of the user's own (`examples/rl_algorithm`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

from model.advantages import Estimator, grpo, ppo, reinforce_plus_plus, rloo
from model.batch import PolicyBatch
from model.learning import LearningConfig
from model.objectives import Loss, policy_loss
from model.transformer import Transformer

_OPTIONAL = ("critic_lr", "value_clip_range", "clip_range", "gamma", "gae_lambda")
"""Settings that only some algorithms read."""
_OF_THE_CRITIC = ("critic_lr", "value_clip_range")


class PolicyLoss(Protocol):
    """The loss of the policy on one micro-batch, as the learner calls it."""

    def __call__(
        self, model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float
    ) -> Loss: ...


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What tells one RL algorithm from another."""

    estimate: Estimator
    """The advantage of each completion token, from the rewards of a step's rollouts."""
    loss: PolicyLoss
    needs_critic: bool = False
    """Whether `estimate` reads values; it must then return the critic's returns too."""
    needs_groups: bool = False
    """Whether the completions of one prompt are compared, which takes a group of at least two."""
    settings: tuple[str, ...] = ()
    """Which of clip_range, gamma and gae_lambda the estimator or the loss reads."""

    def check(self, learning: LearningConfig, field: str) -> None:
        """Raises ValueError for a setting away from its default that this algorithm does not read."""
        read = self.settings + (_OF_THE_CRITIC if self.needs_critic else ())
        for setting in dataclasses.fields(learning):
            value = getattr(learning, setting.name)
            if setting.name in _OPTIONAL and setting.name not in read and value != setting.default:
                raise ValueError(
                    f"{field}.{setting.name}: {value} would be ignored by {learning.algorithm}; "
                    "remove it, or take an algorithm that reads it"
                )


def clipped_loss(model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float) -> Loss:
    """The clipped surrogate (PPO, arXiv 1707.06347, eq. 7)."""
    return policy_loss(model, batch, temperature=temperature, clip_range=learning.clip_range)


def clipped_loss_with_kl(
    model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float
) -> Loss:
    """The clipped surrogate plus the weighted KL to the reference (DeepSeekMath, arXiv 2402.03300, eq. 3)."""
    return policy_loss(
        model,
        batch,
        temperature=temperature,
        clip_range=learning.clip_range,
        kl_coefficient=learning.kl_coefficient,
    )


def unclipped_loss(model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float) -> Loss:
    """-ratio · advantage, whose gradient on fresh samples is REINFORCE's (arXiv 2402.14740, §3)."""
    return policy_loss(model, batch, temperature=temperature, clip_range=None)


ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm(estimate=grpo, loss=clipped_loss_with_kl, needs_groups=True, settings=("clip_range",)),
    "ppo": Algorithm(
        estimate=ppo, loss=clipped_loss, needs_critic=True, settings=("clip_range", "gamma", "gae_lambda")
    ),
    "rloo": Algorithm(estimate=rloo, loss=unclipped_loss, needs_groups=True),
    "reinforce++": Algorithm(estimate=reinforce_plus_plus, loss=clipped_loss, settings=("clip_range",)),
}
