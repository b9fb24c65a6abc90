"""The first half of the `corpus` stage: tasks read ranges of the source files, clean the documents and write chunks.

A chunk is an intermediate file that the tasks of the second half read (`chunks.py`, `part_tasks.py`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import BinaryIO, NamedTuple

from cluster.tasks import run_tasks, task_key
from data.cleaning.changes import ChangeSample, SamplesByStep, merge_samples
from data.corpus.accounting import SourceCounts
from data.corpus.chunks import ChunkWriter, PartRow, clean_rows
from data.corpus.origins import FileNumbers
from data.corpus.quarantine import quarantine_lines
from data.corpus.work import CorpusWork
from data.document import Document, Quarantined, ReadRange, SkippedRecord, Source
from data.sources.compression import CONTENT_BYTES_PER_COMPRESSED_BYTE, estimate_content_bytes
from data.sources.readers import read_records

_BATCH_RECORDS = 512
"""Maximum number of records in a batch, including records that are not documents."""
_BATCH_CHARACTERS = 16 << 20
"""A batch ends when its texts have more characters than this."""
_MIN_FILE_BYTES = 1 << 10
"""When files are grouped into tasks, a smaller file counts as if it had this size, because opening a file takes as long
as reading 1 KiB."""

ReadResult = Document | Quarantined | SkippedRecord


class FileRange(NamedTuple):
    """A range to read, and the number of its file among the files of its source."""

    file_number: int
    read_range: ReadRange


@dataclass(frozen=True)
class CleaningTask:
    """The ranges that one task reads and cleans."""

    ranges: list[FileRange]


@dataclass(frozen=True)
class CleanedRanges:
    """What a cleaning task wrote."""

    chunk_files: list[str]
    """Names of its chunks."""
    quarantine_file: str | None
    """Name of the file with its quarantined records. None if all records could be read."""
    counts: dict[str, SourceCounts]
    """Counts for each source. The keys are the names of the sources."""
    samples: dict[str, dict[str, list[ChangeSample]]]
    """Samples of the texts that each step changed (`data.cleaning.changes.SamplesBySource`)."""


def estimate_text_bytes(sources: Sequence[Source], ranges: Sequence[ReadRange]) -> int:
    """Estimate how many bytes of text the ranges contain. Depends only on formats, names and sizes of the files.

    A Parquet file counts as compressed.
    """
    is_parquet = [source.format == "parquet" for source in sources]
    return sum(
        read_range.num_bytes * CONTENT_BYTES_PER_COMPRESSED_BYTE
        if is_parquet[read_range.source]
        else estimate_content_bytes(read_range.url, read_range.num_bytes)
        for read_range in ranges
    )


def plan_cleaning_tasks(
    files: Sequence[FileNumbers], ranges: Sequence[ReadRange], task_bytes: int
) -> list[CleaningTask]:
    """Group consecutive ranges into tasks of at most `task_bytes` of source files. One task can read many small files.

    A range with more bytes is a task of its own. `files` has the numbers of the files of each source, in the order of
    the sources (`number_files`).
    """
    tasks: list[CleaningTask] = []
    bytes_in_task = 0
    for read_range in ranges:
        num_bytes = max(read_range.num_bytes, _MIN_FILE_BYTES)
        if not tasks or bytes_in_task + num_bytes > task_bytes:
            tasks.append(CleaningTask([]))
            bytes_in_task = 0
        tasks[-1].ranges.append(FileRange(files[read_range.source][read_range.url], read_range))
        bytes_in_task += num_bytes
    return tasks


def run_cleaning_tasks(work: CorpusWork, tasks: Sequence[CleaningTask], *, workers: int | None) -> list[CleanedRanges]:
    """Run the tasks that no earlier run has finished. Returns the results of all tasks in the order of the tasks."""
    return run_tasks(
        partial(clean_ranges, work=work),
        tasks,
        result_type=CleanedRanges,
        workers=workers,
        label="corpus: read and clean",
        result_folder=work.result_folder("clean"),
    )


def clean_ranges(task: CleaningTask, *, work: CorpusWork) -> CleanedRanges:
    """Read and clean the ranges of a task. Writes chunks of rows, and a quarantine file if a record is unreadable."""
    key = task_key(task)
    chunks = ChunkWriter(work.folder, f"chunks/{key}", work.num_parts, deduplicate=work.drops_exact_duplicates)
    name = f"quarantine/{key}.jsonl"
    quarantine: BinaryIO | None = None
    counts: dict[str, SourceCounts] = {}
    samples: dict[str, dict[str, list[ChangeSample]]] = {}
    with ExitStack() as open_files:
        for batch in _batches(task, work.sources):
            if bad := [record for record in batch.records if isinstance(record, Quarantined)]:
                quarantine = quarantine or open_files.enter_context(work.folder.writing(name))
                quarantine.writelines(quarantine_lines(bad))
            cleaned = _clean_batch(batch, work)
            counts[batch.source.name] = counts.get(batch.source.name, SourceCounts()) + cleaned.counts
            samples = merge_samples([samples, {batch.source.name: cleaned.samples}])
            chunks.add(cleaned.rows)
    return CleanedRanges(chunks.close(), name if quarantine else None, counts, samples)


class _Batch(NamedTuple):
    """Consecutive records of one source."""

    source: Source
    files: FileNumbers
    """Numbers of the files that the records may come from."""
    records: list[ReadResult]


class _CleanedBatch(NamedTuple):
    """The rows of a batch's documents, the counts that cannot be computed from the rows, and samples of changes."""

    rows: list[PartRow]
    counts: SourceCounts
    samples: SamplesByStep


def _clean_batch(batch: _Batch, work: CorpusWork) -> _CleanedBatch:
    """Clean the documents of a batch."""
    documents = [record for record in batch.records if isinstance(record, Document)]
    not_forgotten = [document for document in documents if document.id not in work.forgotten_ids]
    cleaned = clean_rows(
        not_forgotten, work.steps, fraction=batch.source.fraction, files=batch.files, num_parts=work.num_parts
    )
    num_bad = sum(isinstance(record, Quarantined) for record in batch.records)
    counts = SourceCounts(
        read=num_bad + len(documents),
        quarantined=num_bad,
        others=len(batch.records) - num_bad - len(documents),
        other_kinds=Counter(record.kind for record in batch.records if isinstance(record, SkippedRecord)),
        bytes_read=sum(len(document.text.encode()) for document in documents),
        dropped={"forgotten": len(documents) - len(not_forgotten)},
        changed=dict(cleaned.num_changes),
    )
    return _CleanedBatch(cleaned.rows, counts, cleaned.samples)


def _batches(task: CleaningTask, sources: Sequence[Source]) -> Iterator[_Batch]:
    """Yield the records of a task's ranges in batches. Each batch has records of one source."""
    for source, file_ranges in groupby(task.ranges, key=lambda file_range: sources[file_range.read_range.source]):
        ranges = list(file_ranges)
        files = {read_range.url: file_number for file_number, read_range in ranges}
        results = (result for _, read_range in ranges for result in read_records(source, read_range))
        for records in _bounded_batches(results):
            yield _Batch(source, files, records)


def _bounded_batches(records: Iterable[ReadResult]) -> Iterator[list[ReadResult]]:
    """Group the records into batches of limited length (`_BATCH_RECORDS`, `_BATCH_CHARACTERS`)."""
    batch: list[ReadResult] = []
    num_characters = 0
    for record in records:
        batch.append(record)
        num_characters += len(record.text) if isinstance(record, Document) else 0
        if len(batch) == _BATCH_RECORDS or num_characters > _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
