"""The settings of reinforcement learning: plain data that estimators, losses, learner and critic read alike."""

# No `from __future__ import annotations`: the config loader reads these types at run time.

from dataclasses import dataclass, field

from model.precision import Precision, precision_field


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """How the policy learns from scored completions."""

    algorithm: str = field(default="grpo", metadata={"user_code": True})
    """grpo, ppo, rloo or reinforce++, or your own: `path/to/file.py:NAME` of a `model.algorithms.Algorithm`. Modules in
    the file's folder that it imports are shipped with it, as for a verifier."""
    lr: float = 1e-5
    """Learning rate of the policy."""
    critic_lr: float = 1e-4
    """Learning rate of the critic (ppo)."""
    warmup_steps: int = 0
    """Optimizer steps over which both learning rates rise from 0; constant afterwards."""
    weight_decay: float = 0.0
    """AdamW's weight decay, of policy and critic."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""
    kl_coefficient: float = 0.02
    """Weight of the KL to the reference policy: in each token's reward (ppo, rloo, reinforce++), or in the loss
    (grpo). 0 needs no reference."""
    clip_range: float = 0.2
    """The probability ratio counts only within 1 - clip_range and 1 + clip_range (ppo, grpo, reinforce++)."""
    value_clip_range: float = 0.2
    """A value gains nothing by moving further than this in one update (ppo)."""
    epochs: int = 1
    """Passes over the rollouts of a step."""
    minibatches: int = 1
    """Optimizer steps in each pass."""
    gamma: float = 1.0
    """Discount by token (ppo)."""
    gae_lambda: float = 0.95
    """Mix of one-step (0) and Monte Carlo (1) advantages (ppo)."""
    precision: Precision = precision_field("learners")
    """Precision of the engines' weights and of the learner's matrix products (`model.precision`)."""
    max_logprob_difference: float | None = None
    """Largest difference of engine and learner logprobs of a sampled token, in nats; beyond it learning stops. Null
    takes what the precision allows: 1e-4 in float32, 2 in bfloat16."""
    mean_logprob_difference: float | None = None
    """Largest mean of the same difference over a step's sampled tokens. Null: 1e-4 in float32, 0.1 in bfloat16."""

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps in each step of the graph."""
        return self.epochs * self.minibatches

    def check(self, where: str) -> None:
        """Raises ValueError naming the field, the value, the rule and the remedy."""
        for name in ("max_logprob_difference", "mean_logprob_difference"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{where}.{name}: {value} must be above 0, or null")
        for name in ("lr", "critic_lr", "clip_norm", "clip_range", "value_clip_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{where}.{name}: {getattr(self, name)} must be above 0")
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name}: {getattr(self, name)} must be at least 1")
        if self.kl_coefficient < 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(f"{where}: kl_coefficient, warmup_steps and weight_decay must not be negative")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{where}.{name}: {getattr(self, name)} must be between 0 and 1")
