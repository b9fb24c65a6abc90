"""The settings that every training stage has, their checks, and what they amount to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.placement import Execution, Placement
from jobs.frame.sizes import activation_gib, checkpoint_gib, model_config_of, parameters_mib, training_state_mib
from jobs.frame.stage import PlannedInputs
from jobs.frame.workload import Processes, Workload
from model.precision import Precision, resolved_precision
from model.transformer_config import TransformerConfig, flop_per_token


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a half-cosine decay."""

    lr: float = 3e-4
    """Peak learning rate."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises to its peak."""
    final_lr_ratio: float = 0.1
    """Learning rate of the last step over the peak."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    clip_norm: float = 1.0
    """The whole gradient is scaled down to this norm."""

    def check(self, steps: int) -> None:
        """Raises ValueError naming the field, the value and the rule."""
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr: {self.lr} must be above 0")
        if not 0 <= self.warmup_steps <= steps:
            raise ValueError(f"optimizer.warmup_steps: {self.warmup_steps} must be between 0 and steps ({steps})")
        if self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm: {self.clip_norm} must be above 0")


@dataclass(frozen=True, kw_only=True)
class TrainingExecution(Execution):
    """How a training stage runs. Nothing here changes its result, beyond rounding."""

    placement: Placement = field(default_factory=Placement)
    micro_batch_size: int = 8
    """Samples of one forward and backward on a worker; gradients of its share of the batch are accumulated."""
    log_interval: int = 10
    """Steps between lines of the metrics log."""
    validation_interval: int = 100
    """Steps between validations; the last step always has one."""
    checkpoint_interval: int = 100
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """How many checkpoints stay, the newest ones."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, which saves memory and takes time."""
    compile: bool = False
    """Whether layers are compiled by torch.compile: the first step is slow, the others are faster."""
    peak_tflops: float = 0.0
    """Peak of one worker in TFLOP/s, for MFU; 0 measures it with the largest matrix product of a layer."""

    def check(self, global_batch_size: int) -> None:
        """Raises ValueError when the batch does not divide among the workers, or a setting is out of range."""
        self.placement.check("execution.placement")
        if global_batch_size % self.placement.workers:
            raise ValueError(
                f"global_batch_size: {global_batch_size} does not divide among execution.placement.workers="
                f"{self.placement.workers}; make it a multiple"
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
    """What the configs of all training stages have in common."""

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
    """Raises ValueError for every mistake in the common settings that shows without the inputs."""
    if config.steps < 1:
        raise ValueError(f"steps: {config.steps} must be at least 1")
    if config.sequence_length < 2:
        raise ValueError(f"sequence_length: {config.sequence_length} must be at least 2")
    config.optimizer.check(config.steps)
    config.execution.check(config.global_batch_size)


def training_placements(config: TrainingConfig) -> Sequence[Mapping[str, Placement]]:
    """The workers that must fit the cluster."""
    return ({"placement": config.execution.placement},)


def check_length(config: TrainingConfig, planned: PlannedInputs) -> None:
    """Raises ValueError for a sequence length beyond the max_length of the model that training starts from."""
    longest = model_config_of(planned["init"]).max_length
    if config.sequence_length > longest:
        raise ValueError(
            f"sequence_length: {config.sequence_length} is more than the model's max_length {longest}; shorten it"
        )


def estimate_training(
    config: TrainingConfig, sizes: TransformerConfig, *, rows_per_sample: int = 1
) -> dict[str, float]:
    """What `plan` prints of a training stage: at most so many tokens and FLOP, and each worker's state in MiB."""
    tokens = config.steps * config.global_batch_size * config.sequence_length * rows_per_sample
    return {
        "tokens": tokens,
        "flop": tokens * flop_per_token(sizes, config.sequence_length),
        "state_mib_per_worker": training_state_mib(sizes, workers=config.execution.placement.workers),
    }


def training_workload(
    config: TrainingConfig, sizes: TransformerConfig, *, rows_per_sample: int = 1, fill_fraction: float = 1.0
) -> Workload:
    """The workload of a training stage, in which rows are filled to `fill_fraction` of the sequence length.

    The rest of a row is not computed.
    """
    execution, length = config.execution, max(2, round(config.sequence_length * fill_fraction))
    placement = execution.placement
    tokens = config.steps * config.global_batch_size * length * rows_per_sample
    micro_batch = min(execution.micro_batch_size, config.global_batch_size // placement.workers) * rows_per_sample
    state_gib = training_state_mib(sizes, workers=placement.workers) / 1024
    saves = min(execution.keep_checkpoints, 1 + config.steps // execution.checkpoint_interval)
    return Workload(
        processes=[
            Processes(
                kind="trainer",
                number=placement.workers,
                memory_gib=state_gib + activation_gib(sizes, tokens=micro_batch * length, length=length),
            )
        ],
        flop=tokens * flop_per_token(sizes, length),
        width=sizes.width,
        precision=resolved_precision(config.precision),
        threads=placement.workers * placement.threads_per_worker,
        steps=config.steps,
        disk_gib=saves * checkpoint_gib(sizes) + parameters_mib(sizes, 4) / 1024,
        on_gpu=placement.gpus_per_worker > 0,
    )
