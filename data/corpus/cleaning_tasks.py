"""The first half of a corpus: tasks that read ranges of the source files, clean the documents and write chunks."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import BinaryIO, NamedTuple

from cluster.plain import to_plain
from cluster.tasks import run_tasks
from data.corpus.accounting import SourceCounts
from data.corpus.chunks import ChunkWriter, PartRow, clean_rows
from data.corpus.origins import FilesOfSource
from data.corpus.quarantine import quarantine_lines
from data.corpus.work import CorpusWork
from data.document import Document, Quarantined, ReadRange, SkippedRecord, Source
from data.sources.compression import is_compressed
from data.sources.readers import read_records

_BATCH_DOCUMENTS = 512
_BATCH_BYTES = 16 << 20
_OPENING_BYTES = 1 << 10
"""Opening a file takes as long as reading so much."""

EXPANSION = 4
"""About how many bytes of text a byte of a compressed file holds; only the number of parts depends on it."""

Record = Document | Quarantined | SkippedRecord


class FileRange(NamedTuple):
    """A range to read, with the number of its file among its source's files."""

    file: int
    range: ReadRange


@dataclass(frozen=True)
class CleaningTask:
    ranges: list[FileRange]


@dataclass(frozen=True)
class CleanedRanges:
    """What a cleaning task wrote."""

    chunk_files: list[str]
    quarantine_file: str | None
    """The file of its bad records, if it met any."""
    counts: dict[str, SourceCounts]
    """By source."""


def text_bytes(sources: Sequence[Source], ranges: Sequence[ReadRange]) -> int:
    """About how many bytes of text the ranges hold: a function of the files' formats, names and sizes alone."""
    is_packed = [source.format == "parquet" for source in sources]
    return sum(
        range_.num_bytes * (EXPANSION if is_packed[range_.source] or is_compressed(range_.url) else 1)
        for range_ in ranges
    )


def cleaning_tasks(files: Sequence[FilesOfSource], ranges: Sequence[ReadRange], task_bytes: int) -> list[CleaningTask]:
    """Consecutive ranges in tasks of about `task_bytes` each, so that many small files make few tasks."""
    tasks: list[CleaningTask] = []
    size = 0
    for range_ in ranges:
        num_bytes = max(range_.num_bytes, _OPENING_BYTES)
        if not tasks or size + num_bytes > task_bytes:
            tasks.append(CleaningTask([]))
            size = 0
        tasks[-1].ranges.append(FileRange(files[range_.source][range_.url], range_))
        size += num_bytes
    return tasks


def clean_all(work: CorpusWork, tasks: Sequence[CleaningTask], *, workers: int | None) -> list[CleanedRanges]:
    """Do every task that is not done yet."""
    return run_tasks(
        partial(clean_ranges, work=work),
        tasks,
        result_type=CleanedRanges,
        workers=workers,
        label="corpus: read and clean",
        result_folder=work.result_folder("clean"),
    )


def clean_ranges(task: CleaningTask, *, work: CorpusWork) -> CleanedRanges:
    """Read and clean a task's ranges into chunks, and its bad records into a quarantine file."""
    key = hashlib.sha256(json.dumps(to_plain(task)).encode()).hexdigest()[:16]
    chunks = ChunkWriter(work.folder, f"chunks/{key}", work.num_parts, deduplicate=work.drops_exact_duplicates)
    name = f"quarantine/{key}.jsonl"
    quarantine: BinaryIO | None = None
    counts: dict[str, SourceCounts] = {}
    with ExitStack() as open_files:
        for batch in _batches(task, work.sources):
            if bad := [record for record in batch.records if isinstance(record, Quarantined)]:
                quarantine = quarantine or open_files.enter_context(work.folder.writing(name))
                quarantine.writelines(quarantine_lines(bad))
            cleaned = _clean_batch(batch, work)
            counts[batch.source.name] = counts.get(batch.source.name, SourceCounts()) + cleaned.counts
            chunks.add(cleaned.rows)
    return CleanedRanges(chunks.close(), name if quarantine else None, counts)


class _Batch(NamedTuple):
    """Some records of one source."""

    source: Source
    files: FilesOfSource
    """The files that they may be from."""
    records: list[Record]


class _CleanedBatch(NamedTuple):
    rows: list[PartRow]
    counts: SourceCounts


def _clean_batch(batch: _Batch, work: CorpusWork) -> _CleanedBatch:
    """The row of every document of a batch, and the counts of its records."""
    documents = [record for record in batch.records if isinstance(record, Document)]
    remembered = [document for document in documents if document.id not in work.forgotten_ids]
    cleaned = clean_rows(
        remembered, work.steps, fraction=batch.source.fraction, files=batch.files, num_parts=work.num_parts
    )
    num_bad = sum(isinstance(record, Quarantined) for record in batch.records)
    counts = SourceCounts(
        read=num_bad + len(documents),
        quarantined=num_bad,
        others=len(batch.records) - num_bad - len(documents),
        bytes_read=sum(len(document.text.encode()) for document in documents),
        dropped={"forgotten": len(documents) - len(remembered)},
        changed=dict(cleaned.changed),
    )
    return _CleanedBatch(cleaned.rows, counts)


def _batches(task: CleaningTask, sources: Sequence[Source]) -> Iterator[_Batch]:
    """The records of a task's ranges, in batches of one source each."""
    for source, file_ranges in groupby(task.ranges, key=lambda file_range: sources[file_range.range.source]):
        ranges = list(file_ranges)
        files = {range_.url: file for file, range_ in ranges}
        for records in _bounded_batches(record for _, range_ in ranges for record in read_records(source, range_)):
            yield _Batch(source, files, records)


def _bounded_batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in lists that are bounded in number and in bytes."""
    batch: list[Record] = []
    num_bytes = 0
    for record in records:
        batch.append(record)
        num_bytes += len(record.text) if isinstance(record, Document) else 0
        if len(batch) == _BATCH_DOCUMENTS or num_bytes > _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch
