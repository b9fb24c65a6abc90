"""Reads shards: training rows by their index, and complete documents.

A source is a data set of the corpus, such as "web" or "books". A shard stores its documents grouped by source. The
documents of one source in a shard are a range. Each range is cut into training rows of T targets, where T is the
sequence length. The last row of a range may be shorter. Two numbers identify a row:

- The row number counts the rows of a split in the order in which they are stored: shard by shard, range by range.
- The index counts rows in the order in which they are trained on, over all epochs. `ShardReader.row_numbers` maps
  indices to row numbers.

In shapes, B is the number of rows in a batch.
"""

import difflib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cluster.storage import Storage
from data.tokens.mixture import Mixture
from data.tokens.shard_cache import local_file
from data.tokens.shard_format import (
    DOCUMENT_DTYPE,
    ShardInfo,
    ShardManifest,
    SourceRange,
    document_key,
    read_manifest,
    shard_files,
)
from data.tokens.shuffle import epoch_order
from data.tokens.training_rows import PaddedRows, TrainingRow, pad_rows

_MAX_OPEN_SHARDS = 64  # shards that a reader keeps memory-mapped; each shard has two files
_READ_AHEAD_THREADS = 4


class StoredDocument(NamedTuple):
    """A complete document from a shard."""

    tokens: np.ndarray
    """The token that documents begin with, the document's n tokens and the separator, int64 [n + 2]."""
    num_bytes: int
    """Size of the document's text in bytes."""
    source: str
    key: int
    """Hash of the document's id (`document_key`)."""


class _SourceRows(NamedTuple):
    """Where the rows of one source are."""

    range_indices: np.ndarray
    """Positions of the source's ranges in `ShardReader._ranges`, in ascending order."""
    cumulative_rows: np.ndarray
    """For each of these ranges, how many rows of the source are in this range and in the source's ranges before it."""


