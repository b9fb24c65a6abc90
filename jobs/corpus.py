"""corpus: raw files in, clean documents out.

    files ─ read, clean ─▶ chunks ─ gather, drop equal texts ─▶ parts ─ find near-duplicates, mix, write ─▶ documents/
            (cleaning tasks)        (part tasks)                        (part tasks)

Cleaning tasks (`data/corpus/cleaning_tasks.py`) and part tasks (`data/corpus/part_tasks.py`) exchange files through
storage. The result of every finished task is stored, so a run that was killed does not repeat it. A hash of a
document's text decides to which part the document belongs, and the rows of a part are sorted, so the output does not
depend on the number and size of the tasks or on the number of workers.

    documents/part-*.parquet   the documents that are kept: id, source, text, metadata
    drops/part-*.parquet       the documents that are dropped, with the reason and, for a duplicate, the id of the
                               document that is kept instead
    origins/                   the file and offset of each document, for `raymill trace` and `raymill forget`
    quarantine/*.jsonl         records that could not be read, with file, offset and reason
    logs/samples.json          samples of texts before and after each step that changed them
    parts.json                 digest and size of each part
    fairness.json              how often each step would remove sentences about each group of people
                               (`data/cleaning/fairness.py`)

The counts of every source add up: records read = documents kept + documents dropped + records quarantined.
"""

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from cluster.ignored_settings import reject_ignored
from cluster.machine import num_parallel_tasks
from cluster.placement import TasksExecution
from cluster.plain import from_plain, to_plain
from cluster.user_program import load_function
from data.cleaning.changes import SAMPLES, merge_samples, read_samples, samples_without
from data.cleaning.decontaminate import Decontaminate, check_files
from data.cleaning.fairness import FAIRNESS, Ledger, check_budget
from data.cleaning.recipe import Step, check_step_sources, check_steps, fairness_ledger, name_and_settings, pin_files
from data.cleaning.user_step import UserStep, with_program
from data.corpus.accounting import (
    CorpusSummary,
    SourceCounts,
    check_not_empty,
    sum_by_source,
    summarize,
    summary_without_forgotten,
)
from data.corpus.cleaning_tasks import (
    estimate_text_bytes,
    plan_cleaning_tasks,
    run_cleaning_tasks,
)
from data.corpus.collapses import describe, find_collapses
from data.corpus.forget import Corpus, apply_changes, stage_changes
from data.corpus.origins import names_by_source, number_files, write_file_names
from data.corpus.part_tasks import write_parts
from data.corpus.parts import MAX_PARTS, PARTS_JSON, PartRecord, part_record, read_part_records
from data.corpus.quarantine import QUARANTINE, write_quarantine
from data.corpus.unique_ids import check_unique_ids
from data.corpus.work import CorpusWork
from data.document import Source, partition_columns
from data.sources.compression import estimate_content_bytes
from data.sources.readers import check_paths, check_sources, plan_ranges, source_files
from jobs.frame.artifact import RECORD, WORK, Artifact, start_change
from jobs.frame.fields import list_of_choices
from jobs.frame.kinds import CorpusSizes
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.user_code import read_program
from jobs.frame.workload import Processes, Workload
from jobs.report.corpus import report_corpus

