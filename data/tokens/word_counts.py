"""Counts how often each word occurs in a sample of a corpus. Tokenizers are trained on these counts.

    documents/part-* ─ count ─▶ words/<part> ─ merge ─▶ merged/<bucket>
                     (a task for each part)   (a task for each bucket)

A bucket holds the words whose hash has the same value modulo the number of buckets. The counts do not depend on the
number of parts or workers, because sums do not depend on the order of their terms.

The memory that this needs does not grow with the text. A task writes its counts whenever they fill its memory, and
there are more buckets for a larger sample. One process trains on all words, so of more words than it can hold, it gets
a sample. In a script without spaces every phrase is a word, and nearly all of them are distinct, so this happens there.
The sample is a threshold sample (Duffield, Lund and Thorup 2005). A word that occurs at least `threshold` times is
always in it. A rarer word, with count c, is in it with probability c / threshold, decided by its hash, and then counts
as if it occurred `threshold` times. So the expected counts of all tokens and pairs are those of the whole text.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.chunk_files import read_table, write_tables
from data.document import unit_hash
from data.tokens.documents import CorpusText, read_documents
from data.tokens.tokenizer_recipe import TokenizerRecipe
from data.tokens.tokenizer_training import count_words

_MIN_BUCKETS = 16  # Buckets are merged in parallel, one task each.
_BUCKET_BYTES = 1 << 24  # bytes of text whose words are in one bucket, if all of them are distinct
_MAX_TRAINED_CHARACTERS = 1 << 25
"""The words that a tokenizer is trained on have about this many characters at most (bytes, for `bpe`)."""
_MAX_LISTED_COUNT = 1 << 12  # Sizes are listed for each count below this number.
_WORD_SCHEMA = pa.schema([("word", pa.large_string()), ("count", pa.int64())])


class WordCounts(NamedTuple):
    """The words in a sample of a corpus and how often they occur."""

    words: list[str]
    """The distinct words."""
    counts: list[int]
    """The count of each word, in the order of `words`. If words are left out, it is at least `threshold`."""
    threshold: int
    """Words that occur less often may be left out (see the module's docstring). 1 if no word is left out."""
    distinct: int
    """Number of distinct words in the sample of the corpus, those that are left out included."""
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
    num_buckets: int


@dataclass(frozen=True)
class _CountedPart:
    """The result of counting the words of a part."""

    words: list[str]
    """Names of the files with the part's words and counts. Each file has a table for each bucket."""
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
    characters: list[int]
    """Characters of the words by their count: first those of the words that occur once. The last item is for all words
    that occur at least `_MAX_LISTED_COUNT` times."""


def count_sample(
    corpus: CorpusText, work: Storage, recipe: TokenizerRecipe, *, first: float, num_bytes: int, workers: int | None
) -> WordCounts:
    """Count the words of the sample: of the documents whose `split_position` is at least `first`.

    `num_bytes` is the approximate size of the sample, which decides the number of buckets. `work` is a temporary folder
    for the results and files of the tasks.
    """
    num_buckets = max(_MIN_BUCKETS, -(-num_bytes // _BUCKET_BYTES))
    counted = run_tasks(
        partial(_count_part, corpus=corpus.storage, work=work, recipe=recipe),
        [_CountTask(corpus.digest, part, first, num_buckets) for part in corpus.parts],
        result_type=_CountedPart,
        workers=workers,
        label="vocabulary: count words",
        result_folder=work / "count",
    )
    files = [name for part in counted for name in part.words]
    merged = run_tasks(
        partial(_merge_bucket, work=work),
        [_MergeTask(corpus.digest, bucket, files) for bucket in range(num_buckets)],
        result_type=_MergedBucket,
        workers=workers,
        label="vocabulary: add counts",
        result_folder=work / "merge",
    )
    threshold = _choose_threshold(np.sum([bucket.characters for bucket in merged], axis=0))
    words: list[str] = []
    counts: list[int] = []
    for bucket in merged:
        bucket_words, bucket_counts = _sample_bucket(work, bucket.words, threshold)
        words += bucket_words
        counts += bucket_counts
    return WordCounts(
        words=words,
        counts=counts,
        threshold=threshold,
        distinct=sum(bucket.distinct for bucket in merged),
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

    names: list[str] = []
    for words in count_words(texts(), recipe):
        names.append(f"words/{Path(task.part).stem}-{len(names):03d}.arrow")
        write_tables(work, names[-1], _bucket_tables(words, task.num_buckets))
    return _CountedPart(names, num_documents, num_bytes)


def _bucket_tables(words: Mapping[str, int], num_buckets: int) -> list[pa.Table]:
    """Return a table with the words and counts of each bucket."""
    columns: list[tuple[list[str], list[int]]] = [([], []) for _ in range(num_buckets)]
    for word, count in words.items():
        bucket_words, bucket_counts = columns[zlib.crc32(word.encode()) % num_buckets]
        bucket_words.append(word)
        bucket_counts.append(count)
    return [pa.table(list(pair), schema=_WORD_SCHEMA) for pair in columns]


def _merge_bucket(task: _MergeTask, *, work: Storage) -> _MergedBucket:
    """Add up the counts of one bucket over all parts, and write the sorted words to a file in `work`."""
    table = read_table(work, task.files, task.bucket, _WORD_SCHEMA)
    sums = table.group_by("word").aggregate([("count", "sum")]).sort_by("word")
    merged = pa.table([sums["word"], sums["count_sum"]], schema=_WORD_SCHEMA)
    name = f"merged/{task.bucket:05d}.arrow"
    write_tables(work, name, [merged])
    listed = np.minimum(merged["count"].to_numpy(), _MAX_LISTED_COUNT)
    lengths = pc.call_function("utf8_length", [merged["word"]]).to_numpy()
    characters = np.bincount(listed, weights=lengths, minlength=_MAX_LISTED_COUNT + 1)[1:].astype(np.int64)
    return _MergedBucket(name, merged.num_rows, characters.tolist())


def _choose_threshold(characters: np.ndarray) -> int:
    """Return the lowest threshold with which the sample has at most `_MAX_TRAINED_CHARACTERS` characters.

    `characters` are the characters of all words by their count (`_MergedBucket.characters`).
    """
    counts = np.arange(1, len(characters) + 1)

    def is_too_large(threshold: int) -> bool:
        return float((characters * np.minimum(1, counts / threshold)).sum()) > _MAX_TRAINED_CHARACTERS

    low, high = 1, 1
    while is_too_large(high):
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if is_too_large(middle) else (low, middle)
    return low


def _sample_bucket(work: Storage, name: str, threshold: int) -> tuple[list[str], list[int]]:
    """Return the words of a bucket that are in the threshold sample, and the counts that they are trained with."""
    table = read_table(work, [name], 0, _WORD_SCHEMA)  # The file of a merged bucket has only one table.
    words, counts = table["word"].to_pylist(), table["count"].to_pylist()
    if threshold == 1:
        return words, counts
    kept = [
        (word, max(count, threshold))
        for word, count in zip(words, counts, strict=True)
        if count >= threshold or unit_hash(word, "vocabulary") < count / threshold
    ]
    return [word for word, _ in kept], [count for _, count in kept]
