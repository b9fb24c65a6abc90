"""pretrain: trains a decoder on next-token prediction over shards, with FSDP2 on Ray Train workers.

    raymill run pretrain configs/tiny/pretrain.yaml

For continued pretraining on a domain, set `init` to a model and `shards` to the shards of the domain's corpus. In this
file, a training or validation sample is a row of the shards: `sequence_length` targets and their inputs.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.ignored_settings import reject_ignored
from cluster.process_group import RankContext
from cluster.storage import Storage
from data.tokens.mixture import check_weights
from data.tokens.shard_reader import ShardReader
from data.tokens.tokenizer import fingerprint, load_encoder, read_base_special_tokens
from jobs.frame.artifact import Artifact
from jobs.frame.fields import PREVIOUS_STAGE, input_artifact
from jobs.frame.sizes import forward_flop_per_token, model_config_of, shards_sizes
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.training_config import (
    OptimizerConfig,
    TrainingExecution,
    check_length,
    check_training,
    estimate_training,
    training_placements,
    training_workload,
)
from jobs.frame.training_run import TrainingPayload, TrainingSummary, run_training, summarize
from jobs.frame.workload import Workload
from jobs.report.training import report_pretraining
from model.precision import Precision, precision_field
from model.transformer_config import TransformerConfig, num_parameters

if TYPE_CHECKING:
    from jobs.frame.training_rank import StageTraining
    from model.batch import Batch
    from model.train import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NewModelConfig:
    """Sizes of a new model. The vocabulary size is that of the shards."""

    width: int = 256
    """Hidden size: channels of the residual stream."""
    num_layers: int = 6
    """Number of transformer layers."""
    num_heads: int = 4
    """Number of query heads."""
    num_kv_heads: int = 2
    """Number of key-value heads. Each is shared by num_heads / num_kv_heads query heads."""
    ffn_width: int = 704
    """Intermediate size of the SwiGLU feed-forward layer."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies."""
    tie_embeddings: bool = True
    """Whether lm_head shares the embedding's weights."""

    def transformer_config(self, vocab_size: int, max_length: int) -> TransformerConfig:
        """Return the config of the network. Raises ValueError for incompatible sizes (num_heads must divide width)."""
        model_config = TransformerConfig(vocab_size=vocab_size, max_length=max_length, **dataclasses.asdict(self))
        try:
            model_config.check()
        except ValueError as error:
            raise ValueError(f"model.{error}") from error
        return model_config


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """`pretrain.yaml`."""

    shards: str = input_artifact("shards", default=PREVIOUS_STAGE)
    """Shards with the training and validation tokens."""
    mixture: dict[str, float] | None = None
    """Weight of each source. Training tokens are taken from the sources in proportion to the weights, and a weight of 0
    leaves a source out. A source is repeated only after all of it was used. By default, the weight of a source is its
    number of tokens."""
    init: str | None = input_artifact("model", default=None)
    """Model to continue training. If unset, a new model is initialized with the sizes in `model`."""
    model: NewModelConfig = field(default_factory=NewModelConfig)
    """Sizes of a new model. They must not be set together with `init`."""
    max_length: int = 1024
    """Longest sequence that a new model supports, in tokens. It must be at least sequence_length, and must not be set
    together with `init`."""
    sequence_length: int = 256
    """Length of a training sample, in tokens."""
    global_batch_size: int = 32
    """Samples in one optimizer step, over all workers."""
    steps: int = 1000
    """Total number of optimizer steps."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Precision = precision_field(placement="placement")
    """Precision of matmuls. `auto` is bfloat16 if the hardware supports it natively, else float32."""
    seed: int = 0
    """Seed of the parameter initialization and of the sample order."""
    validation_samples: int = 64
    """Number of samples from which each validation loss is computed."""
    sample_prompts: list[str] = field(default_factory=lambda: ["The", "In the year", "She said"])
    """Prompts that the finished model completes. The report shows them."""
    execution: TrainingExecution = field(default_factory=TrainingExecution)


def check(config: PretrainConfig) -> None:
    """Raises ValueError for the first error that can be detected in the config alone."""
    # Raises ValueError for incompatible sizes. The vocabulary size is not known here, and does not matter for this.
    config.model.transformer_config(vocab_size=2, max_length=config.max_length)
    check_training(config)
    if config.mixture is not None:
        check_weights(config.mixture)
    if config.init is None and config.sequence_length > config.max_length:
        raise ValueError(f"sequence_length: {config.sequence_length} must be at most max_length ({config.max_length})")
    if config.init is not None and config.model != NewModelConfig():
        raise ValueError(
            "model: `init` is set, so the sizes come from that model and the ones in `model` would be ignored; remove "
            "one of the two"
        )
    if config.init is not None:
        reject_ignored(config, "max_length", path="", reason="`init` is set, and the max_length is that of its model")


def check_planned_inputs(config: PretrainConfig, planned: PlannedInputs) -> None:
    """Raises ValueError if sequence_length exceeds the max_length of the model `init`.

    `check` does the same for a new model.
    """
    if config.init is not None:
        check_length(config, planned)


def check_inputs(config: PretrainConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError if the shards do not fit the config.

    Their training split must have at least one batch of samples, and their validation split at least one sample. They
    must have the sources of the mixture, and the tokenizer of `init`.
    """
    shards = inputs["shards"].storage
    tokenizer_fingerprint = None if config.init is None else fingerprint(inputs["init"].model.local())
    reader = ShardReader(
        shards / "train",
        sequence_length=config.sequence_length,
        mixture=config.mixture,
        tokenizer_fingerprint=tokenizer_fingerprint,
    )
    if reader.num_rows < config.global_batch_size:
        raise ValueError(
            f"global_batch_size: {config.global_batch_size} must be at most {reader.num_rows}, the number of "
            f"samples of sequence_length={config.sequence_length} in the shards; lower one of the two or add text"
        )
    if ShardReader(shards / "validation", sequence_length=config.sequence_length).num_rows == 0:
        raise ValueError(
            "shards: they contain no validation sample; raise validation_fraction in the config of the shards"
        )


