"""The typed settings of an actor graph: how to sample, how to learn, and where the actors go."""

# No `from __future__ import annotations`: the config loader reads these types at run time.

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from cluster.placement import Execution, Placement
from model.advantages import ALGORITHMS
from model.precision import ComputePrecision, Precision, precision_field, resolved


@dataclass(frozen=True)
class Gap:
    """Distance of an engine's and our own logprobs over sampled tokens, in nats."""

    max: float
    mean: float


LOGPROB_BOUNDS: dict[ComputePrecision, Gap] = {"float32": Gap(max=1e-4, mean=1e-4), "bfloat16": Gap(max=2.0, mean=0.1)}
"""By the engine's precision. Measured (max, mean): 1e-5 in float32; in bfloat16 0.07 for 0.1 to 4 million parameters,
0.4 and 0.044 for 135 million, where an unlikely token's logprob is rounded in every layer. The mean tells more."""


def whole_prompts(max_length: int, max_sequences: int) -> int:
    """Tokens of one prefill by which an engine reads every prompt of up to `max_length` tokens whole, now or later.

    For engines without chunked prefill. After a part of a prompt, a seeded request would have to take back the draw
    that its generator has made, which no generator on a CPU can: it ends the engine.
    """
    return max(2048, max_length) + max_sequences


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How responses are sampled for learning."""

    prompts_per_step: int = 16
    group_size: int = 8
    """Responses to each prompt."""
    temperature: float = 1.0
    """Of sampling, and of the policy that is trained: its logits are divided by it everywhere."""
    top_p: float = 1.0
    """Must stay 1: the ratio of policies is wrong when the sampler cut the distribution."""
    top_k: int = 0
    """Must stay 0 (off), for the same reason."""
    max_new_tokens: int = 64
    """A response that has not ended by then is cut, marked as unfinished and counted."""
    lot_prompts: int = 16
    """Prompts that one engine answers at a time. A fixed size, so that results do not depend on how many engines
    there are; it must divide prompts_per_step."""

    @property
    def rollouts_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    def check(self, field: str) -> None:
        """Raises ValueError naming the field, the value, the rule and the remedy."""
        for name in ("prompts_per_step", "group_size", "max_new_tokens", "lot_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{field}.{name}: {getattr(self, name)} must be at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"{field}.temperature: {self.temperature} must be above 0; learning needs sampling")
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                f"{field}.top_p={self.top_p}, top_k={self.top_k}: must be 1 and 0; a sampler that cuts the "
                "distribution makes the ratio to the trained policy wrong. Lower the temperature instead"
            )
        if self.prompts_per_step % self.lot_prompts:
            raise ValueError(
                f"{field}.prompts_per_step: {self.prompts_per_step} must be a multiple of lot_prompts, which is "
                f"{self.lot_prompts}; set lot_prompts to {math.gcd(self.prompts_per_step, self.lot_prompts)}"
            )


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """How the policy learns from scored responses."""

    algorithm: Literal["grpo", "ppo", "rloo", "reinforce++"] = "grpo"
    """A row of `model.advantages.ALGORITHMS`."""
    lr: float = 1e-5
    critic_lr: float = 1e-4
    """Of the critic (ppo)."""
    warmup_steps: int = 0
    """Optimizer steps over which both learning rates rise."""
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Largest norm of a whole gradient."""
    kl_coefficient: float = 0.02
    """Weight of the distance to the starting policy: in each token's reward (ppo, rloo, reinforce++), or in the
    loss (grpo). 0 needs no reference."""
    clip_range: float = 0.2
    """How far a probability ratio counts (ppo, grpo, reinforce++)."""
    value_clip_range: float = 0.2
    """How far a value may usefully move in one update (ppo)."""
    epochs: int = 1
    """Passes over the rollouts of a step."""
    minibatches: int = 1
    """Optimizer steps in each pass."""
    gamma: float = 1.0
    """Discount by token (ppo)."""
    gae_lambda: float = 0.95
    """0 trusts the critic, 1 the sampled rewards (ppo)."""
    precision: Precision = precision_field("learners")
    """Of the engines' weights and of the learner's matrix products (`model.precision`)."""
    max_logprob_gap: float | None = None
    """Largest distance of engine and learner logprobs of a sampled token, in nats; beyond it learning stops. None
    takes what the precision allows: 1e-4 in float32, 2 in bfloat16."""
    mean_logprob_gap: float | None = None
    """The same of the mean over a step's sampled tokens. None: 1e-4 in float32, 0.1 in bfloat16."""

    @property
    def logprob_bound(self) -> Gap:
        """What is set of it, the rest as the precision allows."""
        allowed = LOGPROB_BOUNDS[resolved(self.precision)]
        return Gap(
            max=allowed.max if self.max_logprob_gap is None else self.max_logprob_gap,
            mean=allowed.mean if self.mean_logprob_gap is None else self.mean_logprob_gap,
        )

    def check(self, field: str) -> None:
        """Raises ValueError naming the field, the value, the rule and the remedy."""
        for name in ("max_logprob_gap", "mean_logprob_gap"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{field}.{name}: {value} must be above 0, or null")
        for name in ("lr", "critic_lr", "clip_norm", "clip_range", "value_clip_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{field}.{name}: {getattr(self, name)} must be above 0")
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{field}.{name}: {getattr(self, name)} must be at least 1")
        if self.kl_coefficient < 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(f"{field}: kl_coefficient, warmup_steps and weight_decay must not be negative")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{field}.{name}: {getattr(self, name)} must be between 0 and 1")
        self._check_ignored(field)

    def _check_ignored(self, field: str) -> None:
        algorithm = ALGORITHMS[self.algorithm]
        ignored = [] if algorithm.needs_critic else ["critic_lr", "value_clip_range", "gamma", "gae_lambda"]
        ignored += [] if algorithm.clips_ratio else ["clip_range"]
        for setting in dataclasses.fields(self):
            if setting.name in ignored and getattr(self, setting.name) != setting.default:
                raise ValueError(
                    f"{field}.{setting.name}: {getattr(self, setting.name)} would be ignored by {self.algorithm}; "
                    "remove it, or take an algorithm that reads it"
                )

    @property
    def optimizer_steps(self) -> int:
        """Of each step of the graph."""
        return self.epochs * self.minibatches


def _share(cpus: float) -> Placement:
    return Placement(cpus_per_worker=cpus)


@dataclass(frozen=True, kw_only=True)
class GraphExecution(Execution):
    """Where the actors go; nothing here changes what they compute, beyond rounding."""

    generators: Placement = field(default_factory=lambda: _share(0.25))
    """The engines; max_failures is how often dead ones are started again in all."""
    learners: Placement = field(default_factory=lambda: _share(0.5))
    """The ranks that train the policy; max_failures is how often they go back to a checkpoint."""
    critics: Placement = field(default_factory=lambda: _share(0.25))
    """The ranks that train the critic (ppo)."""
    scorer: Placement = field(default_factory=lambda: _share(0.1))
    reference: Placement = field(default_factory=lambda: _share(0.1))
    colocate: bool = True
    """One share of a node for the first worker of every group, another for the second, and so on; false gives each
    actor a share of its own, which may be on another node."""
    micro_batch_size: int = 16
    """Sequences of one forward pass."""
    kv_cache_gib: float = 0.5
    """Of each engine on CPU."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that an engine on it takes; lower it where the engine shares the GPU."""
    weight_transfer: Literal["object_store", "nccl", "ipc"] = "object_store"
    """nccl and ipc go from GPU to GPU; ipc needs learner and engine on one device. With these two a new engine cannot
    be given the weights alone, so one that dies ends the run: the same command goes on from the checkpoint."""
    checkpoint_interval: int = 20
    """Steps between two checkpoints."""
    heldout_interval: int = 0
    """Steps between two looks at the held-out prompts; 0 looks only before and after."""

    def check(self, field: str, rollouts: RolloutConfig, learning: LearningConfig) -> None:
        """Raises ValueError naming the field, the value, the rule and the remedy."""
        for name in ("generators", "learners", "critics", "scorer", "reference"):
            getattr(self, name).check(f"{field}.{name}", forms_group=name in ("learners", "critics"))
        for name in ("scorer", "reference"):
            if getattr(self, name).workers != 1:
                raise ValueError(f"{field}.{name}.workers: {getattr(self, name).workers} must be 1")
        if self.micro_batch_size < 1 or self.checkpoint_interval < 1 or self.heldout_interval < 0:
            raise ValueError(
                f"{field}: micro_batch_size and checkpoint_interval must be at least 1, heldout_interval not negative"
            )
        if self.kv_cache_gib <= 0:
            raise ValueError(f"{field}.kv_cache_gib: {self.kv_cache_gib} must be above 0")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"{field}.gpu_memory_utilization: {self.gpu_memory_utilization} must be above 0 and at most 1"
            )
        on_gpu = self.generators.gpus_per_worker > 0 and self.learners.gpus_per_worker > 0
        if self.weight_transfer != "object_store" and not on_gpu:
            raise ValueError(
                f"{field}.weight_transfer: {self.weight_transfer} needs all of them on GPUs; take object_store"
            )
        if self.weight_transfer == "nccl" and self.generators.workers > 1:
            raise ValueError(
                f"{field}.weight_transfer: nccl serves one engine, generators.workers is {self.generators.workers}; "
                "take object_store"
            )
        for name in ("learners", "critics") if ALGORITHMS[learning.algorithm].needs_critic else ("learners",):
            parts = learning.minibatches * getattr(self, name).workers
            if rollouts.rollouts_per_step % parts:
                raise ValueError(
                    f"prompts_per_step · group_size = {rollouts.rollouts_per_step} must be a multiple of "
                    f"minibatches · {field}.{name}.workers = {parts}: change one of them"
                )

    @property
    def engine_restarts(self) -> int:
        """How often dead engines are started again, in all."""
        return self.generators.max_failures if self.weight_transfer == "object_store" else 0

    def groups(self, learning: LearningConfig) -> dict[str, Placement]:
        """The placements that a graph with this algorithm takes, by role."""
        groups = {"generators": self.generators, "learners": self.learners, "scorer": self.scorer}
        if learning.kl_coefficient > 0:
            groups["reference"] = self.reference
        if ALGORITHMS[learning.algorithm].needs_critic:
            groups["critics"] = self.critics
        return groups
