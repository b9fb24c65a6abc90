"""sft: supervised fine-tuning. The model is trained on the assistant's messages of chats.

raymill run sft configs/tiny/sft.yaml
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from cluster.paths import list_files
from cluster.plain import to_plain
from cluster.process_group import RankContext
from cluster.storage import Storage
from data.chats.messages import user_message
from data.chats.packing import plan_rows
from data.chats.row_files import RowFiles, RowReader, store_rows
from data.chats.sample_files import SampleFiles, SampleReader, learned_parts
from data.chats.template import ChatTokenizer, load_chat_tokenizer, read_special_tokens
from data.document import BadRecord
from data.sources.compression import read_blocks
from jobs.frame.artifact import WORK, Artifact
from jobs.frame.fields import PREVIOUS_STAGE, input_artifact, source_files
from jobs.frame.fine_tuning import (
    PreparedSamples,
    RecordsSummary,
    check_fine_tuning,
    check_first_records,
    check_rendering,
    held_out_micro_batch_indices,
    output_sizes,
    prepare_samples,
    split_held_out,
    step_sample_indices,
    summarize_records,
    with_rendering,
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
from jobs.report.learned import (
    LEARNED_EXAMPLES,
    LearnedExample,
    LearnedPart,
    describe_records,
    learned_examples,
)
from jobs.report.page import join
from jobs.report.part import ReportPart
from jobs.report.training import report_training
from model.precision import Precision, precision_field

if TYPE_CHECKING:
    from jobs.frame.training_rank import StageTraining
    from model.batch import Batch
    from model.train import TrainState

log = logging.getLogger(__name__)

NUM_EXAMPLES = 5
"""Number of training samples in learned.jsonl."""
_LOGGED_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """`sft.yaml`."""

    chats: list[str] = source_files()
    """JSONL files, or JSON files with an array (globs on any fsspec URL). The fields of a record decide its layout:
    `messages` (OpenAI, with tools), `conversations` (ShareGPT), `prompt` and `completion` or `response`, or
    `instruction`, `input` and `output` (Alpaca). See docs/training.md."""
    init: str = input_artifact("model", default=PREVIOUS_STAGE)
    """Model to fine-tune: a stage, an artifact or a Llama-family Hugging Face folder."""
    chat_template: str | None = source_files(default=None)
    """File with a chat template (Jinja) to use instead of the tokenizer's, for example to make a chat model of a base
    model. The trained model's folder contains it."""
    max_quarantined: float = 0.01
    """Largest share of the records that may be unusable. They are listed in the folder quarantine. The run stops if
    there are more. A single record never stops it."""
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
    """Seed of the choice of held-out chats, of the row order and of the sampled replies."""
    validation_fraction: float = 0.05
    """Fraction of the chats that is held out for the validation loss. They are chosen at random. Chats with the same
    first prompt are held out together."""
    sample_prompts: list[str] = field(default_factory=lambda: ["Hello! How are you?", "What do you do for fun?"])
    """User messages that the finished model replies to. The report shows them."""
    execution: TrainingExecution = field(default_factory=TrainingExecution)


def check_chats(config: SftConfig) -> None:
    """Raises ValueError if too many of the first records cannot be used, or fewer than two can."""
    check_first_records(config, config.chats, kind="chats")


