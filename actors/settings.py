"""The settings of an actor graph: how to sample, and where the actors run. How to learn is `model.learning`."""

# No `from __future__ import annotations`: the config loader reads these types at run time.

import math
from dataclasses import dataclass, field

from actors.engine import TransferBackend
from cluster.placement import Execution, Placement
from model.algorithms import Algorithm
from model.learning import LearningConfig


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How completions are sampled for learning."""

    prompts_per_step: int = 16
    """Prompts of a step, each with group_size completions."""
    group_size: int = 8
    """Completions of each prompt."""
    temperature: float = 1.0
    """Sampling temperature. The trained policy's logits are divided by it too."""
    top_p: float = 1.0
    """Must be 1: a sampler that cuts the distribution makes the probability ratio wrong."""
    top_k: int = 0
    """Must be 0 (off), for the same reason."""
    max_new_tokens: int = 64
    """A longer completion is cut and counted as unfinished."""
    generation_batch_prompts: int = 16
    """Prompts of a generation batch, which one engine completes at a time. Fixed, so that results do not depend on the
    number of engines; it must divide prompts_per_step."""

    @property
    def rollouts_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    def check(self, field: str) -> None:
        """Raises ValueError naming the field, the value, the rule and the remedy."""
        for name in ("prompts_per_step", "group_size", "max_new_tokens", "generation_batch_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{field}.{name}: {getattr(self, name)} must be at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"{field}.temperature: {self.temperature} must be above 0; learning needs sampling")
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                f"{field}.top_p={self.top_p}, top_k={self.top_k}: must be 1 and 0; a sampler that cuts the "
                "distribution makes the ratio to the trained policy wrong. Lower the temperature instead"
            )
        if self.prompts_per_step % self.generation_batch_prompts:
            raise ValueError(
                f"{field}.prompts_per_step: {self.prompts_per_step} must be a multiple of generation_batch_prompts, "
                f"which is {self.generation_batch_prompts}; set generation_batch_prompts to "
                f"{math.gcd(self.prompts_per_step, self.generation_batch_prompts)}"
            )


def _share(cpus: float) -> Placement:
    return Placement(cpus_per_worker=cpus)


@dataclass(frozen=True, kw_only=True)
class GraphExecution(Execution):
    """Where the actors run; nothing here changes what they compute, beyond rounding."""

    generators: Placement = field(default_factory=lambda: _share(0.25))
    """The engines; max_failures bounds the restarts of all engines together."""
    learners: Placement = field(default_factory=lambda: _share(0.5))
    """The ranks that train the policy; max_failures bounds how often they restart from a checkpoint."""
    critics: Placement = field(default_factory=lambda: _share(0.25))
    """The ranks that train the critic (ppo)."""
    scorer: Placement = field(default_factory=lambda: _share(0.1))
    reference: Placement = field(default_factory=lambda: _share(0.1))
    colocate: bool = True
    """Whether the first workers of all groups share one node, the second workers one node, and so on; false lets each
    actor be on any node."""
    micro_batch_size: int = 16
    """Sequences of one forward pass."""
    kv_cache_gib: float = 0.5
    """Memory for keys and values of each engine, on CPU."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that an engine on it takes; lower it where the engine shares the GPU."""
    weight_transfer: TransferBackend = "object_store"
    """nccl and ipc send from GPU to GPU; ipc needs learner and engine on one device. With these two an engine that dies
    ends the run, because a new one could not load the weights alone; the same command resumes from the checkpoint."""
    checkpoint_interval: int = 20
    """Steps between two checkpoints."""
    held_out_interval: int = 0
    """Steps between two measurements on the held-out prompts; 0 measures only before and after learning."""

    def check(self, field: str, rollouts: RolloutConfig, learning: LearningConfig, algorithm: Algorithm) -> None:
        """Raises ValueError naming the field, the value, the rule and the remedy."""
        for name in ("generators", "learners", "critics", "scorer", "reference"):
            getattr(self, name).check(f"{field}.{name}", forms_process_group=name in ("learners", "critics"))
        for name in ("scorer", "reference"):
            if getattr(self, name).workers != 1:
                raise ValueError(f"{field}.{name}.workers: {getattr(self, name).workers} must be 1")
        if self.micro_batch_size < 1 or self.checkpoint_interval < 1 or self.held_out_interval < 0:
            raise ValueError(
                f"{field}: micro_batch_size and checkpoint_interval must be at least 1, held_out_interval not negative"
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
        for name in ("learners", "critics") if algorithm.needs_critic else ("learners",):
            num_parts = learning.minibatches * getattr(self, name).workers
            if rollouts.rollouts_per_step % num_parts:
                raise ValueError(
                    f"prompts_per_step · group_size = {rollouts.rollouts_per_step} must be a multiple of "
                    f"minibatches · {field}.{name}.workers = {num_parts}: change one of them"
                )

    @property
    def max_generator_restarts(self) -> int:
        """How many dead engines are replaced, in all."""
        return self.generators.max_failures if self.weight_transfer == "object_store" else 0

    def placements(self, learning: LearningConfig, algorithm: Algorithm) -> dict[str, Placement]:
        """The placements of the groups that a graph with this algorithm has, by role."""
        groups = {"generators": self.generators, "learners": self.learners, "scorer": self.scorer}
        if learning.kl_coefficient > 0:
            groups["reference"] = self.reference
        if algorithm.needs_critic:
            groups["critics"] = self.critics
        return groups
