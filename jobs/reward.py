"""reward: trains a reward model on preference pairs with the loss of Bradley and Terry (1952).

raymill run reward configs/tiny/reward.yaml
"""

import itertools
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cluster.metrics_log import latest_values
from cluster.paths import list_files
from cluster.process_group import RankContext
from cluster.storage import Storage
from data.chats.records import read_preferences
from data.chats.template import PreferenceTokens, load_chat_tokenizer, render_preference
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
    """JSONL files of `{"prompt", "chosen", "rejected"}`; a prompt is a string or a list of messages."""
    init: str = input_artifact("model", default=PREVIOUS_STAGE)
    """Model whose decoder initializes the reward model: a stage, an artifact or a Llama-family Hugging Face folder."""
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
    """Seed of the pair order."""
    validation_fraction: float = 0.1
    """Fraction of the pairs that is held out for the validation accuracy. The last pairs are used."""
    execution: TrainingExecution = field(default_factory=TrainingExecution)


def check_preferences(config: RewardConfig) -> None:
    """Raises ValueError for a malformed record. The error names the record's file and line."""
    for _ in read_preferences(list_files(config.preferences)):
        pass


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
    first = itertools.islice(read_preferences(list_files(config.preferences)), 50 * config.global_batch_size)
    lengths = [
        chat_tokens(
            [*(message["content"] for message in pair.prompt), max(pair.chosen, pair.rejected, key=len)],
            sizes.vocab_size,
        )
        for pair in first
    ]
    # Estimated length of the longer sequence of each pair that is not left out.
    fitting = [length for length in lengths if length <= config.sequence_length] or [config.sequence_length]
    longest = [
        max(fitting[start : start + config.global_batch_size])
        for start in range(0, len(fitting), config.global_batch_size)
    ]
    fill_fraction = statistics.fmean(longest) / config.sequence_length
    return training_workload(config, sizes, rows_per_sample=2, fill_fraction=min(1.0, fill_fraction))


@dataclass(frozen=True, kw_only=True)
class RewardSummary:
    """The summary in artifact.json."""

    pairs: int
    """Number of pairs in the files."""
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
    init = context.inputs["init"].model
    tokenizer = load_chat_tokenizer(init.local())
    pairs = [render_preference(tokenizer, record) for record in read_preferences(list_files(config.preferences))]
    fitting = [pair for pair in pairs if max(len(pair.chosen), len(pair.rejected)) <= config.sequence_length]
    train, held_out = split_held_out(fitting, config, field="preferences")
    payload = RewardPayload(
        training=TrainingPayload(
            config=config, output=context.output, tracker=context.tracker, metrics_prefix="reward"
        ),
        config=config,
        init=init,
        pad_id=tokenizer.pad_id,
        train=train,
        held_out=held_out,
    )
    run_training(learn_preferences, payload, config, context, name="reward")
    last = latest_values(context.output)
    return RewardSummary(
        pairs=len(pairs),
        pairs_too_long=len(pairs) - len(fitting),
        pairs_held_out=len(held_out),
        validation_accuracy=last["validation/accuracy"],
        validation_margin=last["validation/margin"],
        training=summarize(context.output, metrics_prefix="reward"),
    )


@dataclass(frozen=True, kw_only=True)
class RewardPayload:
    """What the driver sends to every rank."""

    training: TrainingPayload
    config: RewardConfig
    init: Storage
    """Folder of the model whose decoder initializes the reward model."""
    pad_id: int
    """Id of the padding token."""
    train: Sequence[PreferenceTokens]
    """The pairs to train on."""
    held_out: Sequence[PreferenceTokens]
    """The pairs for validation."""


def learn_preferences(rank_context: RankContext, payload: RewardPayload) -> None:
    """Train the reward model on one rank."""
    # Imported here, so that loading a config does not import torch.
    from jobs.frame.training_rank import StageTraining
    from model.huggingface import load_hf_scalar_model
    from model.objectives import bradley_terry
    from model.train import fit

    training = StageTraining(rank_context, payload.training)
    folder = payload.init.local()
    model = load_hf_scalar_model(folder)
    state = training.start(model)
    for report in fit(state, step_batches(training, payload, state), bradley_terry):
        training.log(report)
        if training.is_validation_step(report.step):
            held_out = training.mean_metrics(state, held_out_batches(training, payload), bradley_terry)
            # From the names of the means to the metric keys.
            names = {
                "loss": "validation/loss",
                "reward/accuracy": "validation/accuracy",
                "reward/margin": "validation/margin",
            }
            training.log_validation(report.step, {names[name]: value for name, value in held_out.items()})
        training.save_checkpoint_if_due(state)
    training.finish(state, read_chat_special_tokens, folder)


def step_batches(
    training: "StageTraining", payload: RewardPayload, state: "TrainState"
) -> "Iterator[Sequence[PairBatch]]":
    """Yield, for each remaining step, the list of this rank's micro-batches. `state.step` is the first such step."""
    for step, indices in step_sample_indices(training, state, len(payload.train), seed=payload.config.seed):
        batch = to_pairs([payload.train[index] for index in indices], payload)
        # The token ids that the model is fed become part of the logged data hash.
        fed = np.concatenate([batch.chosen_ids.numpy(), batch.rejected_ids.numpy()], axis=1)
        training.add_to_data_hash(fed, step)
        yield training.micro_batches(batch)


def held_out_batches(training: "StageTraining", payload: RewardPayload) -> "Iterator[PairBatch]":
    """Yield this rank's micro-batches of the held-out pairs."""
    for indices in held_out_micro_batch_indices(training, len(payload.held_out)):
        yield to_pairs([payload.held_out[index] for index in indices], payload)


def to_pairs(pairs: Sequence[PreferenceTokens], payload: RewardPayload) -> "PairBatch":
    """Return the pairs as a batch, padded to the longest sequence of these pairs."""
    from model.batch import pair_batch

    longest = max(max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    return pair_batch(
        [pair.chosen for pair in pairs], [pair.rejected for pair in pairs], length=longest, pad_id=payload.pad_id
    )


def report(artifact: Artifact) -> ReportPart:
    """Return the report's section: the curves of the training."""
    summary = artifact.read_summary(RewardSummary).training
    return report_training(
        artifact, summary, title="Reward model", metrics_prefix="reward", loss_unit="nats per pair; chance is 0.693"
    )


STAGE = Stage(
    name="reward",
    version=2,
    kind="reward_model",
    config=RewardConfig,
    run=run,
    output_sizes=output_sizes,
    check=check_fine_tuning,
    check_sources=check_preferences,
    check_planned_inputs=check_length,
    check_inputs=check_chat_template,
    estimate=estimate,
    workload=workload,
    report=report,
    placements=training_placements,
)