def check_inputs(config: SftConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError if too many of the first records, or a sample prompt, cannot be rendered for the model."""
    tokenizer = check_rendering(config, config.chats, inputs, kind="chats", chat_template=read_template(config))
    for number, text in enumerate(config.sample_prompts):
        try:
            sample_prompt_ids(tokenizer, text)
        except BadRecord as bad:
            raise ValueError(f"sample_prompts[{number}]: {bad}") from bad


def read_template(config: SftConfig) -> str | None:
    """Return the text of the file `chat_template`, or None if it is not set.

    Raises ValueError if `chat_template` matches several files.
    """
    if config.chat_template is None:
        return None
    urls = list_files([config.chat_template])
    if len(urls) > 1:
        raise ValueError(f"chat_template: {config.chat_template!r} matches {len(urls)} files; name one of them")
    return b"".join(read_blocks(urls[0])).decode()


def estimate(config: SftConfig, planned: PlannedInputs) -> dict[str, float]:
    """Return what `raymill plan` prints: the values of `estimate_training`.

    The numbers of tokens and FLOP are upper bounds, because every row is counted as full, although its end may be
    padding.
    """
    return estimate_training(config, model_config_of(planned["init"]))


def workload(config: SftConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from. Padding counts as tokens, because it costs time."""
    return with_rendering(training_workload(config, model_config_of(planned["init"])), config.chats)


@dataclass(frozen=True, kw_only=True)
class SftSummary:
    """The summary in artifact.json."""

    chats: RecordsSummary
    chats_split: int
    """Number of chats that became several samples, because the template rewrites earlier messages."""
    samples: int
    """Number of samples: chats, or replies of the chats that were split."""
    samples_cut: int
    """Number of samples that were truncated to fit a row."""
    samples_too_long: int
    """Number of samples that were left out, because no token of any reply would have fit a row."""
    samples_held_out: int
    """Number of samples that were held out for the validation loss."""
    rows: int
    """Number of packed training rows."""
    training: TrainingSummary


def run(config: SftConfig, context: Context) -> SftSummary:
    """Train the model and write `model/`, `checkpoints/`, `metrics.jsonl`, `samples.jsonl` and `learned.jsonl`.

    Returns the numbers of chats and rows, and the summary of the training.
    """
    prepared = prepare_samples(config, context, config.chats, kind="chats", chat_template=read_template(config))
    records = prepared.records
    split = split_held_out(records.keys, config, field="chats")
    write_examples(prepared, split.train, context.output)
    rows = [
        plan_rows(numbers, records.lengths[numbers], length=config.sequence_length)
        for numbers in (split.train, split.held_out)
    ]
    train, held_out = (
        store_rows(prepared.folder, name, plan) for name, plan in zip(("train", "held-out"), rows, strict=True)
    )
    payload = SftPayload(
        training=TrainingPayload(config=config, output=context.output, tracker=context.tracker, metrics_prefix="sft"),
        config=config,
        init=context.inputs["init"].model,
        tokenizer=prepared.tokenizer_folder,
        folder=prepared.folder,
        samples=records.files,
        train=train,
        held_out=held_out,
        pad_id=prepared.tokenizer.pad_id,
    )
    run_training(fine_tune, payload, config, context, name="sft")
    summary = SftSummary(
        chats=summarize_records(records.counts),
        chats_split=records.num_split,
        samples=len(records.lengths),
        samples_cut=records.num_truncated,
        samples_too_long=records.num_too_long,
        samples_held_out=len(split.held_out),
        rows=len(rows[0].row_starts) - 1,
        training=summarize(context.output, metrics_prefix="sft"),
    )
    context.output.remove(WORK)
    return summary


def write_examples(prepared: PreparedSamples, train: np.ndarray, output: Storage) -> None:
    """Write the first training samples to `learned.jsonl`, and log the first one, with the learned texts marked."""
    reader, decode = SampleReader(prepared.folder, prepared.records.files), prepared.tokenizer.decode
    examples = [
        LearnedExample(parts=[LearnedPart(decode(ids), learned) for ids, learned in learned_parts(sample)])
        for sample in (reader.read(number) for number in train[:NUM_EXAMPLES])
    ]
    output.write_jsonl(LEARNED_EXAMPLES, map(to_plain, examples))
    marked = examples[0].marked
    shown = marked if len(marked) <= _LOGGED_CHARACTERS else f"{marked[:_LOGGED_CHARACTERS]} …"
    log.info("chats: the first sample; what is learned is in ⟦⟧: %s", shown)


@dataclass(frozen=True, kw_only=True)
class SftPayload:
    """What the driver sends to every rank."""

    training: TrainingPayload
    config: SftConfig
    init: Storage
    """Folder of the model to fine-tune."""
    tokenizer: Storage
    """Folder of the tokenizer."""
    folder: Storage
    """Folder of the files of samples and rows."""
    samples: SampleFiles
    train: RowFiles
    """The rows of the chats to train on."""
    held_out: RowFiles
    """The rows of the held-out chats."""
    pad_id: int
    """Id of the padding token."""

    def open_rows(self, rows: RowFiles) -> RowReader:
        """Return a reader of rows."""
        return RowReader(self.folder, self.samples, rows, length=self.config.sequence_length, pad_id=self.pad_id)


def fine_tune(rank_context: RankContext, payload: SftPayload) -> None:
    """Train the model on one rank, and let it reply to the sample prompts on rank 0."""
    # Imported here, so that loading a config does not import torch.
    from jobs.frame.training_rank import StageTraining, continue_prompts
    from model.huggingface import load_hf_model
    from model.objectives import causal_lm
    from model.train import fit

    config = payload.config
    training = StageTraining(rank_context, payload.training)
    train, held_out = payload.open_rows(payload.train), payload.open_rows(payload.held_out)
    state = training.start(load_hf_model(payload.init.local()))
    for report in fit(state, step_batches(training, train, state, config.seed), causal_lm):
        training.log(report)
        if training.is_validation_step(report.step):
            loss = training.mean_metrics(state, held_out_batches(training, held_out), causal_lm)["loss"]
            training.log_validation(report.step, {"validation/loss": loss})
        training.save_checkpoint_if_due(state)
    folder = payload.tokenizer.local()
    training.finish(state, read_special_tokens, folder)
    if rank_context.rank == 0 and config.sample_prompts:
        tokenizer = load_chat_tokenizer(folder)
        prompts = [(text, sample_prompt_ids(tokenizer, text)) for text in config.sample_prompts]
        continue_prompts(payload.training.output, prompts, tokenizer.decode, stop_id=tokenizer.end_id, seed=config.seed)


def sample_prompt_ids(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """Return the tokens of a prompt: of a user's message or, without a chat template, of the text itself."""
    return tokenizer.prompt_ids([user_message(text)]) if tokenizer.has_template else tokenizer.raw_prompt_ids(text)


def step_batches(
    training: "StageTraining", rows: RowReader, state: "TrainState", seed: int
) -> "Iterator[Sequence[Batch]]":
    """Yield, for each remaining step, the list of this rank's micro-batches. `state.step` is the first such step."""
    for step, indices in step_sample_indices(training, state, len(rows), seed=seed):
        step_rows = rows.take(indices)
        training.add_to_data_hash(step_rows.input_ids, step)
        yield training.micro_batches(training.to_batch(step_rows))


def held_out_batches(training: "StageTraining", rows: RowReader) -> "Iterator[Batch]":
    """Yield this rank's micro-batches of the held-out rows."""
    for indices in held_out_micro_batch_indices(training, len(rows)):
        yield training.to_batch(rows.take(indices))


def report(artifact: Artifact) -> ReportPart:
    """Return the report's section: the curves of the training, and the first samples with the learned texts marked."""
    summary = artifact.read_summary(SftSummary)
    part = report_training(
        artifact,
        summary.training,
        title="Fine-tuning",
        metrics_prefix="sft",
        loss_unit="nats per token of the assistant",
    )
    return replace(part, section=join(part.section, describe_records(summary.chats), learned_examples(artifact)))


STAGE = Stage(
    name="sft",
    version=4,
    kind="model",
    config=SftConfig,
    run=run,
    output_sizes=output_sizes,
    check=check_fine_tuning,
    check_sources=check_chats,
    check_planned_inputs=check_length,
    check_inputs=check_inputs,
    estimate=estimate,
    workload=workload,
    report=report,
    placements=training_placements,
)
