"""pretrain: a decoder learns to predict the next token of shards, by FSDP2 on the workers of a Ray Train group.

    raymill run pretrain configs/tiny/pretrain.yaml

Continued pretraining on a domain is the same stage with `init` and the shards of another corpus.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.process_group import RankContext
from cluster.storage import Storage
from data.tokens.order import check_weights
from data.tokens.shard_reader import ShardReader
from data.tokens.tokenizer import base_special_tokens, fingerprint, load_encoder
from jobs.frame.artifact import Artifact
from jobs.frame.fields import PREVIOUS, input_artifact
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
from model.transformer_config import TransformerConfig, flop_per_token, num_parameters

if TYPE_CHECKING:
    from jobs.frame.training_rank import TrainingRun
    from model.batch import Batch
    from model.train import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a new model; the vocabulary's size comes with the shards."""

    width: int = 256
    """Channels of the residual stream."""
    num_layers: int = 6
    """Transformer layers."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 2
    """Key-value heads, each shared by num_heads / num_kv_heads query heads."""
    ffn_width: int = 704
    """Channels inside SwiGLU."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies."""
    tie_embeddings: bool = True
    """Whether the output layer uses the embedding's weights."""

    def transformer(self, vocab_size: int, max_length: int) -> TransformerConfig:
        """The transformer's own config; raises ValueError when sizes do not divide."""
        sizes = TransformerConfig(vocab_size=vocab_size, max_length=max_length, **dataclasses.asdict(self))
        try:
            sizes.check()
        except ValueError as error:
            raise ValueError(f"model.{error}") from error
        return sizes


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """`pretrain.yaml`."""

    shards: str = input_artifact("shards", default=PREVIOUS)
    """Training and validation tokens."""
    mixture: dict[str, float] | None = None
    """Weight of each source in the tokens trained on; 0 leaves a source out. A source is repeated only after all of it
    was read. Without weights every source has its natural share."""
    init: str | None = input_artifact("model", default=None)
    """Model to continue from instead of random parameters; its sizes replace `model`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    max_length: int = 1024
    """Longest sequence that the model is built for; at least sequence_length."""
    sequence_length: int = 256
    """Tokens of a training row."""
    global_batch_size: int = 32
    """Samples of one optimizer step, over all workers."""
    steps: int = 1000
    """Optimizer steps in all."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Precision = precision_field("placement")
    """Precision of matrix products; `auto` takes bfloat16 where the hardware multiplies it."""
    seed: int = 0
    """Seed of the initial parameters and of the order of samples."""
    validation_samples: int = 64
    """Rows of validation text in each measurement of the loss."""
    sample_prompts: list[str] = field(default_factory=lambda: ["The", "In the year", "She said"])
    """Prompts that the finished model continues, shown in the report."""
    execution: TrainingExecution = field(default_factory=TrainingExecution)


def check(config: PretrainConfig) -> None:
    """Raises ValueError for every mistake that shows without the inputs."""
    config.model.transformer(vocab_size=2, max_length=config.max_length)
    check_training(config)
    if config.mixture is not None:
        check_weights(config.mixture)
    if config.init is None and config.sequence_length > config.max_length:
        raise ValueError(f"sequence_length: {config.sequence_length} must be at most max_length ({config.max_length})")
    if config.init is not None and config.model != ModelConfig():
        raise ValueError("model: its sizes come from `init` and would be ignored; remove either")


def check_planned_inputs(config: PretrainConfig, planned: PlannedInputs) -> None:
    """Raises ValueError for samples longer than the model takes."""
    if config.init is not None:
        check_length(config, planned)


