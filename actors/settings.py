"""The settings of actors: how rollouts and completions are sampled, and where the actors of a graph run.

The settings of the training itself are in `model.learning`.
"""

# No `from __future__ import annotations`: the config loader reads these types at run time.

import math
from dataclasses import dataclass, field

from actors.engine import TransferBackend
from cluster.ignored_settings import reject_ignored
from cluster.placement import Execution, Placement
from model.algorithms import Algorithm
from model.learning import LearningConfig
from model.precision import Precision, precision_field

EVALUATION_BATCH_PROMPTS = 64
"""Number of prompts in a generation batch of the stage `evaluate`. It does not depend on the number of engines, because
the rounding of an engine's results depends on which prompts it processes together."""
MAX_PASS_TOKENS = 4096
"""Maximum number of positions in one forward pass of `evaluate` or `compress`, padding included. It limits the memory
for the float32 logits."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How completions are sampled for training."""

    prompts_per_step: int = 16
    """Number of prompts in an RLHF step. Each prompt gets group_size completions."""
    group_size: int = 8
    """Number of completions of each prompt."""
    temperature: float = 1.0
    """Sampling temperature. The policy's logits are divided by it in training too."""
    top_p: float = 1.0
    """Must be 1. With a truncated distribution, the engine's logprobs would not be those of the trained policy, so the
    probability ratio of the policy loss would be wrong."""
    top_k: int = 0
    """Must be 0 (off), for the same reason as top_p."""
    max_new_tokens: int = 64
    """Completions are truncated at this number of tokens. A truncated completion counts as unfinished."""
    generation_batch_prompts: int = 16
    """Number of prompts in a generation batch, the work that one engine does in one call. prompts_per_step must be a
    multiple of it. It changes the results, because the rounding of an engine's results depends on which prompts the
    engine processes together. The number of engines does not change them."""

    @property
    def rollouts_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    def check(self, field: str) -> None:
        """Raises ValueError for an invalid setting. `field` is the path of this object in the job's config."""
        for name in ("prompts_per_step", "group_size", "max_new_tokens", "generation_batch_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{field}.{name}: {getattr(self, name)} must be at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"{field}.temperature: {self.temperature} must be above 0, because training needs random completions"
            )
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                f"{field}.top_p={self.top_p}, top_k={self.top_k}: must be 1 and 0, because a truncated distribution "
                "makes the probability ratio of the policy loss wrong. Lower the temperature instead"
            )
        if self.prompts_per_step % self.generation_batch_prompts:
            raise ValueError(
                f"{field}.prompts_per_step: {self.prompts_per_step} must be a multiple of generation_batch_prompts, "
                f"which is {self.generation_batch_prompts}; set generation_batch_prompts to "
                f"{math.gcd(self.prompts_per_step, self.generation_batch_prompts)}"
            )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are sampled for an evaluation. A prompt has the same seed for every model."""

    temperature: float = 0.7
    """Sampling temperature. 0 is greedy decoding."""
    max_new_tokens: int = 64
    """Completions are truncated at this number of tokens."""
    seed: int = 0
    """The seed of each completion is derived from this seed."""
    precision: Precision = precision_field(placement="generators")
    """Precision in which the engines compute (`model.precision`)."""


def _one_worker(cpus: float) -> Placement:
    return Placement(cpus_per_worker=cpus)


@dataclass(frozen=True, kw_only=True)
class GraphExecution(Execution):
    """Where the actors run. These settings do not change the results, except for rounding."""

    generators: Placement = field(default_factory=lambda: _one_worker(0.25))
    """The generators, which run the vLLM engines. max_failures limits the restarts of all generators together."""
    learners: Placement = field(default_factory=lambda: _one_worker(0.5))
    """The ranks of the learner, which train the policy. max_failures limits how often all ranks of learner and critic
    restart from a checkpoint."""
    critics: Placement = field(default_factory=lambda: _one_worker(0.25))
    """The ranks of the critic. Only the algorithm ppo has a critic."""
    scorer: Placement = field(default_factory=lambda: _one_worker(0.1))
    """The actor that computes the rewards."""
    reference: Placement = field(default_factory=lambda: _one_worker(0.1))
    """The actor that computes the logprobs of the reference policy."""
    colocate: bool = True
    """Whether worker i of every group runs on the same node: all first workers on one node, all second workers on one
    node, and so on. If false, each actor may run on any node."""
    micro_batch_size: int = 16
    """Number of sequences in one forward pass."""
    kv_cache_gib: float = 0.5
    """Size of each engine's KV cache in GiB. Used on CPU only."""
    gpu_memory_utilization: float = 0.9
    """Fraction of a GPU's memory that an engine uses. Set a lower value when other actors share the GPU."""
    weight_transfer: TransferBackend = "object_store"
    """How the learner's weights reach the engines. nccl and ipc send them from GPU to GPU; ipc needs learner and engine
    on the same GPU. With nccl and ipc, a generator that dies ends the run, because a new generator could not load the
    weights by itself. The same command then resumes from the last checkpoint. nccl has been implemented for one
    generator only."""
    checkpoint_interval: int = 20
    """Number of RLHF steps between two checkpoints."""
    held_out_interval: int = 0
    """Number of RLHF steps between two measurements on the held-out prompts. 0 measures only before and after
    training."""

    def check(self, field: str, rollouts: RolloutConfig, learning: LearningConfig, algorithm: Algorithm) -> None:
        """Raises ValueError for an invalid setting. `field` is the path of this object in the job's config."""
        for name in ("generators", "learners", "critics", "scorer", "reference"):
            getattr(self, name).check(f"{field}.{name}", forms_process_group=name in ("learners", "critics"))
        for name in ("scorer", "reference"):
            if getattr(self, name).workers != 1:
                raise ValueError(f"{field}.{name}.workers: {getattr(self, name).workers} must be 1")
        if self.micro_batch_size < 1 or self.checkpoint_interval < 1 or self.held_out_interval < 0:
            raise ValueError(
                f"{field}: micro_batch_size and checkpoint_interval must be at least 1, "
                "and held_out_interval must not be negative"
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
                f"{field}.weight_transfer: {self.weight_transfer} needs generators and learners on GPUs; "
                "set weight_transfer to object_store"
            )
        if self.weight_transfer == "nccl" and self.generators.workers > 1:
            raise ValueError(
                f"{field}.weight_transfer: with nccl there can be only one generator, but generators.workers is "
                f"{self.generators.workers}; set weight_transfer to object_store"
            )
        self._reject_ignored(field, rollouts, learning, algorithm)
        for name in ("learners", "critics") if algorithm.needs_critic else ("learners",):
            num_parts = learning.minibatches * getattr(self, name).workers
            if rollouts.rollouts_per_step % num_parts:
                raise ValueError(
                    f"prompts_per_step · group_size = {rollouts.rollouts_per_step} must be a multiple of "
                    f"minibatches · {field}.{name}.workers = {num_parts}; change one of these fields"
                )

    def _reject_ignored(
        self, field: str, rollouts: RolloutConfig, learning: LearningConfig, algorithm: Algorithm
    ) -> None:
        """Raises ValueError for a setting that would have no effect, and for engines that would never have work."""
        num_batches = rollouts.prompts_per_step // rollouts.generation_batch_prompts
        if self.generators.workers > num_batches:
            raise ValueError(
                f"{field}.generators.workers: {self.generators.workers} engines, but a step has only {num_batches} "
                f"generation batches (prompts_per_step / generation_batch_prompts), so {self.generators.workers} - "
                f"{num_batches} engines would be idle; lower the workers or generation_batch_prompts"
            )
        on_gpu = self.generators.gpus_per_worker > 0
        name, reason = ("kv_cache_gib", "on GPUs") if on_gpu else ("gpu_memory_utilization", "on CPUs")
        reject_ignored(self, name, path=field, reason=f"the engines run {reason}")
        if not algorithm.needs_critic:
            reject_ignored(self, "critics", path=field, reason=f"{learning.algorithm} has no critic")
        else:
            reason = "learners.max_failures limits the restarts of learner and critic together"
            reject_ignored(self.critics, "max_failures", path=f"{field}.critics", reason=reason)
        if not algorithm.needs_reference(learning):
            reject_ignored(self, "reference", path=field, reason="there is no reference without a KL penalty")
        if self.weight_transfer != "object_store" and self.generators.max_failures > 0:
            reason = f"with weight_transfer={self.weight_transfer} generators are not restarted"
            reject_ignored(self.generators, "max_failures", path=f"{field}.generators", reason=reason)

    @property
    def max_generator_restarts(self) -> int:
        """Maximum number of restarts of all generators together. With nccl and ipc it is 0 (see `weight_transfer`)."""
        return self.generators.max_failures if self.weight_transfer == "object_store" else 0

    def placements(self, learning: LearningConfig, algorithm: Algorithm) -> dict[str, Placement]:
        """Return the placements of the groups of actors that this algorithm needs, by the name of the group."""
        groups = {"generators": self.generators, "learners": self.learners, "scorer": self.scorer}
        if algorithm.needs_reference(learning):
            groups["reference"] = self.reference
        if algorithm.needs_critic:
            groups["critics"] = self.critics
        return groups
