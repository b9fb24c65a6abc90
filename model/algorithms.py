"""The RL algorithms. An `Algorithm` combines an advantage estimator with a policy loss.

To add an algorithm, write an estimator, a policy loss and an entry of `ALGORITHMS`. A user can also define an
`Algorithm` in a file outside of Raymill (`examples/rl_algorithm`).

The losses import PyTorch when they are called. So a command that only reads the table, such as `raymill plan`, need not
import it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from model.advantages import Estimator, grpo, ppo, reinforce_plus_plus, rloo
from model.learning import LearningConfig

if TYPE_CHECKING:
    from model.batch import PolicyBatch
    from model.objectives import Loss
    from model.transformer import Transformer

_ALGORITHM_SETTINGS = (
    "kl_coefficient",
    "kl_loss",
    "critic_lr",
    "value_clip_range",
    "clip_range",
    "gamma",
    "gae_lambda",
)
"""Settings of `LearningConfig` that not every algorithm reads."""
_CRITIC_SETTINGS = ("critic_lr", "value_clip_range")
"""Settings that all algorithms with a critic read, and no other algorithm."""


class PolicyLoss(Protocol):
    """A function that returns the loss of the policy on one micro-batch. The learner calls it.

    `temperature` is the temperature at which the completions were sampled.
    """

    def __call__(
        self, model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float
    ) -> Loss: ...


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """The parts of an RL algorithm that differ between algorithms."""

    estimate: Estimator
    """Computes the advantage of each completion token from the rewards of one RLHF step."""
    loss: PolicyLoss
    """Computes the policy loss from the advantages."""
    needs_critic: bool = False
    """Whether `estimate` reads the critic's values. If so, it must also return the returns for the critic."""
    needs_groups: bool = False
    """Whether `estimate` compares completions of the same prompt. If so, each prompt needs at least two completions."""
    needs_on_policy: bool = False
    """Whether `loss` is valid only for the policy that sampled the completions. If so, an RLHF step can have only one
    optimizer step."""
    settings: tuple[str, ...] = ()
    """The settings among kl_coefficient, kl_loss, clip_range, gamma and gae_lambda that the estimator or the loss
    reads."""

    def needs_reference(self, learning: LearningConfig) -> bool:
        """Return whether this algorithm reads the logprobs of the reference with these settings."""
        return "kl_coefficient" in self.settings and learning.kl_coefficient > 0

    def check(self, learning: LearningConfig, config_path: str) -> None:
        """Raises ValueError if a setting has no effect or makes the loss invalid.

        A setting that this algorithm does not read must have its default, and kl_coefficient may also be 0.
        `config_path` is the path of `learning` in the stage's config. Error messages begin with it.
        """
        if self.needs_on_policy and learning.optimizer_steps_per_rlhf_step > 1:
            raise ValueError(
                f"{config_path}.epochs={learning.epochs}, {config_path}.minibatches={learning.minibatches}: must be 1, "
                f"because the loss of {learning.algorithm} is valid only for the policy that sampled the completions"
            )
        read_settings = self.settings + (_CRITIC_SETTINGS if self.needs_critic else ())
        for setting in dataclasses.fields(learning):
            value = getattr(learning, setting.name)
            is_neutral = value == setting.default or (setting.name == "kl_coefficient" and value == 0)
            if setting.name in _ALGORITHM_SETTINGS and setting.name not in read_settings and not is_neutral:
                raise ValueError(
                    f"{config_path}.{setting.name}: {value} would have no effect, because {learning.algorithm} does "
                    "not read this setting; remove it, or choose another algorithm"
                )


def clipped_loss(model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float) -> Loss:
    """Return the clipped surrogate loss (PPO, arXiv 1707.06347, eq. 7)."""
    from model.objectives import policy_loss

    return policy_loss(model, batch, temperature=temperature, clip_range=learning.clip_range)


def clipped_loss_with_kl(
    model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float
) -> Loss:
    """Return the clipped surrogate loss plus kl_coefficient · KL (arXiv 2402.03300, eq. 3).

    `learning.kl_loss` is the estimate of the KL divergence between policy and reference (`model.kl`).
    """
    from model.objectives import policy_loss

    return policy_loss(
        model,
        batch,
        temperature=temperature,
        clip_range=learning.clip_range,
        kl_coefficient=learning.kl_coefficient,
        kl_loss=learning.kl_loss,
    )


def unclipped_loss(model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float) -> Loss:
    """Return the loss -ratio · advantage. On-policy its gradient is that of REINFORCE (arXiv 2402.14740, §3)."""
    from model.objectives import policy_loss

    return policy_loss(model, batch, temperature=temperature, clip_range=None)


ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm(
        estimate=grpo,
        loss=clipped_loss_with_kl,
        needs_groups=True,
        settings=("kl_coefficient", "kl_loss", "clip_range"),
    ),
    "ppo": Algorithm(
        estimate=ppo,
        loss=clipped_loss,
        needs_critic=True,
        settings=("kl_coefficient", "clip_range", "gamma", "gae_lambda"),
    ),
    "rloo": Algorithm(estimate=rloo, loss=unclipped_loss, needs_groups=True, settings=("kl_coefficient",)),
    "reinforce++": Algorithm(
        estimate=reinforce_plus_plus, loss=clipped_loss, settings=("kl_coefficient", "clip_range")
    ),
}
