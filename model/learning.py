"""The settings of reinforcement learning. Estimators, losses, the learner and the critic read them."""

# This module has no `from __future__ import annotations`, because the config loader needs the types at run time.

from dataclasses import dataclass, field
from typing import Literal

from model.precision import Precision, precision_field

KLLoss = Literal["k2", "k3"]
"""An estimate of the KL divergence that can be differentiated in a loss (`model.kl`)."""


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """Settings of the RL algorithm and of its optimizer steps."""

    algorithm: str = field(default="grpo", metadata={"user_code": True})
    """grpo, ppo, rloo, reinforce++, or `path/to/file.py:NAME` of your own `model.algorithms.Algorithm`. If the file
    imports modules of its folder, these are copied to the cluster too."""
    lr: float = 1e-5
    """Learning rate of the policy."""
    critic_lr: float = 1e-4
    """Learning rate of the critic (ppo)."""
    warmup_steps: int = 0
    """Number of optimizer steps in which the learning rates of policy and critic rise linearly. They are constant
    afterwards."""
    weight_decay: float = 0.0
    """Weight decay of AdamW, for the policy and the critic."""
    clip_norm: float = 1.0
    """Largest allowed L2 norm of the gradient of all parameters. A larger gradient is scaled down to this norm."""
    kl_coefficient: float = 0.02
    """Coefficient of the KL divergence from the reference. ppo, rloo and reinforce++ subtract coefficient · KL from the
    rewards (k1 in `model.kl`), and grpo adds coefficient · KL to the loss (`kl_loss`). With 0 there is no reference."""
    kl_loss: KLLoss = "k2"
    """How grpo estimates the KL divergence in the loss (`model.kl`). k2 has the gradient of KL(policy || reference),
    the divergence that the other algorithms subtract from the rewards. k3 is the estimate of the GRPO paper, which has
    the gradient of KL(reference || policy)."""
    clip_range: float = 0.2
    """The probability ratio is clipped to [1 - clip_range, 1 + clip_range] (ppo, grpo, reinforce++)."""
    value_clip_range: float = 0.2
    """In the critic's loss, a new value is clipped to the old value ± value_clip_range (ppo)."""
    epochs: int = 1
    """Number of passes over the rollouts of an RLHF step."""
    minibatches: int = 1
    """Number of mini-batches in each pass. Each mini-batch is one optimizer step."""
    gamma: float = 1.0
    """Discount factor per token (ppo)."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation (ppo): 0 gives one-step advantages, 1 gives Monte Carlo advantages."""
    precision: Precision = precision_field(placement="learners")
    """Precision of the engines' weights, and of the matmuls of learner, critic, reference and reward model
    (`model.precision`)."""
    max_logprob_difference: float | None = None
    """Largest allowed difference between the engine's and the learner's logprob of any sampled token, in nats. If it is
    exceeded, the stage fails. Null means 1e-4 in float32 and 2 in bfloat16, or three times what rounding alone does to
    this model, if that is more."""
    mean_logprob_difference: float | None = None
    """Largest allowed mean of this difference over the sampled tokens of an RLHF step, in nats. If it is exceeded, the
    stage fails. Null means 1e-4 in float32 and 0.1 in bfloat16, or three times what rounding alone does to this model,
    if that is more."""

    @property
    def optimizer_steps_per_rlhf_step(self) -> int:
        """Number of optimizer steps in each RLHF step."""
        return self.epochs * self.minibatches

    def check(self, config_path: str) -> None:
        """Raises ValueError for a setting that is out of range.

        `config_path` is the path of these settings in the stage's config. Error messages begin with it.
        """
        for name in ("max_logprob_difference", "mean_logprob_difference"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{config_path}.{name}: {value} must be above 0, or null")
        for name in ("lr", "critic_lr", "clip_norm", "clip_range", "value_clip_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{config_path}.{name}: {getattr(self, name)} must be above 0")
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{config_path}.{name}: {getattr(self, name)} must be at least 1")
        for name in ("kl_coefficient", "warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{config_path}.{name}: {getattr(self, name)} must not be negative")
        if self.kl_coefficient == 0 and self.kl_loss != "k2":
            raise ValueError(
                f"{config_path}.kl_loss: {self.kl_loss} would have no effect, because {config_path}.kl_coefficient is "
                "0; remove it"
            )
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{config_path}.{name}: {getattr(self, name)} must be between 0 and 1")
