"""What the stages `sft` and `reward` have in common.

They train an existing model on files of records. Tasks render the records into samples of tokens. A fraction of the
samples is held out for the validation loss. The others are repeated in epochs.
"""

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cluster.machine import num_parallel_tasks
from cluster.paths import list_files, list_files_with_sizes
from cluster.storage import Storage
from data.chats.counts import (
    RecordCounts,
    check_quarantined,
    describe_reasons,
    log_counts,
    quarantine_file,
    write_quarantine,
)
from data.chats.held_out import HeldOutSplit, split_by_prompt
from data.chats.rendering_tasks import RANGE_BYTES, RecordKind, RenderedRecords, plan_tasks, probe_records, render_files
from data.chats.template import ChatTokenizer, load_chat_tokenizer
from data.sources.compression import estimate_content_bytes
from data.tokens.shuffle import epoch_order
from jobs.frame.artifact import WORK, Artifact
from jobs.frame.sizes import model_config_of
from jobs.frame.stage import Context, PlannedInputs
from jobs.frame.tokenizer_files import copy_tokenizer
from jobs.frame.training_config import TrainingConfig, check_training
from jobs.frame.workload import Workload
from model.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from jobs.frame.training_rank import StageTraining
    from model.train import TrainState

log = logging.getLogger(__name__)

_RENDER_S_PER_MB = 1.0
"""Seconds of one process to render 1 MB of records on the reference processor (`jobs.frame.cost_model`), measured with
chats of sixteen turns and the tokenizer of SmolLM2."""


class FineTuningConfig(TrainingConfig, Protocol):
    """The settings that the configs of these stages have in common."""

    @property
    def validation_fraction(self) -> float: ...
    @property
    def max_quarantined(self) -> float: ...
    @property
    def seed(self) -> int: ...


def check_fine_tuning(config: FineTuningConfig) -> None:
    """Raises ValueError if a setting that `sft` and `reward` have in common is out of range. The inputs are not
    read."""
    check_training(config)
    if not 0 < config.validation_fraction < 1:
        raise ValueError(f"validation_fraction: {config.validation_fraction} must be above 0 and below 1, such as 0.05")
    check_max_quarantined(config.max_quarantined)


def check_max_quarantined(value: float) -> None:
    """Raises ValueError if the setting `max_quarantined` is out of range."""
    if not 0 <= value < 1:
        raise ValueError(f"max_quarantined: {value} must be at least 0 and below 1, such as 0.01")


def check_first_records(
    config: FineTuningConfig, patterns: Sequence[str], *, kind: RecordKind, tokenizer: ChatTokenizer | None = None
) -> None:
    """Raises ValueError if too many of the first records of the files cannot be used, or fewer than two can.

    The records are also rendered if there is a tokenizer. `kind` is also the name of the config field with the files.
    """
    counts = probe_records(list_files(list(patterns)), kind, tokenizer, max_tokens=config.sequence_length)
    check_quarantined(counts, config.max_quarantined, field=kind, where="")
    num_used = sum(counts.layouts.values())
    if num_used < 2:
        reasons = f" ({describe_reasons(counts)})" if counts.quarantined else ""
        raise ValueError(
            f"{kind}: found {num_used} that can be used{reasons}, but at least 2 are needed, one to train on and one "
            f"to hold out; add {kind}"
        )


def check_rendering(
    config: FineTuningConfig,
    patterns: Sequence[str],
    inputs: Mapping[str, Artifact],
    *,
    kind: RecordKind,
    chat_template: str | None = None,
) -> ChatTokenizer:
    """Return the tokenizer of the model in `init`. `chat_template` is a template to use instead of the tokenizer's.

    Raises ValueError if too many of the first records of the files cannot be rendered with it.
    """
    with tempfile.TemporaryDirectory(prefix="raymill-tokenizer-") as folder:
        copy_tokenizer(inputs["init"].model, Storage(folder), chat_template=chat_template)
        tokenizer = load_chat_tokenizer(Path(folder))
        check_first_records(config, patterns, kind=kind, tokenizer=tokenizer)
        return tokenizer


def output_sizes(config: FineTuningConfig, planned: PlannedInputs) -> TransformerConfig:
    """Return the config of the model in `init`.

    The model that the stage writes has the same config, so this function is the stage's `output_sizes`.
    """
    return model_config_of(planned["init"])


def with_rendering(workload: Workload, patterns: Sequence[str]) -> Workload:
    """Return the workload of a training, with the time for rendering the records of the files."""
    sizes = list_files_with_sizes(list(patterns))
    num_bytes = sum(estimate_content_bytes(url, size or 0) for url, size in sizes)
    processes = num_parallel_tasks(None, max(1, math.ceil(num_bytes / RANGE_BYTES)))
    return replace(workload, python_s=num_bytes / 1e6 * _RENDER_S_PER_MB, python_processes=processes)