_STAGING_FOLDER = f"{WORK}/forget"  # folder in which `forget` stages the changed tables
_STAGED_JSON = "staged.json"  # file in that folder, written last, which contains a `_Staged`
_READ_S_PER_MB = 0.22  # seconds to read 1 MB of text in Python on the reference processor (`jobs.frame.cost_model`)
_STEP_S_PER_MB = 0.108  # the same for one cleaning step on 1 MB of text, as a mean over the steps of the demo
_KEPT_TEXT = 0.45  # fraction of the source files' bytes that is kept as text, measured on the demo
_COMPRESSED = 0.6  # size of text in Parquet over its size in memory
_MAX_PART_MIB = 1024  # limited, because a task holds several copies of a part in memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CorpusExecution(TasksExecution):
    """Where the stage runs. These settings change no result."""

    task_mib: int = 32
    """Approximate MiB of input that one cleaning task reads."""
    part_tasks: int | None = None
    """Number of tasks in each phase that works on the parts. It does not change the number of parts. By default, there
    is one task for each part."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """`corpus.yaml`."""

    sources: list[Source]
    """The sources: the files to read."""
    steps: list[Step] = list_of_choices()
    """The cleaning steps, applied in order."""
    mixture: dict[str, float] | None = None
    """Weight of each source. The kept bytes of the sources are in proportion to the weights. As much text is kept as
    the weights allow, and nothing is repeated. Duplicates are dropped before the weights are applied: of
    several copies of a text, the one with the lowest id is kept. If that copy is in a source of weight 0, the text is
    missing from the corpus, even if another source has a copy."""
    fairness_budget: float | None = None
    """Each step is tested on neutral sentences that mention a group of people, and on the same sentences without the
    mention. The budget is the largest allowed difference between the fractions that the step removes: 0.05 allows five
    more in a hundred. By default the difference is not limited."""
    part_mib: int = 64
    """Approximate MiB of text in one part. Each part becomes one shard of train/ and one of validation/."""
    execution: CorpusExecution = field(default_factory=CorpusExecution)


def check(config: CorpusConfig) -> None:
    """Raises ValueError for the first error that can be detected in the config alone."""
    if not 1 <= config.part_mib <= _MAX_PART_MIB:
        raise ValueError(f"part_mib: {config.part_mib} must be at least 1 and at most {_MAX_PART_MIB}")
    for name in ("task_mib", "part_tasks"):
        value = getattr(config.execution, name)
        if value is not None and value < 1:
            raise ValueError(f"execution.{name}: {value} must be at least 1; leave it unset for the default")
    check_paths(config.sources)
    check_steps(config.steps)
    check_step_sources(config.sources, config.steps)
    if config.mixture is not None:
        _check_mixture(config.mixture, [source.name for source in config.sources])
    if config.fairness_budget is not None and not 0 <= config.fairness_budget < 1:
        raise ValueError(f"fairness_budget: {config.fairness_budget} must be at least 0 and below 1")
    if not config.steps:
        reject_ignored(config, "fairness_budget", path="", reason="without `steps` no document is dropped")


def _check_mixture(mixture: Mapping[str, float], sources: Sequence[str]) -> None:
    for name, weight in mixture.items():
        if name not in sources:
            near = difflib.get_close_matches(name, sources, n=1)
            hint = f"did you mean {near[0]}?" if near else f"sources: {', '.join(sources)}"
            raise ValueError(f"mixture: {name!r} is not one of the sources; {hint}")
        if weight < 0:
            raise ValueError(f"mixture.{name}: {weight} must be at least 0")
    if missing := [name for name in sources if name not in mixture]:
        raise ValueError(f"mixture: {', '.join(missing)} has no weight; give every source a weight (0 leaves it out)")
    if not any(mixture.values()):
        raise ValueError("mixture: every weight is 0; at least one must be above 0")


def check_files_and_fairness(config: CorpusConfig) -> None:
    """Raises ValueError if the first records of a source lack a column, or if a step exceeds the fairness budget.

    Also raises ValueError if the files of a step or the function of a user-provided step cannot be read.
    """
    check_sources(config.sources)
    for position, step in enumerate(config.steps):
        name, settings = name_and_settings(step)
        if isinstance(settings, Decontaminate):
            check_files(settings, f"steps[{position}].{name}")
        if isinstance(settings, UserStep):
            load_function(read_program(settings.function))
    check_fairness(config)


def check_fairness(config: CorpusConfig) -> None:
    """Raises ValueError when a step removes sentences about a group more often than fairness_budget allows.

    Without a fairness_budget, everything is allowed.
    """
    if config.fairness_budget is not None:
        check_budget(fairness_ledger(pinned_steps(config)), config.fairness_budget)


def pinned_steps(config: CorpusConfig) -> list[Step]:
    """Return the steps with what they use from outside of the config fixed in their settings.

    This is the names and fingerprints of the files of `decontaminate`, and the source code of user-provided steps.
    """
    return [
        replace(step, user_step=with_program(step.user_step, read_program(step.user_step.function)))
        if step.user_step
        else step
        for step in pin_files(config.steps)
    ]


def run(config: CorpusConfig, context: Context) -> CorpusSummary:
    """Write documents/, drops/, origins/, quarantine/ and the files that describe them. Returns the counts."""
    output, execution = context.output, config.execution
    ranges = plan_ranges(config.sources, execution.task_mib << 20)
    files = number_files(config.sources, ranges)
    work = CorpusWork(
        output=output,
        folder=output / WORK,
        sources=config.sources,
        steps=pinned_steps(config),
        num_parts=num_parts(estimate_text_bytes(config.sources, ranges), config.part_mib),
        forgotten_ids=context.forgotten,
    )
    # Files of a killed run are deleted if one of these settings has changed since then. They depend on no other setting
    # that is not part of the artifact's id.
    work.prepare_folder(
        {
            "task_mib": execution.task_mib,
            "part_tasks": execution.part_tasks,
            "forgotten": sorted(context.forgotten),
        }
    )
    with ThreadPoolExecutor(1) as fairness_thread:
        # A thread of the driver computes the content of fairness.json while the workers run the cleaning tasks. Without
        # workers the tasks run in this process, perhaps under a debugger, which two threads must not share.
        ledger = partial(fairness_ledger, work.steps)
        fairness = None if execution.workers == 0 else fairness_thread.submit(ledger)
        tasks = plan_cleaning_tasks(files, ranges, execution.task_mib << 20)
        cleaned = run_cleaning_tasks(work, tasks, workers=execution.workers)
        names = names_by_source(config.sources, files)
        # Written now, because the errors of an empty corpus and of later phases leave the user these files.
        quarantine_files = [result.quarantine_file for result in cleaned if result.quarantine_file]
        write_quarantine(output, work.folder, quarantine_files, names)
        parts = write_parts(
            work,
            [chunk for result in cleaned for chunk in result.chunk_files],
            mixture=config.mixture,
            part_tasks=execution.part_tasks,
            workers=execution.workers,
        )
    records = [part_record(part) for part in parts.parts]
    # Zero counts for every source, so that the summary also has the sources without a record.
    zero = {source.name: SourceCounts() for source in config.sources}
    summary = summarize(sum_by_source([zero, *(result.counts for result in cleaned)]), records, parts.mixture_shares)
    summary = replace(summary, collapses=find_collapses(summary.sources, config.steps))
    check_not_empty(summary, f"{output.url}/{QUARANTINE}")
    check_unique_ids(
        output, work.folder, len(records), summary.documents, config.sources, workers=config.execution.workers
    )
    output.write_json(PARTS_JSON, to_plain(records))
    judged = fairness.result() if fairness else ledger()
    output.write_json(FAIRNESS, to_plain(judged))
    output.write_json(SAMPLES, to_plain(merge_samples(result.samples for result in cleaned)))
    write_file_names(output, names)
    work.remove_folder()
    context.tracker.log(0, metrics(summary))
    _log_warnings(summary, judged)
    return summary


def _log_warnings(summary: CorpusSummary, ledger: Ledger) -> None:
    """Log the sources that collapsed, and what the fairness ledger says nothing about. The report shows both too."""
    for collapse in summary.collapses:
        log.warning("corpus: %s", describe(collapse))
    for sentence in ledger.not_judged:
        log.warning("corpus: fairness ledger: %s", sentence)


def metrics(summary: CorpusSummary) -> dict[str, float]:
    """Return the counts of the summary by metric key, such as `corpus/read`."""
    return {
        "corpus/read": summary.read,
        "corpus/documents": summary.documents,
        "corpus/bytes": summary.bytes,
        "corpus/quarantined": summary.quarantined,
        **{f"dropped/{reason}": number for reason, number in summary.dropped.items()},
    }


def num_parts(num_bytes: int, part_mib: int) -> int:
    """Return the number of parts of about `part_mib` for `num_bytes` of text.

    The number is at most MAX_PARTS. If more parts would be needed, the parts are larger than `part_mib`.
    """
    wanted = max(1, -(-num_bytes // (part_mib << 20)))
    if wanted > MAX_PARTS:
        log.warning(
            "corpus: about %d GiB of text are split into %d parts, the maximum, of %d MiB instead of part_mib=%d",
            num_bytes >> 30,
            MAX_PARTS,
            num_bytes // MAX_PARTS >> 20,
            part_mib,
        )
    return min(MAX_PARTS, wanted)


@dataclass(frozen=True)
class _Staged:
    """What parts.json and the summary will contain once the staged tables have replaced the tables of the corpus."""

    parts: list[PartRecord]
    summary: CorpusSummary


def forget(config: CorpusConfig, context: Context, artifact: Artifact) -> CorpusSummary | None:
    """Remove the forgotten documents. Documents that were dropped as duplicates of them can take their place.

    Those are deduplicated among themselves, and the ones that are kept are added to the corpus. Only the tables of the
    parts that change are written again. Returns the new summary, or None when nothing changes.
    """
    output, folder = context.output, context.output / _STAGING_FOLDER
    if output.exists(RECORD):
        staged = _stage_forgetting(config, context, artifact)
        if staged is None:
            return None
        folder.write_json(_STAGED_JSON, to_plain(staged))
        start_change(artifact)
    else:  # an earlier call staged all its changes, removed the record in `start_change`, and was then killed
        staged = from_plain(_Staged, folder.read_json(_STAGED_JSON))
    apply_changes(output, folder)
    output.write_json(PARTS_JSON, to_plain(staged.parts))
    if output.exists(SAMPLES):  # a corpus of an earlier version has no samples
        output.write_json(SAMPLES, to_plain(samples_without(read_samples(output), context.forgotten)))
    return staged.summary


def _stage_forgetting(config: CorpusConfig, context: Context, artifact: Artifact) -> _Staged | None:
    """Write the changed tables into the folder `_STAGING_FOLDER`.

    Returns what the other files will contain, or None when the corpus contains none of the forgotten documents.
    """
    summary = artifact.read_summary(CorpusSummary)
    corpus = Corpus(
        output=context.output,
        staging=context.output / _STAGING_FOLDER,
        sources=config.sources,
        steps=pinned_steps(config),
        num_parts=summary.parts,
        mixture_shares=summary.mixture,
        file_urls=[_file_urls(artifact, number) for number in range(len(config.sources))],
        fingerprints={url: digest for files in artifact.record.sources.values() for url, digest in files.items()},
    )
    changes = stage_changes(corpus, context.forgotten)
    if changes is None:
        return None
    if changes.num_unreadable:
        log.warning(
            "%d duplicates of forgotten documents could not take their place: their source files are gone or changed",
            changes.num_unreadable,
        )
    records = {record.name: record for record in read_part_records(context.output)}
    records |= {record.name: record for record in map(part_record, changes.parts)}
    parts = list(records.values())
    remaining = summary_without_forgotten(summary, changes.num_forgotten, parts)
    return _Staged(parts, replace(remaining, collapses=find_collapses(remaining.sources, config.steps)))


def _file_urls(artifact: Artifact, source: int) -> list[str]:
    """Return the URLs of a source's files in the order in which they were read: by archive, then by member.

    `source` is the position of the source in the config. The URL of a file in an archive is `member::archive`. The
    files of several paths are in the order of the paths.
    """
    field_path = f"sources.{source}.path"
    by_path = artifact.record.sources
    names = [field_path] if field_path in by_path else [name for name in by_path if name.startswith(f"{field_path}.")]
    names.sort(key=lambda name: int(name.rpartition(".")[2]) if name != field_path else 0)
    return [url for name in names for url in sorted(by_path[name], key=lambda url: url.split("::")[::-1])]


def values_from_paths(config: CorpusConfig, urls: Mapping[str, Sequence[str]]) -> object:
    """Return the columns that the paths of files give their documents: for each source and file, by the column's name.

    Returns None if no source has such a column.
    """
    columns = {
        field_path: [partition_columns(config.sources[int(field_path.split(".")[1])], url) for url in source_urls]
        for field_path, source_urls in urls.items()
        if field_path.startswith("sources.")
    }
    return columns if any(any(by_file) for by_file in columns.values()) else None


def output_sizes(config: CorpusConfig, planned: PlannedInputs) -> CorpusSizes:
    """Estimate the size of the corpus from the size of its source files."""
    num_bytes = _KEPT_TEXT * sum(size or 0 for source in config.sources for _, size in source_files(source))
    return CorpusSizes(num_bytes=num_bytes, num_parts=max(1, math.ceil(num_bytes / (config.part_mib << 20))))


def workload(config: CorpusConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from.

    The time for reading and for each cleaning step is in proportion to the bytes of text.
    """
    sizes = [(url, size or 0) for source in config.sources for url, size in source_files(source)]
    num_mb = sum(estimate_content_bytes(url, size) for url, size in sizes) / 1e6
    # The number of tasks is rounded down, because a worker that gets only a small last task saves almost no time.
    tasks = max(1, math.floor(num_mb / config.execution.task_mib))
    workers = num_parallel_tasks(config.execution.workers, tasks)
    # Each worker is assumed to hold three copies of the text of the task that it runs.
    text_gib = 3 * min(num_mb * 1e6 / workers, config.execution.task_mib << 20) / 2**30
    return Workload(
        processes=[Processes(kind="task", number=workers, memory_gib=text_gib)],
        python_s=num_mb * (_READ_S_PER_MB + _STEP_S_PER_MB * len(config.steps)),
        python_processes=workers,
        disk_gib=_COMPRESSED * num_mb / 1000,
    )


STAGE = Stage(
    name="corpus",
    version=6,
    kind="corpus",
    config=CorpusConfig,
    run=run,
    output_sizes=output_sizes,
    check=check,
    check_sources=check_files_and_fairness,
    values_from_paths=values_from_paths,
    workload=workload,
    report=report_corpus,
    forget=forget,
)
