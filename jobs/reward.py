"""reward: trains a reward model on preference pairs with the loss of Bradley and Terry (1952).

raymill run reward configs/tiny/reward.yaml
"""

import itertools
import logging
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from cluster.metrics_log import latest_values
from cluster.paths import list_files
from cluster.process_group import RankContext
from cluster.storage import Storage
from data.chats.layouts import parse_preference
from data.chats.messages import text_of
from data.chats.records import parse_or_bad, read_located
from data.chats.sample_files import SampleFiles, SampleReader, StoredArray, open_array, store_array
from data.chats.template import read_special_tokens
from data.document import BadRecord
from jobs.frame.artifact import WORK, Artifact
from jobs.frame.fields import PREVIOUS_STAGE, input_artifact, source_files
from jobs.frame.fine_tuning import (
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
from jobs.frame.sizes import chat_tokens, model_config_of
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
from jobs.report.learned import describe_records
from jobs.report.page import join
from jobs.report.part import ReportPart
from jobs.report.training import report_training
from model.precision import Precision, precision_field

if TYPE_CHECKING:
    from jobs.frame.training_rank import StageTraining
    from model.batch import PairBatch
    from model.train import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """`reward.yaml`."""

    preferences: list[str] = source_files()
    """JSONL files, or JSON files with an array. The fields of a record decide its layout: `prompt`, `chosen` and
    `rejected` (strings or lists of messages), `chosen` and `rejected` that begin with the prompt (also in the form of
    hh-rlhf), or a list of completions with scores (UltraFeedback). See docs/training.md."""
    init: str = input_artifact("model", default=PREVIOUS_STAGE)
    """Model whose decoder initializes the reward model: a stage, an artifact or a Llama-family Hugging Face folder."""
    max_quarantined: float = 0.01
    """Largest share of the records that may be unusable. They are listed in the folder quarantine. The run stops if
    there are more. A single record never stops it. Ties, in which neither completion is preferred, are listed too, but
    do not count."""
    sequence_length: int = 256
    """Maximum length of a prompt and one of its completions together, in tokens. A pair that exceeds it with either
    completion is left out and counted."""
    global_batch_size: int = 32
    """Pairs in one optimizer step, over all workers."""
    steps: int = 100
    """Total number of optimizer steps."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Precision = precision_field(placement="placement")
    """Precision of matmuls. `auto` is bfloat16 if the hardware supports it natively, else float32."""
    seed: int = 0
    """Seed of the choice of held-out pairs and of the pair order."""
    validation_fraction: float = 0.1
    """Fraction of the pairs that is held out for the validation accuracy. They are chosen at random. Pairs with the
    same first prompt are held out together."""
    execution: TrainingExecution = field(default_factory=TrainingExecution)


def check_preferences(config: RewardConfig) -> None:
    """Raises ValueError if too many of the first records cannot be used, or fewer than two can."""
    check_first_records(config, config.preferences, kind="preferences")


def check_inputs(config: RewardConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError if too many of the first records cannot be rendered with the tokenizer of the model."""
    check_rendering(config, config.preferences, inputs, kind="preferences")


def estimate(config: RewardConfig, planned: PlannedInputs) -> dict[str, float]:
    """Return what `raymill plan` prints: the values of `estimate_training`.

    The numbers of tokens and FLOP are upper bounds, because every sequence is counted as full, although most are
    shorter.
    """
    return estimate_training(config, model_config_of(planned["init"]), rows_per_sample=2)


def workload(config: RewardConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from.

    The two sequences of each pair are padded to the longest sequence of their batch. The padded length is estimated
    from the first pairs in the files, as many as 50 batches have.
    """
    sizes = model_config_of(planned["init"])
    first = itertools.islice(read_located(list_files(config.preferences)), 50 * config.global_batch_size)
    pairs = [parse_or_bad(parse_preference, record) for _, record in first]
    lengths = [
        max(
            chat_tokens([text_of(message) for message in [*pair.prompt, *completion]], sizes.vocab_size)
            for completion in (pair.chosen, pair.rejected)
        )
        for pair in pairs
        if not isinstance(pair, BadRecord)
    ]
    # Estimated length of the longer sequence of each pair that is not left out.
    fitting = [length for length in lengths if length <= config.sequence_length] or [config.sequence_length]
    longest = [
        max(fitting[start : start + config.global_batch_size])
        for start in range(0, len(fitting), config.global_batch_size)
    ]
    fill_fraction = statistics.fmean(longest) / config.sequence_length
    training = training_workload(config, sizes, rows_per_sample=2, fill_fraction=min(1.0, fill_fraction))
    return with_rendering(training, config.preferences)


@dataclass(frozen=True, kw_only=True)
class RewardSummary:
    """The summary in artifact.json."""

    preferences: RecordsSummary
    pairs: int
    """Number of pairs that fit sequence_length."""
    pairs_too_long: int
    """Number of pairs that were left out, because the prompt with one of the completions did not fit."""
    pairs_held_out: int
    """Number of pairs that were held out for validation."""
    validation_accuracy: float
    """Share of the held-out pairs whose chosen completion has the higher reward."""
    validation_margin: float
    """Mean over the held-out pairs: reward of the chosen completion minus reward of the rejected one."""
    training: TrainingSummary


def run(config: RewardConfig, context: Context) -> RewardSummary:
    """Train the model and write `model/`, `checkpoints/` and `metrics.jsonl`.

    `model/` is a sequence classifier with one label, which is the reward. Returns the numbers of pairs, the validation
    metrics, and the summary of the training.
    """
    prepared = prepare_samples(config, context, config.preferences, kind="preferences")
    records = prepared.records
    split = split_held_out(records.keys[::2], config, field="preferences")
    train, held_out = (
        store_array(prepared.folder, f"{name}-pairs.npy", pairs)
        for name, pairs in (("train", split.train), ("held-out", split.held_out))
    )
    payload = RewardPayload(
        training=TrainingPayload(
            config=config, output=context.output, tracker=context.tracker, metrics_prefix="reward"
        ),
        config=config,
        init=context.inputs["init"].model,
        pad_id=prepared.tokenizer.pad_id,
        folder=prepared.folder,
        samples=records.files,
        train=train,
        held_out=held_out,
    )
    run_training(learn_preferences, payload, config, context, name="reward")
    last = latest_values(context.output)
    summary = RewardSummary(
        preferences=summarize_records(records.counts),
        pairs=len(records.lengths) // 2,
        pairs_too_long=records.num_too_long,
        pairs_held_out=len(split.held_out),
        validation_accuracy=last["validation/accuracy"],
        validation_margin=last["validation/margin"],
        training=summarize(context.output, metrics_prefix="reward"),
    )
    context.output.remove(WORK)
    return summary


@dataclass(frozen=True, kw_only=True)
class RewardPayload:
    """What the driver sends to every rank."""

    training: TrainingPayload
    config: RewardConfig
    init: Storage
    """Folder of the model whose decoder initializes the reward model."""
    pad_id: int
    """Id of the padding token."""
    folder: Storage
    """Folder of the files of samples and pairs."""
    samples: SampleFiles
    """The chosen sequence of pair n is sample 2n, and the rejected one is sample 2n + 1."""
    train: StoredArray
    """The numbers of the pairs to train on."""
    held_out: StoredArray
    """The numbers of the pairs for validation."""


class PairReader:
    """Reads pairs from the files of a payload. Only the pairs that are read are in memory."""

    def __init__(self, payload: RewardPayload, pairs: StoredArray) -> None:
        self._samples = SampleReader(payload.folder, payload.samples)
        self._pairs = open_array(payload.folder, pairs)
        self._pad_id = payload.pad_id

    def __len__(self) -> int:
        return len(self._pairs)

    def take(self, indices: Iterable[int]) -> "PairBatch":
        """Return the pairs at `indices` as a batch, padded to the longest sequence of these pairs."""
        from model.batch import pair_batch

        numbers = [int(self._pairs[index]) for index in indices]
        chosen, rejected = (
            [self._samples.read(2 * number + offset).ids.tolist() for number in numbers] for offset in (0, 1)
        )
        longest = max(map(len, [*chosen, *rejected]))
        return pair_batch(chosen, rejected, length=longest, pad_id=self._pad_id)


def learn_preferences(rank_context: RankContext, payload: RewardPayload) -> None:
    """Train the reward model on one rank."""
    # Imported here, so that loading a config does not import torch.
    from jobs.frame.training_rank import StageTraining
    from model.huggingface import load_hf_scalar_model
    from model.objectives import bradley_terry
    from model.train import fit

    config = payload.config
    training = StageTraining(rank_context, payload.training)
    folder = payload.init.local()
    train, held_out = PairReader(payload, payload.train), PairReader(payload, payload.held_out)
    state = training.start(load_hf_scalar_model(folder))
    for report in fit(state, step_batches(training, train, state, config.seed), bradley_terry):
        training.log(report)
        if training.is_validation_step(report.step):
            metrics = training.mean_metrics(state, held_out_batches(training, held_out), bradley_terry)
            # From the names of the means to the metric keys.
            names = {
                "loss": "validation/loss",
                "reward/accuracy": "validation/accuracy",
                "reward/margin": "validation/margin",
            }
            training.log_validation(report.step, {names[name]: value for name, value in metrics.items()})
        training.save_checkpoint_if_due(state)
    training.finish(state, read_special_tokens, folder)


def step_batches(
    training: "StageTraining", pairs: PairReader, state: "TrainState", seed: int
) -> "Iterator[Sequence[PairBatch]]":
    """Yield, for each remaining step, the list of this rank's micro-batches. `state.step` is the first such step."""
    for step, indices in step_sample_indices(training, state, len(pairs), seed=seed):
        batch = pairs.take(indices)
        # The token ids that the model is fed become part of the logged data hash.
        fed = np.concatenate([batch.chosen_ids.numpy(), batch.rejected_ids.numpy()], axis=1)
        training.add_to_data_hash(fed, step)
        yield training.micro_batches(batch)


def held_out_batches(training: "StageTraining", pairs: PairReader) -> "Iterator[PairBatch]":
    """Yield this rank's micro-batches of the held-out pairs."""
    for indices in held_out_micro_batch_indices(training, len(pairs)):
        yield pairs.take(indices)


def report(artifact: Artifact) -> ReportPart:
    """Return the report's section: the curves of the training, and the counts of the records."""
    summary = artifact.read_summary(RewardSummary)
    part = report_training(
        artifact,
        summary.training,
        title="Reward model",
        metrics_prefix="reward",
        loss_unit="nats per pair; chance is 0.693",
    )
    return replace(part, section=join(part.section, describe_records(summary.preferences)))


STAGE = Stage(
    name="reward",
    version=3,
    kind="reward_model",
    config=RewardConfig,
    run=run,
    output_sizes=output_sizes,
    check=check_fine_tuning,
    check_sources=check_preferences,
    check_planned_inputs=check_length,
    check_inputs=check_inputs,
    estimate=estimate,
    workload=workload,
    report=report,
    placements=training_placements,
)