@dataclass(frozen=True, kw_only=True)
class RecordsSummary:
    """The part of a summary in artifact.json that is about the records."""

    records: int
    """Number of records in the files."""
    layouts: dict[str, int]
    """Number of the records that are used, by layout."""
    quarantined: dict[str, int]
    """Number of records that cannot be used, by reason. The folder quarantine lists them."""
    ties: int
    """Number of the quarantined records that are preferences without a preferred completion."""
    unread: dict[str, int]
    """Number of records with each field that nothing reads."""


def summarize_records(counts: RecordCounts) -> RecordsSummary:
    """Return the part of a summary that is about the records."""
    return RecordsSummary(
        records=counts.records,
        layouts=counts.layouts,
        quarantined=counts.quarantined,
        ties=counts.ties,
        unread=counts.unread,
    )


@dataclass(frozen=True, kw_only=True)
class PreparedSamples:
    """The rendered records of a run, in the folder `WORK` of the output."""

    folder: Storage
    """Folder of the files."""
    tokenizer_folder: Storage
    """Folder with a copy of the tokenizer."""
    tokenizer: ChatTokenizer
    records: RenderedRecords


def prepare_samples(
    config: FineTuningConfig,
    context: Context,
    patterns: Sequence[str],
    *,
    kind: RecordKind,
    chat_template: str | None = None,
) -> PreparedSamples:
    """Render the records of the files on all workers, and log and write what became of them.

    Raises ValueError if more than the share `max_quarantined` of the records cannot be used.
    """
    folder = context.output / WORK
    tokenizer_folder = folder / "tokenizer"
    copy_tokenizer(context.inputs["init"].model, tokenizer_folder, chat_template=chat_template)
    work = folder / kind
    tasks = plan_tasks(patterns, kind=kind, sequence_length=config.sequence_length, tokenizer=tokenizer_folder)
    records = render_files(tasks, work=work, tokenizer=tokenizer_folder)
    # Written before the check, because its error refers to this file.
    write_quarantine(context.output, kind, records.quarantined)
    log_counts(records.counts, field=kind)
    tokenizer = load_chat_tokenizer(tokenizer_folder.local())
    if tokenizer.shows_date:
        log.warning(
            "%s: the chat template writes today's date, so the samples of another day differ; name a template without "
            "it if results must be the same",
            kind,
        )
    where = f"all are listed in {context.output.url}/{quarantine_file(kind)}; "
    check_quarantined(records.counts, config.max_quarantined, field=kind, where=where)
    return PreparedSamples(folder=work, tokenizer_folder=tokenizer_folder, tokenizer=tokenizer, records=records)


def split_held_out(keys: np.ndarray, config: FineTuningConfig, *, field: str) -> HeldOutSplit:
    """Split the samples into training samples and held-out samples.

    No prompt is in both, unless all samples have the same one. Then a warning says so.

    `keys` has the prompt key of each sample that is not longer than sequence_length, and `field` is the name of the
    config field with the files. Raises ValueError for fewer than two samples.
    """
    if len(keys) < 2:
        raise ValueError(
            f"{field}: only {len(keys)} of the records fit sequence_length={config.sequence_length}, but at least "
            f"one is needed for training and one for validation; increase sequence_length or add {field}"
        )
    split = split_by_prompt(keys, config.validation_fraction, seed=config.seed)
    if not split.is_by_prompt:
        log.warning("%s: all records have the same prompt, so the held-out records share it with the others", field)
    return split


def step_sample_indices(
    training: "StageTraining", state: "TrainState", num_samples: int, *, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (step, indices of this rank's samples in that step) for each step that is not done yet.

    Steps count from 0. The indices are indices into the training samples, and `num_samples` is the number of training
    samples. An epoch contains every sample once. Each epoch has a different order, which depends on `seed`.
    """
    for step in range(state.step, training.config.steps):
        yield step, epoch_order(training.rank_sample_indices(step), num_samples, seed=seed)


def held_out_micro_batch_indices(training: "StageTraining", num_samples: int) -> Iterator[np.ndarray]:
    """Yield the indices of the held-out samples in each of this rank's micro-batches.

    `num_samples` is the number of held-out samples. Every rank gets the same number of samples. The last samples are
    left out if the samples cannot be divided equally among the ranks. If there are fewer samples than ranks, each rank
    gets one sample, and some ranks get the same one.
    """
    samples_per_rank = max(1, num_samples // training.rank_context.world_size)
    first = training.rank_context.rank * samples_per_rank
    indices = np.arange(first, first + samples_per_rank) % num_samples
    micro_batch_size = training.config.execution.micro_batch_size
    for start in range(0, samples_per_rank, micro_batch_size):
        yield indices[start : start + micro_batch_size]