class ShardReader:
    """Reads the training rows of a split by index, and its documents.

    Creating a reader is cheap, because a shard is opened and verified only when it is first read. Shard files are
    memory-mapped; the `_MAX_OPEN_SHARDS` most recently used shards stay mapped. The shard files of a remote split are
    copied to the local disk, which must have room for the entire split.
    """

    def __init__(
        self,
        split: Storage,
        *,
        sequence_length: int,
        seed: int = 0,
        mixture: Mapping[str, float] | None = None,
        tokenizer_fingerprint: str | None = None,
    ) -> None:
        """Open the split for reading rows of `sequence_length` targets in an order that depends on `seed`.

        `mixture` maps every source of the split to a weight. The number of targets that are read from a source is
        proportional to its weight. Without a mixture, every row is read once in each epoch. With
        `tokenizer_fingerprint`, the shards must have been made with the tokenizer that has this fingerprint.

        Raises ValueError if the sequence length is below 1, if the manifest is missing or has another format version,
        if the shards were made with another tokenizer, if the mixture does not name exactly the sources with text in
        the split, or if `Mixture` does not accept the weights.
        """
        if sequence_length < 1:
            raise ValueError(f"sequence_length: {sequence_length} must be at least 1")
        self.split, self.sequence_length, self.seed = split, sequence_length, seed
        self.manifest = read_manifest(split)
        if tokenizer_fingerprint is not None:
            check_tokenizer(split, self.manifest, tokenizer_fingerprint)
        self._ranges: list[tuple[int, SourceRange]] = [
            (shard_index, source_range)
            for shard_index, info in enumerate(self.manifest.shards)
            for source_range in info.source_ranges
        ]
        """(index of the shard in the manifest, range) of every range, in the order in which ranges are stored."""
        self._rows_per_range = np.array(
            [-(-source_range.num_targets // sequence_length) for _, source_range in self._ranges], dtype=np.int64
        )
        self._range_ends = np.cumsum(self._rows_per_range)
        """For each range, the row number of the first row after it."""
        self._mixture = None
        if mixture is not None:
            _check_sources(split, self.manifest, mixture)
            # A source whose rows have fewer targets gets more rows, so that its weight is a share of the targets.
            self._mixture = Mixture(mixture, targets_per_row=self._targets_per_row(mixture))
        self._open_shards: OrderedDict[int, _Shard] = OrderedDict()
        """The memory-mapped shards by their index in the manifest; the most recently used shard is last."""
        self._verified: set[str] = set()
        """Names of the files whose checksum was verified."""
        self._lock = threading.Lock()
        self._opening_locks = [threading.Lock() for _ in self.manifest.shards]

    @property
    def num_rows(self) -> int:
        """Number of different rows: those of all sources, or with a mixture those of the sources with a weight above
        0."""
        return sum(self.num_rows_by_source.values())

    @cached_property
    def num_rows_by_source(self) -> dict[str, int]:
        """Number of rows of each source. Sources with the weight 0 are left out."""
        sources = self.manifest.sources if self._mixture is None else self._mixture.sources
        return {name: self._num_source_rows(name) for name in sources}

    def row_numbers(self, indices: Iterable[int]) -> np.ndarray:
        """Return the row numbers of the rows at these indices (0, 1, 2, … over all epochs), as int64.

        Without a mixture, each epoch is a random permutation of all rows. With a mixture, each index belongs to a
        source. The rows of a source are read in random permutations, so no row is repeated before all rows of its
        source were read.
        """
        key = f"{self.manifest.digest}:{self.sequence_length}"
        if self._mixture is None:
            return epoch_order(indices, self.num_rows, seed=self.seed, key=key)
        row_numbers: list[int] = []
        for index in indices:
            source, index_in_source = self._mixture.source_row(index)
            num_rows = self.num_rows_by_source[source]
            (row_in_source,) = epoch_order([index_in_source], num_rows, seed=self.seed, key=f"{key}:{source}")
            row_numbers.append(self._row_number(source, int(row_in_source)))
        return np.array(row_numbers, dtype=np.int64)

    def row(self, index: int) -> TrainingRow:
        """Return the row at an index. Without a mixture, the index belongs to epoch `index // num_rows`."""
        return self._read_row(int(self.row_numbers([index])[0]))

    def rows(self, indices: Iterable[int]) -> PaddedRows:
        """Return the rows at these indices as arrays [B, T]."""
        return pad_rows([self._read_row(int(number)) for number in self.row_numbers(indices)], self.sequence_length)

    def read_ahead(self, batches: Iterable[Iterable[int]], *, num_batches: int = 2) -> Iterator[PaddedRows]:
        """Yield `rows(indices)` for the indices of every batch.

        Threads read up to `num_batches` batches before the caller asks for them. So the shards of the next batches are
        downloaded from object storage while the model trains on the current batch.
        """
        if num_batches < 1:
            raise ValueError(f"num_batches: {num_batches} must be at least 1")
        pending: deque[Future[PaddedRows]] = deque()
        with ThreadPoolExecutor(_READ_AHEAD_THREADS, thread_name_prefix="read-ahead") as threads:
            for indices in batches:
                pending.append(threads.submit(self.rows, indices))
                if len(pending) > num_batches:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def documents(self) -> Iterator[StoredDocument]:
        """Yield every document of the split, in the order in which the documents are stored."""
        for shard_index, info in enumerate(self.manifest.shards):
            if not info.num_documents:
                continue
            shard = self._shard(shard_index)
            ends = np.append(shard.document_starts[1:], info.num_tokens - 1)
            for record, start, end in zip(shard.documents, shard.document_starts, ends, strict=True):
                tokens = shard.tokens[start : end + 1].astype(np.int64)
                tokens[0] = self.manifest.begin
                yield StoredDocument(
                    tokens=tokens,
                    num_bytes=int(record["num_bytes"]),
                    source=self.manifest.sources[int(record["source"])],
                    key=int(record["id"]),  # the column `id` holds keys
                )

    def _targets_per_row(self, mixture: Mapping[str, float]) -> dict[str, Fraction]:
        """Return the mean number of targets in a row, for each source that has a weight above 0."""
        targets = self.manifest.targets_by_source
        return {name: Fraction(targets[name], self._num_source_rows(name)) for name in mixture if mixture[name]}

    def _num_source_rows(self, source: str) -> int:
        return int(self._rows_per_range[self._range_indices(source)].sum())

    def _range_indices(self, source: str) -> np.ndarray:
        """Return the positions of a source's ranges in `_ranges`."""
        source_index = self.manifest.sources.index(source)
        return np.array(
            [index for index, (_, source_range) in enumerate(self._ranges) if source_range.source == source_index],
            dtype=np.int64,
        )

    @cached_property
    def _row_locations_by_source(self) -> dict[str, _SourceRows]:
        """For each source that is read, where its rows are."""
        range_indices = {source: self._range_indices(source) for source in self.num_rows_by_source}
        return {
            source: _SourceRows(indices, np.cumsum(self._rows_per_range[indices]))
            for source, indices in range_indices.items()
        }

    def _row_number(self, source: str, row_in_source: int) -> int:
        """Return the row number of a row of `source`. `row_in_source` counts the rows of this source from 0."""
        range_indices, cumulative_rows = self._row_locations_by_source[source]
        position = int(np.searchsorted(cumulative_rows, row_in_source, side="right"))
        rows_to_range_end = cumulative_rows[position] - row_in_source
        return int(self._range_ends[range_indices[position]] - rows_to_range_end)

    def _read_row(self, row_number: int) -> TrainingRow:
        range_index = int(np.searchsorted(self._range_ends, row_number, side="right"))
        shard_index, source_range = self._ranges[range_index]
        shard = self._shard(shard_index)
        first_row_of_range = int(self._range_ends[range_index] - self._rows_per_range[range_index])
        first = source_range.first + (row_number - first_row_of_range) * self.sequence_length
        last = min(first + self.sequence_length, source_range.first + source_range.num_targets)
        low, high = np.searchsorted(shard.document_starts, [first, last])
        tokens = shard.tokens[first : last + 1].astype(np.int64)
        document_starts = shard.document_starts[low:high] - first
        inputs = tokens[:-1].copy()
        inputs[document_starts] = self.manifest.begin
        return TrainingRow(inputs, tokens[1:], document_starts)

    def _shard(self, shard_index: int) -> "_Shard":
        """Return the memory-mapped files of a shard. If several threads ask for the shard, only one opens it."""
        with self._opening_locks[shard_index]:
            with self._lock:
                if shard := self._open_shards.get(shard_index):
                    self._open_shards.move_to_end(shard_index)
                    return shard
            shard = _open_shard(self.split, self.manifest, shard_index, self._verified)
            with self._lock:
                self._open_shards[shard_index] = shard
                if len(self._open_shards) > _MAX_OPEN_SHARDS:
                    self._open_shards.popitem(last=False)
            return shard


def _check_sources(split: Storage, manifest: ShardManifest, mixture: Mapping[str, float]) -> None:
    """Raises ValueError unless the mixture names exactly the sources that have text in the split.

    A source of the corpus that has no text in this split may be named with the weight 0.
    """
    present = {name for name, num_targets in manifest.targets_by_source.items() if num_targets}
    for name, weight in mixture.items():
        if name not in present and (weight or name not in manifest.sources):
            near = difflib.get_close_matches(name, manifest.sources, n=1)
            hint = f"; did you mean {near[0]!r}?" if near and near[0] != name else ""
            raise ValueError(
                f"mixture: {split.url} has no text of source {name!r}{hint} (its sources: {', '.join(sorted(present))})"
            )
    if missing := sorted(present - mixture.keys()):
        raise ValueError(
            f"mixture: source {missing[0]!r} has no weight; add one for it, or set it to 0 to leave the source out"
        )


def check_tokenizer(split: Storage, manifest: ShardManifest, fingerprint: str) -> None:
    """Raises ValueError unless the shards were made with the tokenizer that has this fingerprint."""
    if manifest.tokenizer != fingerprint:
        raise ValueError(
            f"{split.url}: these shards were made with tokenizer {manifest.tokenizer}, not with tokenizer "
            f"{fingerprint} (both are fingerprints); make the shards again with the tokenizer that you "
            "use now, or use the tokenizer or model that the shards were made for"
        )


class _Shard(NamedTuple):
    """The files of an open shard."""

    tokens: np.ndarray
    """The token ids, memory-mapped, [num_tokens]."""
    documents: np.ndarray
    """The document table, memory-mapped: `DOCUMENT_DTYPE` [num_documents]."""
    document_starts: np.ndarray
    """The column `start` of `documents`, int64 [num_documents]. It is in memory because every row searches it."""


def _open_shard(split: Storage, manifest: ShardManifest, shard_index: int, verified: set[str]) -> _Shard:
    """Return the files of the shard with this index in the manifest, after verifying them.

    Files named in `verified` are not verified again. The names of newly verified files are added to it.
    """
    info = manifest.shards[shard_index]
    tokens_file, _ = shard_files(manifest, info)
    tokens = local_file(split, **tokens_file._asdict(), verified=verified)
    documents = _open_documents(split, manifest, info, verified)
    starts = np.ascontiguousarray(documents["start"]).astype(np.int64)
    return _Shard(np.memmap(tokens, dtype=manifest.dtype, mode="r"), documents, starts)


def _open_documents(
    split: Storage, manifest: ShardManifest, info: ShardInfo, verified: set[str] | None = None
) -> np.ndarray:
    """Return the memory-mapped document table of a shard. The shard must have at least one document."""
    _, table_file = shard_files(manifest, info)
    return np.memmap(local_file(split, **table_file._asdict(), verified=verified), dtype=DOCUMENT_DTYPE, mode="r")


def sorted_document_keys(split: Storage, manifest: ShardManifest) -> np.ndarray:
    """Return the keys of all documents in a split, sorted, as uint64."""
    keys = [np.array(_open_documents(split, manifest, info)["id"]) for info in manifest.shards if info.num_documents]
    return np.sort(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.uint64)


class DocumentPosition(NamedTuple):
    """Where a document is in the shards of a split."""

    shard: str
    """Name of the shard."""
    first: int
    """Position of the document's first token in the shard's stream. The separator is before this position."""
    num_tokens: int
    """Number of tokens of the document's text, without separators."""


def find_document(split: Storage, manifest: ShardManifest, document_id: str) -> DocumentPosition | None:
    """Return where the document with this id is in a split, or None if it is not in the split.

    Only the document tables are read.
    """
    key = np.uint64(document_key(document_id))
    for info in manifest.shards:
        if not info.num_documents:
            continue
        documents = _open_documents(split, manifest, info)
        for number in np.flatnonzero(documents["id"] == key)[:1]:
            start = int(documents["start"][number])
            is_last = number + 1 == len(documents)
            end = info.num_tokens - 1 if is_last else int(documents["start"][number + 1])
            return DocumentPosition(info.name, start + 1, end - start - 1)
    return None
