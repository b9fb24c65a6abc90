"""Counts how often each word occurs in a sample of a corpus. Tokenizers are trained on these counts.

    documents/part-* ─ count ─▶ words/<part> ─ merge ─▶ merged/<bucket>
                     (a task for each part)   (a task for each bucket)

A bucket holds the words whose hash has the same value modulo the number of buckets. The counts do not depend on the
number of parts or workers, because sums do not depend on the order of their terms.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.chunk_files import read_table, write_tables
from data.tokens.documents import CorpusText, read_documents
from data.tokens.tokenizer_recipe import TokenizerRecipe
from data.tokens.tokenizer_training import count_words

_NUM_BUCKETS = 16  # Buckets are merged in parallel, one task each.
_WORD_SCHEMA = pa.schema([("word", pa.large_string()), ("count", pa.int64())])


class WordCounts(NamedTuple):
    """The words in a sample of a corpus and how often they occur."""

    words: list[str]
    """The distinct words."""
    counts: list[int]
    """The count of each word, in the order of `words`."""
    sampled_documents: int
    """Number of documents in the sample."""
    sampled_bytes: int
    """Size of the text of these documents in bytes."""


@dataclass(frozen=True)
class _CountTask:
    """A corpus part whose words are counted."""

    corpus: str
    """Content digest of the corpus (`CorpusText.digest`)."""
    part: str
    """Name of the part's file in the corpus."""
    first: float
    """The documents with a `split_position` of at least this number are in the sample."""


@dataclass(frozen=True)
class _CountedPart:
    """The result of counting the words of a part."""

    words: str
    """Name of the file with the part's words and counts. The file has a table for each bucket."""
    sampled_documents: int
    sampled_bytes: int


@dataclass(frozen=True)
class _MergeTask:
    """A bucket in which the counts of all parts are added up."""

    corpus: str
    """Content digest of the corpus."""
    bucket: int
    """Number of the bucket."""
    files: list[str]
    """Names of the files that the count tasks have written, one for each part."""


@dataclass(frozen=True)
class _MergedBucket:
    """The result of merging a bucket."""

    words: str
    """Name of the file with the bucket's words and counts."""
    distinct: int
    """Number of distinct words."""


def count_sample(
    corpus: CorpusText, work: Storage, recipe: TokenizerRecipe, *, first: float, workers: int | None
) -> WordCounts:
    """Count the words of the sample: of the documents whose `split_position` is at least `first`.

    `work` is a temporary folder for the results and files of the tasks.
    """
    counted = run_tasks(
        partial(_count_part, corpus=corpus.storage, work=work, recipe=recipe),
        [_CountTask(corpus.digest, part, first) for part in corpus.parts],
        result_type=_CountedPart,
        workers=workers,
        label="vocabulary: count words",
        result_folder=work / "count",
    )
    files = [part.words for part in counted]
    merged = run_tasks(
        partial(_merge_bucket, work=work),
        [_MergeTask(corpus.digest, bucket, files) for bucket in range(_NUM_BUCKETS)],
        result_type=_MergedBucket,
        workers=workers,
        label="vocabulary: add counts",
        result_folder=work / "merge",
    )
    # The file of a merged bucket has only one table, so its number is 0.
    table = read_table(work, [bucket.words for bucket in merged], 0, _WORD_SCHEMA)
    return WordCounts(
        words=table["word"].to_pylist(),
        counts=table["count"].to_pylist(),
        sampled_documents=sum(part.sampled_documents for part in counted),
        sampled_bytes=sum(part.sampled_bytes for part in counted),
    )


def _count_part(task: _CountTask, *, corpus: Storage, work: Storage, recipe: TokenizerRecipe) -> _CountedPart:
    """Count the words of the sampled documents of a part, and write them to a file in `work`."""
    num_documents = num_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal num_documents, num_bytes
        for document in read_documents(corpus, task.part, lambda position: position >= task.first):
            num_documents += 1
            num_bytes += len(document.text.encode())
            yield document.text

    words: list[list[str]] = [[] for _ in range(_NUM_BUCKETS)]
    counts: list[list[int]] = [[] for _ in range(_NUM_BUCKETS)]
    for word, count in sorted(count_words(texts(), recipe).items()):
        bucket = zlib.crc32(word.encode()) % _NUM_BUCKETS
        words[bucket].append(word)
        counts[bucket].append(count)
    name = f"words/{Path(task.part).stem}.arrow"
    tables = [pa.table(list(columns), schema=_WORD_SCHEMA) for columns in zip(words, counts, strict=True)]
    write_tables(work, name, tables)
    return _CountedPart(name, num_documents, num_bytes)


def _merge_bucket(task: _MergeTask, *, work: Storage) -> _MergedBucket:
    """Add up the counts of one bucket over all parts, and write the sorted words to a file in `work`."""
    table = read_table(work, task.files, task.bucket, _WORD_SCHEMA)
    sums = table.group_by("word").aggregate([("count", "sum")]).sort_by("word")
    merged = pa.table([sums["word"], sums["count_sum"]], schema=_WORD_SCHEMA)
    name = f"merged/{task.bucket:05d}.arrow"
    write_tables(work, name, [merged])
    return _MergedBucket(name, merged.num_rows)
