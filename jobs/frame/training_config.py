"""The settings that all training stages have in common, the checks of these settings, and the workload of training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.ignored_settings import reject_ignored
from cluster.placement import Execution, Placement
from jobs.frame.sizes import activation_gib, checkpoint_gib, model_config_of, parameters_mib, training_state_mib
from jobs.frame.stage import PlannedInputs
from jobs.frame.workload import Processes, Workload
from model.precision import Precision, require_resolved
from model.transformer_config import TransformerConfig, flop_per_token

_LOGIT_POSITIONS = 1024
"""`model.cross_entropy.CHUNK_POSITIONS`, which is not imported here, because that module imports PyTorch."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay of the learning rate."""

    lr: float = 3e-4
    """Peak learning rate."""
    warmup_steps: int = 10
    """Number of steps over which the learning rate rises linearly to its peak."""
    final_lr_ratio: float = 0.1
    """Learning rate of the last step, as a fraction of the peak."""
    beta1: float = 0.9
    """AdamW's decay rate of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay rate of the mean squared gradient."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    clip_norm: float = 1.0
    """Gradient clipping: the gradient of all parameters together is scaled down to this L2 norm if it is larger."""

    def check(self, steps: int) -> None:
        """Raises ValueError if a setting is out of range. `steps` is the number of optimizer steps of the run."""
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}: {getattr(self, name)} must be at least 0 and below 1")
        for name in ("final_lr_ratio", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name}: {getattr(self, name)} must not be negative")
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr: {self.lr} is not above 0; set a positive learning rate such as 0.0003")
        if not 0 <= self.warmup_steps <= steps:
            raise ValueError(
                f"optimizer.warmup_steps: {self.warmup_steps} must be between 0 and the number of steps ({steps})"
            )
        if self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm: {self.clip_norm} is not above 0; set a positive norm such as 1.0")


@dataclass(frozen=True, kw_only=True)
class TrainingExecution(Execution):
    """How a training stage runs. These settings do not change the result, except for rounding."""

    placement: Placement = field(default_factory=Placement)
    micro_batch_size: int = 8
    """Number of samples per forward and backward pass of a worker. The gradients of a worker's micro-batches are
    accumulated until its share of the global batch is complete."""
    log_interval: int = 10
    """Number of steps between two lines of the metrics log."""
    validation_interval: int = 100
    """Number of steps between two validations. The last step always has a validation."""
    checkpoint_interval: int = 100
    """Number of steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Number of checkpoints that are kept. When there are more, the oldest one is deleted. If the newest one is
    damaged, the run resumes from the one before, so with 1 there is none to resume from."""
    activation_checkpointing: bool = False
    """Whether the backward pass computes the activations again instead of keeping them. This saves memory and takes
    time."""
    compile: bool = False
    """Whether torch.compile compiles the layers. The first step is then slow, and later steps are faster."""
    peak_tflops: float = 0.0
    """Peak of one worker in TFLOP/s, from which the model FLOP utilization is computed. 0 means that the peak is
    measured with the largest matmul of a layer."""

    def check(self, global_batch_size: int) -> None:
        """Raises ValueError if the workers cannot divide the global batch equally, or if a setting is out of range."""
        self.placement.check("execution.placement")
        if self.peak_tflops < 0:
            raise ValueError(f"execution.peak_tflops: {self.peak_tflops} must not be negative; with 0 it is measured")
        if global_batch_size % self.placement.workers:
            raise ValueError(
                f"global_batch_size: {global_batch_size} samples cannot be divided equally among "
                f"{self.placement.workers} workers (execution.placement.workers); make it a multiple of this number"
            )
        for name in (
            "micro_batch_size",
            "log_interval",
            "validation_interval",
            "checkpoint_interval",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"execution.{name}: {getattr(self, name)} must be at least 1")


class TrainingConfig(Protocol):
    """The settings that the configs of all training stages have in common."""

    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def execution(self) -> TrainingExecution: ...
    @property
    def steps(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def global_batch_size(self) -> int: ...
    @property
    def precision(self) -> Precision: ...


def check_training(config: TrainingConfig) -> None:
    """Raises ValueError if a setting that all training stages have is out of range or would have no effect. Only the
    config is checked; the inputs are not read."""
    if config.steps < 1:
        raise ValueError(f"steps: {config.steps} must be at least 1")
    if config.sequence_length < 2:
        raise ValueError(f"sequence_length: {config.sequence_length} must be at least 2")
    if config.global_batch_size < 1:
        raise ValueError(f"global_batch_size: {config.global_batch_size} must be at least 1")
    config.optimizer.check(config.steps)
    config.execution.check(config.global_batch_size)
    if config.optimizer.warmup_steps == config.steps:
        reason = f"all {config.steps} steps belong to the warm-up"
        reject_ignored(config.optimizer, "final_lr_ratio", path="optimizer", reason=reason)
    if config.execution.checkpoint_interval >= config.steps:
        reason = "checkpoint_interval is not below steps, so that there is only the last checkpoint"
        reject_ignored(config.execution, "keep_checkpoints", path="execution", reason=reason)


def training_placements(config: TrainingConfig) -> Sequence[Mapping[str, Placement]]:
    """Return the placements of a training stage (`Stage.placements`): one group of workers."""
    return ({"placement": config.execution.placement},)


def check_length(config: TrainingConfig, planned: PlannedInputs) -> None:
    """Raises ValueError if sequence_length is larger than the max_length of the model in the input `init`."""
    max_length = model_config_of(planned["init"]).max_length
    if config.sequence_length > max_length:
        raise ValueError(
            f"sequence_length: {config.sequence_length} is more than the {max_length} tokens that the model of `init` "
            "supports (its max_length); shorten sequence_length"
        )


def estimate_training(
    config: TrainingConfig, model_config: TransformerConfig, *, rows_per_sample: int = 1
) -> dict[str, float]:
    """Return what `raymill plan` prints for a training stage (`Stage.estimate`).

    The keys are `tokens`, the number of tokens of the run; `flop`, the floating-point operations of the run; and
    `state_mib_per_worker`, the memory in MiB of each worker's weights, gradients and optimizer state. `tokens` and
    `flop` are upper bounds, because every sample is counted with sequence_length tokens. `rows_per_sample` is 1, or 2
    if a sample is a preference pair.
    """
    tokens = config.steps * config.global_batch_size * config.sequence_length * rows_per_sample
    return {
        "tokens": tokens,
        "flop": tokens * flop_per_token(model_config, config.sequence_length),
        "state_mib_per_worker": training_state_mib(model_config, workers=config.execution.placement.workers),
    }


def training_workload(
    config: TrainingConfig, model_config: TransformerConfig, *, rows_per_sample: int = 1, fill_fraction: float = 1.0
) -> Workload:
    """Return the workload of a training stage (`Stage.workload`).

    `rows_per_sample` is 1, or 2 if a sample is a preference pair. `fill_fraction` is the assumed number of
    tokens in a row, as a fraction of sequence_length.
    """
    execution, length = config.execution, max(2, round(config.sequence_length * fill_fraction))
    placement = execution.placement
    tokens = config.steps * config.global_batch_size * length * rows_per_sample
    rows_at_once = min(execution.micro_batch_size, config.global_batch_size // placement.workers) * rows_per_sample
    pass_tokens = rows_at_once * length
    state_gib = training_state_mib(model_config, workers=placement.workers) / 1024
    activations_gib = activation_gib(
        model_config, tokens=pass_tokens, length=length, logit_positions=min(pass_tokens, _LOGIT_POSITIONS)
    )
    num_checkpoints = min(execution.keep_checkpoints, math.ceil(config.steps / execution.checkpoint_interval))
    return Workload(
        processes=[
            Processes(
                kind="trainer",
                number=placement.workers,
                memory_gib=state_gib + activations_gib,
            )
        ],
        flop=tokens * flop_per_token(model_config, length),
        width=model_config.width,
        precision=require_resolved(config.precision),
        threads=placement.workers * placement.threads_per_worker,
        steps=config.steps,
        disk_gib=num_checkpoints * checkpoint_gib(model_config) + parameters_mib(model_config, 4) / 1024,
        on_gpu=placement.gpus_per_worker > 0,
    )