def output_sizes(config: PretrainConfig, planned: PlannedInputs) -> TransformerConfig:
    """Return the sizes of the trained model: its model config.

    It is that of `init`, or is made from `model` and the vocabulary size of the shards.
    """
    if "init" in planned:
        return model_config_of(planned["init"])
    return config.model.transformer_config(shards_sizes(planned["shards"]).vocab_size, config.max_length)


def estimate(config: PretrainConfig, planned: PlannedInputs) -> dict[str, float]:
    """Return what `raymill plan` prints: the number of `parameters`, and the values of `estimate_training`."""
    model_config = output_sizes(config, planned)
    return {"parameters": num_parameters(model_config)} | estimate_training(config, model_config)


def workload(config: PretrainConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from: training, and the forward passes of validation."""
    model_config = output_sizes(config, planned)
    training = training_workload(config, model_config)
    # At every validation_interval, and at the last step.
    num_validations = math.ceil(config.steps / config.execution.validation_interval)
    validation_tokens = num_validations * config.validation_samples * config.sequence_length
    validation_flop = validation_tokens * forward_flop_per_token(model_config, config.sequence_length)
    return dataclasses.replace(training, flop=training.flop + validation_flop)


def run(config: PretrainConfig, context: Context) -> TrainingSummary:
    """Train the model and write `model/`, `checkpoints/`, `metrics.jsonl` and the completions in `samples.jsonl`.

    Returns the summary of the training.
    """
    payload = PretrainPayload(
        training=TrainingPayload(config=config, output=context.output, tracker=context.tracker, metrics_prefix="train"),
        config=config,
        shards=context.inputs["shards"].storage,
        init=context.inputs["init"].model if config.init is not None else None,
    )
    run_training(pretrain, payload, config, context, name="pretrain")
    return summarize(context.output, metrics_prefix="train")


@dataclass(frozen=True, kw_only=True)
class PretrainPayload:
    """What the driver sends to every rank."""

    training: TrainingPayload
    config: PretrainConfig
    shards: Storage
    init: Storage | None
    """Folder of the model to continue training. None for a new model."""


def pretrain(rank_context: RankContext, payload: PretrainPayload) -> None:
    """Train the model on one rank, and complete the sample prompts on rank 0."""
    # Imported here, so that loading a config does not import torch.
    from jobs.frame.training_rank import StageTraining, continue_prompts
    from model.huggingface import load_hf_model
    from model.objectives import causal_lm
    from model.train import fit
    from model.transformer import Transformer, initialize

    config = payload.config
    training = StageTraining(rank_context, payload.training)
    tokenizer_folder = (payload.shards / "tokenizer").local()
    reader = ShardReader(
        payload.shards / "train", sequence_length=config.sequence_length, seed=config.seed, mixture=config.mixture
    )
    if payload.init is None:
        model = Transformer(config.model.transformer_config(reader.manifest.vocab_size, config.max_length))
        initialize(model, config.seed)
    else:
        model = load_hf_model(payload.init.local())
    state = training.start(model)
    for report in fit(state, step_batches(training, reader, state), causal_lm):
        training.log(report)
        if training.is_validation_step(report.step):
            batches = validation_batches(training, payload.shards, config)
            loss = training.mean_metrics(state, batches, causal_lm)["loss"]
            training.log_validation(report.step, {"validation/loss": loss})
        training.save_checkpoint_if_due(state)
    training.finish(state, read_base_special_tokens, tokenizer_folder)
    if rank_context.rank == 0 and config.sample_prompts:
        tokenizer, manifest = load_encoder(tokenizer_folder), reader.manifest
        prompts = [(text, [manifest.begin, *tokenizer.encode(text).ids]) for text in config.sample_prompts]
        stop_id = manifest.separator
        continue_prompts(payload.training.output, prompts, tokenizer.decode, stop_id=stop_id, seed=config.seed)


def step_batches(training: "StageTraining", reader: ShardReader, state: "TrainState") -> "Iterator[Sequence[Batch]]":
    """Yield, for each remaining step, the list of this rank's micro-batches.

    `state.step` is the first remaining step. The micro-batches of a step do not depend on the steps before it, so a
    resumed run trains on the same batches.
    """
    steps = range(state.step, training.config.steps)
    for step, rows in zip(steps, reader.read_ahead(map(training.rank_sample_indices, steps)), strict=True):
        training.add_to_data_hash(rows.input_ids, step)
        yield training.micro_batches(training.to_batch(rows))


def validation_batches(training: "StageTraining", shards: Storage, config: PretrainConfig) -> "Iterator[Batch]":
    """Yield this rank's micro-batches of the validation samples, which are the same in every validation.

    Every rank gets the same number of samples, and at least one. If the split has fewer rows than there are ranks, some
    ranks get an index after the last sample, which the reader maps to a sample of its next epoch. So some samples count
    twice.
    """
    reader = ShardReader(shards / "validation", sequence_length=config.sequence_length, seed=0)
    num_samples = max(1, min(config.validation_samples, reader.num_rows) // training.rank_context.world_size)
    first = training.rank_context.rank * num_samples
    indices, size = range(first, first + num_samples), config.execution.micro_batch_size
    for start in range(0, num_samples, size):
        yield training.to_batch(reader.rows(indices[start : start + size]))


STAGE = Stage(
    name="pretrain",
    version=3,
    kind="model",
    config=PretrainConfig,
    run=run,
    output_sizes=output_sizes,
    check=check,
    check_planned_inputs=check_planned_inputs,
    check_inputs=check_inputs,
    estimate=estimate,
    workload=workload,
    report=report_pretraining,
    placements=training_placements,
)