def check_inputs(config: PretrainConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError when the shards are too small for one batch, belong to another tokenizer than `init`, or hold
    other sources than the mixture."""
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
            f"global_batch_size: the shards hold {reader.num_rows} rows of "
            f"sequence_length={config.sequence_length}, fewer than one batch of {config.global_batch_size}; shorten "
            "either or add text"
        )
    if ShardReader(shards / "validation", sequence_length=config.sequence_length).num_rows == 0:
        raise ValueError("shards: no validation text; raise validation_fraction of the shards")


def sizes(config: PretrainConfig, planned: PlannedInputs) -> TransformerConfig:
    """The sizes that the model will have: those of `init`, or of the config and the shards' vocabulary."""
    if "init" in planned:
        return model_config_of(planned["init"])
    return config.model.transformer(shards_sizes(planned["shards"]).vocab_size, config.max_length)


def estimate(config: PretrainConfig, planned: PlannedInputs) -> dict[str, float]:
    """Parameters, tokens and FLOP of the run, and the memory of its state."""
    model = sizes(config, planned)
    return {"parameters": num_parameters(model)} | estimate_training(config, model)


def workload(config: PretrainConfig, planned: PlannedInputs) -> Workload:
    """The amount of work; validation is forward only."""
    model = sizes(config, planned)
    training = training_workload(config, model)
    looks = 1 + config.steps // config.execution.validation_interval
    validation = (
        looks
        * config.validation_samples
        * config.sequence_length
        * forward_flop_per_token(model, config.sequence_length)
    )
    return dataclasses.replace(training, flop=training.flop + validation)


def run(config: PretrainConfig, context: Context) -> TrainingSummary:
    """Train, and write `model/`, `checkpoints/`, `metrics.jsonl` and `samples.jsonl`."""
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
    """What every worker needs."""

    training: TrainingPayload
    config: PretrainConfig
    shards: Storage
    init: Storage | None


def pretrain(rank_context: RankContext, payload: PretrainPayload) -> None:
    """The whole training on one rank."""
    from jobs.frame.training_rank import TrainingRun, continue_prompts  # late, as below: to plan takes no torch
    from model.huggingface import load_hf_model
    from model.objectives import causal_lm
    from model.train import fit
    from model.transformer import Transformer, initialize

    config = payload.config
    training = TrainingRun(rank_context, payload.training)
    tokenizer = (payload.shards / "tokenizer").local()
    reader = ShardReader(
        payload.shards / "train", sequence_length=config.sequence_length, seed=config.seed, mixture=config.mixture
    )
    if payload.init is None:
        sizes = config.model.transformer(reader.manifest.vocab_size, config.max_length)
        model = Transformer(sizes)
        initialize(model, config.seed)
    else:
        model = load_hf_model(payload.init.local())
        sizes = model.config
    state = training.start(model)
    flops = flop_per_token(sizes, config.sequence_length)
    for report in fit(state, step_batches(training, reader, state), causal_lm):
        training.log(report, flops)
        if training.validates_at(report.step):
            held_out = validation_batches(training, payload.shards, config)
            loss = training.mean_metrics(state, held_out, causal_lm)["loss"]
            training.log_validation(report.step, {"validation/loss": loss})
        training.checkpoint_when_due(state)
    training.finish(state, sizes, base_special_tokens, tokenizer)
    if rank_context.rank == 0 and config.sample_prompts:
        encoder, separator = load_encoder(tokenizer), reader.manifest.separator
        prompts = [(text, [separator, *encoder.encode(text).ids]) for text in config.sample_prompts]
        continue_prompts(payload.training.output, prompts, encoder.decode, stop_id=separator, seed=config.seed)


def step_batches(training: "TrainingRun", reader: ShardReader, state: "TrainState") -> "Iterator[Sequence[Batch]]":
    """This rank's micro-batches of each step still to be done. They depend on the step alone, so resuming is exact."""
    steps = range(state.step, training.config.steps)
    for step, rows in zip(steps, reader.read_ahead(map(training.rank_sample_indices, steps)), strict=True):
        yield training.micro_batches(training.to_batch(rows), rows.input_ids, step)


def validation_batches(training: "TrainingRun", shards: Storage, config: PretrainConfig) -> "Iterator[Batch]":
    """This rank's micro-batches of the validation samples, the same each time."""
    reader = ShardReader(shards / "validation", sequence_length=config.sequence_length, seed=0)
    each = max(1, min(config.validation_samples, reader.num_rows) // training.rank_context.world_size)
    own = range(training.rank_context.rank * each, (training.rank_context.rank + 1) * each)
    size = config.execution.micro_batch_size
    for start in range(0, each, size):
        yield training.to_batch(reader.rows(own[start : start + size]))


STAGE = Stage(
    name="pretrain",
    version=2,
    kind="model",
    config=PretrainConfig,
    run=run,
    output_sizes=sizes,
    check=check,
    check_planned_inputs=check_planned_inputs,
    check_inputs=check_inputs,
    estimate=estimate,
    workload=workload,
    report=report_pretraining,
    placements=training_placements,
)
