"""sft: supervised fine-tuning. The model is trained on the assistant's messages of chats.

raymill run sft configs/tiny/sft.yaml
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cluster.paths import list_files
from cluster.process_group import RankContext
from cluster.storage import Storage
from data.chats.packing import PackedRows, pack_chats, truncate_chats
from data.chats.records import read_chats
from data.chats.template import load_chat_tokenizer, render
from data.tokens.tokenizer import read_chat_special_tokens
from jobs.frame.artifact import Artifact
from jobs.frame.fields import PREVIOUS_STAGE, input_artifact, source_files
from jobs.frame.fine_tuning import (
    check_chat_template,
    check_fine_tuning,
    held_out_micro_batch_indices,
    output_sizes,
    split_held_out,
    step_sample_indices,
)
from jobs.frame.sizes import model_config_of
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.training_config import (
    OptimizerConfig,
    TrainingExecution,
    check_length,
    estimate_training,
    training_placements,
    training_workload,
)
from jobs.frame.training_run import TrainingPayload, TrainingSummary, run_training, summarize
from jobs.frame.workload import Workload
from jobs.report.part import ReportPart
from jobs.report.training import report_training
from model.precision import Precision, precision_field

if TYPE_CHECKING:
    from jobs.frame.training_rank import StageTraining
    from model.batch import Batch
    from model.train import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """`sft.yaml`."""

    chats: list[str] = source_files()
    """JSONL files (globs on any fsspec URL) of `{"messages": [{"role", "content"}, …]}` or `{"prompt", "response"}`."""
    init: str = input_artifact("model", default=PREVIOUS_STAGE)
    """Model to fine-tune: a stage, an artifact or a Llama-family Hugging Face folder."""
    sequence_length: int = 256
    """Length of a training row, in tokens. Chats are packed into rows and do not attend to each other. A longer chat is
    truncated, or left out if no token of any reply would remain; both are counted."""
    global_batch_size: int = 32
    """Rows in one optimizer step, over all workers."""
    steps: int = 200
    """Total number of optimizer steps."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Precision = precision_field(placement="placement")
    """Precision of matmuls. `auto` is bfloat16 if the hardware supports it natively, else float32."""
    seed: int = 0
    """Seed of the row order and of the sampled replies."""
    validation_fraction: float = 0.05
    """Fraction of the chats that is held out for the validation loss. The last chats are used."""
    sample_prompts: list[str] = field(default_factory=lambda: ["Hello! How are you?", "What do you do for fun?"])
    """User messages that the finished model replies to. The report shows them."""
    execution: TrainingExecution = field(default_factory=TrainingExecution)


def check_chats(config: SftConfig) -> None:
    """Raises ValueError for a malformed record, and for fewer than two chats.

    The error for a malformed record names its file and line.
    """
    number = sum(1 for _ in read_chats(list_files(config.chats)))
    if number < 2:
        raise ValueError(
            f"chats: found {number}, but at least 2 are needed, one to train on and one to hold out; add chats"
        )


def estimate(config: SftConfig, planned: PlannedInputs) -> dict[str, float]:
    """Return what `raymill plan` prints: the values of `estimate_training`.

    The numbers of tokens and FLOP are upper bounds, because every row is counted as full, although its end may be
    padding.
    """
    return estimate_training(config, model_config_of(planned["init"]))


def workload(config: SftConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from. Padding counts as tokens, because it costs time."""
    return training_workload(config, model_config_of(planned["init"]))


@dataclass(frozen=True, kw_only=True)
class SftSummary:
    """The summary in artifact.json."""

    chats: int
    """Number of chats in the files."""
    chats_cut: int
    """Number of chats that were truncated to fit a row."""
    chats_too_long: int
    """Number of chats that were left out, because no token of any reply would have fit a row."""
    chats_held_out: int
    """Number of chats that were held out for the validation loss."""
    rows: int
    """Number of packed training rows."""
    training: TrainingSummary


def run(config: SftConfig, context: Context) -> SftSummary:
    """Train the model and write `model/`, `checkpoints/`, `metrics.jsonl` and `samples.jsonl`.

    Returns the numbers of chats and rows, and the summary of the training.
    """
    model_folder = context.inputs["init"].model
    tokenizer = load_chat_tokenizer(model_folder.local())
    chats = [render(tokenizer, chat) for chat in read_chats(list_files(config.chats))]
    fitting = truncate_chats(chats, length=config.sequence_length)
    train, held_out = split_held_out(fitting.chats, config, field="chats")
    payload = SftPayload(
        training=TrainingPayload(config=config, output=context.output, tracker=context.tracker, metrics_prefix="sft"),
        config=config,
        init=model_folder,
        train=pack_chats(train, length=config.sequence_length, pad_id=tokenizer.pad_id),
        held_out=pack_chats(held_out, length=config.sequence_length, pad_id=tokenizer.pad_id),
    )
    run_training(fine_tune, payload, config, context, name="sft")
    return SftSummary(
        chats=len(chats),
        chats_cut=fitting.num_truncated,
        chats_too_long=fitting.num_without_reply,
        chats_held_out=len(held_out),
        rows=len(payload.train.input_ids),
        training=summarize(context.output, metrics_prefix="sft"),
    )


@dataclass(frozen=True, kw_only=True)
class SftPayload:
    """What the driver sends to every rank."""

    training: TrainingPayload
    config: SftConfig
    init: Storage
    """Folder of the model to fine-tune."""
    train: PackedRows
    """The rows of the chats to train on."""
    held_out: PackedRows
    """The rows of the held-out chats."""


def fine_tune(rank_context: RankContext, payload: SftPayload) -> None:
    """Train the model on one rank, and let it reply to the sample prompts on rank 0."""
    # Imported here, so that loading a config does not import torch.
    from jobs.frame.training_rank import StageTraining, continue_prompts
    from model.huggingface import load_hf_model
    from model.objectives import causal_lm
    from model.train import fit

    config = payload.config
    training = StageTraining(rank_context, payload.training)
    folder = payload.init.local()
    model = load_hf_model(folder)
    state = training.start(model)
    for report in fit(state, step_batches(training, payload.train, state, config.seed), causal_lm):
        training.log(report)
        if training.is_validation_step(report.step):
            loss = training.mean_metrics(state, held_out_batches(training, payload.held_out), causal_lm)["loss"]
            training.log_validation(report.step, {"validation/loss": loss})
        training.save_checkpoint_if_due(state)
    training.finish(state, read_chat_special_tokens, folder)
    if rank_context.rank == 0 and config.sample_prompts:
        tokenizer = load_chat_tokenizer(folder)
        prompts = [(text, tokenizer.prompt_ids([{"role": "user", "content": text}])) for text in config.sample_prompts]
        continue_prompts(payload.training.output, prompts, tokenizer.decode, stop_id=tokenizer.end_id, seed=config.seed)


def step_batches(
    training: "StageTraining", rows: PackedRows, state: "TrainState", seed: int
) -> "Iterator[Sequence[Batch]]":
    """Yield, for each remaining step, the list of this rank's micro-batches. `state.step` is the first such step."""
    for step, indices in step_sample_indices(training, state, len(rows.input_ids), seed=seed):
        step_rows = take(rows, indices)
        training.add_to_data_hash(step_rows.input_ids, step)
        yield training.micro_batches(training.to_batch(step_rows))


def held_out_batches(training: "StageTraining", rows: PackedRows) -> "Iterator[Batch]":
    """Yield this rank's micro-batches of the held-out rows."""
    for indices in held_out_micro_batch_indices(training, len(rows.input_ids)):
        yield training.to_batch(take(rows, indices))


def take(rows: PackedRows, indices: np.ndarray) -> PackedRows:
    """Return the rows at `indices`, in that order."""
    return PackedRows(*(array[indices] for array in rows))


def report(artifact: Artifact) -> ReportPart:
    """Return the report's section: the curves of the training."""
    summary = artifact.read_summary(SftSummary).training
    return report_training(
        artifact, summary, title="Fine-tuning", metrics_prefix="sft", loss_unit="nats per token of the assistant"
    )


STAGE = Stage(
    name="sft",
    version=3,
    kind="model",
    config=SftConfig,
    run=run,
    output_sizes=output_sizes,
    check=check_fine_tuning,
    check_sources=check_chats,
    check_planned_inputs=check_length,
    check_inputs=check_chat_template,
    estimate=estimate,
    workload=workload,
    report=report,
    placements=training_placements,
)
