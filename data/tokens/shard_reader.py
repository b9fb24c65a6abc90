"""Reading shards: samples by their global index, and whole documents."""

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
from data.tokens.order import Mixture, epoch_order
from data.tokens.samples import Rows, Sample, to_rows
from data.tokens.shard_cache import local_file
from data.tokens.shard_format import (
    DOCUMENT,
    ShardInfo,
    ShardManifest,
    SourceRange,
    document_key,
    read_manifest,
    shard_files,
)

_OPEN_SHARDS = 64  # shards that a reader keeps mapped, two files each
_FETCHERS = 4  # threads that read ahead


class StoredDocument(NamedTuple):
    """A whole document from a shard."""

    tokens: np.ndarray
    """[n + 2] int64: separator, the document's n tokens, separator."""
    num_bytes: int
    """Bytes of its text."""
    source: str
    key: int
    """`document_key` of its id."""


class ShardReader:
    """Samples of a split by global index. Cheap to create: a shard is opened and verified when it is first read.

    The files are mapped, not loaded; the most recently used `_OPEN_SHARDS` shards stay mapped. Those of a remote split
    are fetched whole to the local disk, which must have room for the split.
    """

    def __init__(
        self,
        split: Storage,
        *,
        sequence_length: int,
        seed: int = 0,
        mixture: Mapping[str, float] | None = None,
        tokenizer: str | None = None,
    ) -> None:
        """`mixture` gives every source of the split a weight, its share of the targets that are read (a source whose
        rows are shorter, as the last row of every range may be, gets more rows); without a mixture the sources have
        their natural shares. `tokenizer` is the fingerprint that the shards must have been made with.

        Raises ValueError for a missing or foreign manifest, another tokenizer, or weights of other sources.
        """
        if sequence_length < 1:
            raise ValueError(f"sequence_length: {sequence_length} must be at least 1")
        self.split, self.sequence_length, self.seed = split, sequence_length, seed
        self.manifest = read_manifest(split)
        if tokenizer is not None:
            check_tokenizer(split, self.manifest, tokenizer)
        ranges = [(shard, part) for shard, info in enumerate(self.manifest.shards) for part in info.source_ranges]
        self._ranges: list[tuple[int, SourceRange]] = ranges
        self._windows = np.array([-(-part.num_targets // sequence_length) for _, part in ranges], dtype=np.int64)
        self._ends = np.cumsum(self._windows)
        self._mixture = None
        if mixture is not None:
            _check_sources(split, self.manifest, mixture)
            self._mixture = Mixture(mixture, targets_per_row=self._targets_per_row(mixture))
        self._opened: OrderedDict[int, _Shard] = OrderedDict()
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        self._opening = [threading.Lock() for _ in self.manifest.shards]

    @property
    def num_samples(self) -> int:
        """Samples of one epoch of the sources that are read, which hold each of their targets exactly once."""
        return sum(self.samples_by_source.values())

    @cached_property
    def samples_by_source(self) -> dict[str, int]:
        """Samples of one epoch of each source that is read."""
        sources = self.manifest.sources if self._mixture is None else self._mixture.sources
        return {name: self._num_windows(name) for name in sources}

    def order(self, indices: Iterable[int]) -> np.ndarray:
        """Positions in the stream of windows of the samples at global indices 0, 1, 2, … over all epochs.

        Without a mixture each epoch is a permutation of all samples. With one, the mixture assigns an index to a
        source, whose samples come in permutations: none is repeated before all were read.
        """
        key = f"{self.manifest.digest}:{self.sequence_length}"
        if self._mixture is None:
            return epoch_order(indices, self.num_samples, seed=self.seed, key=key)
        positions: list[int] = []
        for index in indices:
            source, number = self._mixture.source_sample(index)
            size = self.samples_by_source[source]
            (window,) = epoch_order([number], size, seed=self.seed, key=f"{key}:{source}")
            positions.append(self._position(source, int(window)))
        return np.array(positions, dtype=np.int64)

    def sample(self, index: int) -> Sample:
        """The sample at a global index; without a mixture, index // num_samples is its epoch."""
        return self._window(int(self.order([index])[0]))

    def rows(self, indices: Iterable[int]) -> Rows:
        """The samples at global indices as arrays [B, T]."""
        return to_rows([self._window(int(position)) for position in self.order(indices)], self.sequence_length)

    def read_ahead(self, steps: Iterable[Iterable[int]], *, num_steps: int = 2) -> Iterator[Rows]:
        """`rows` of each item of `steps`, read by other threads up to `num_steps` before the caller takes them.

        So the shards of coming steps are already being fetched from object storage.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps: {num_steps} must be at least 1")
        waiting: deque[Future[Rows]] = deque()
        with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="read-ahead") as threads:
            for indices in steps:
                waiting.append(threads.submit(self.rows, indices))
                if len(waiting) > num_steps:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def documents(self) -> Iterator[StoredDocument]:
        """Every document of the split, whole, in the order of the shards."""
        for number, info in enumerate(self.manifest.shards):
            if not info.num_documents:
                continue
            shard = self._shard(number)
            ends = np.append(shard.starts[1:], info.num_tokens - 1)
            for record, start, end in zip(shard.documents, shard.starts, ends, strict=True):
                yield StoredDocument(
                    tokens=shard.tokens[start : end + 1].astype(np.int64),
                    num_bytes=int(record["num_bytes"]),
                    source=self.manifest.sources[int(record["source"])],
                    key=int(record["id"]),
                )

    def _targets_per_row(self, mixture: Mapping[str, float]) -> dict[str, Fraction]:
        """Mean number of targets in the rows of each source that has a weight."""
        targets = self.manifest.targets_by_source
        return {name: Fraction(targets[name], self._num_windows(name)) for name in mixture if mixture[name]}

    def _num_windows(self, source: str) -> int:
        return int(self._windows[self._ranges_of(source)].sum())

    def _ranges_of(self, source: str) -> np.ndarray:
        """Positions in `_ranges` of a source's ranges."""
        number = self.manifest.sources.index(source)
        return np.array([n for n, (_, part) in enumerate(self._ranges) if part.source == number], dtype=np.int64)

    @cached_property
    def _source_ends(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each source, its ranges and the running number of its samples at the end of each."""
        ranges_of = {source: self._ranges_of(source) for source in self.samples_by_source}
        return {source: (ranges, np.cumsum(self._windows[ranges])) for source, ranges in ranges_of.items()}

    def _position(self, source: str, window: int) -> int:
        """The position in the stream of all windows of one of a source's, by its number among them."""
        ranges, ends = self._source_ends[source]
        number = int(np.searchsorted(ends, window, side="right"))
        return int(self._ends[ranges[number]] - (ends[number] - window))

    def _window(self, position: int) -> Sample:
        number = int(np.searchsorted(self._ends, position, side="right"))
        shard_number, source_range = self._ranges[number]
        shard = self._shard(shard_number)
        before = int(self._ends[number] - self._windows[number])
        first = source_range.first + (position - before) * self.sequence_length
        last = min(first + self.sequence_length, source_range.first + source_range.num_targets)
        low, high = np.searchsorted(shard.starts, [first, last])
        return Sample(shard.tokens[first : last + 1].astype(np.int64), shard.starts[low:high] - first)

    def _shard(self, number: int) -> "_Shard":
        """A shard's files, mapped; of several threads that ask for it, one opens it."""
        with self._opening[number]:
            with self._lock:
                if shard := self._opened.get(number):
                    self._opened.move_to_end(number)
                    return shard
            shard = _open_shard(self.split, self.manifest, number, self._verified)
            with self._lock:
                self._opened[number] = shard
                if len(self._opened) > _OPEN_SHARDS:
                    self._opened.popitem(last=False)
            return shard


def _check_sources(split: Storage, manifest: ShardManifest, mixture: Mapping[str, float]) -> None:
    """Raise ValueError unless the weights name exactly the sources of the split."""
    present = {name for name, num_targets in manifest.targets_by_source.items() if num_targets}
    for name, weight in mixture.items():
        if name not in present and (weight or name not in manifest.sources):
            near = difflib.get_close_matches(name, manifest.sources, n=1)
            hint = f"; did you mean {near[0]!r}?" if near and near[0] != name else ""
            raise ValueError(
                f"mixture: {split.url} holds no text of source {name!r}{hint} (present: {', '.join(sorted(present))})"
            )
    if missing := sorted(present - mixture.keys()):
        raise ValueError(f"mixture: source {missing[0]!r} has no weight; give it one, 0 to leave it out")


def check_tokenizer(split: Storage, manifest: ShardManifest, tokenizer: str) -> None:
    """Raise ValueError when the shards were made with another tokenizer than the one with this fingerprint."""
    if manifest.tokenizer != tokenizer:
        raise ValueError(
            f"{split.url}: these shards were made with tokenizer {manifest.tokenizer}, not {tokenizer}; "
            "make them again with the model's tokenizer, or take the model that belongs to them"
        )


class _Shard(NamedTuple):
    tokens: np.ndarray
    """[num_tokens], mapped from disk."""
    documents: np.ndarray
    """[num_documents] of `DOCUMENT`, mapped from disk."""
    starts: np.ndarray
    """[num_documents] int64, the column of `documents` that is searched, in memory."""


def _open_shard(split: Storage, manifest: ShardManifest, number: int, verified: set[str]) -> _Shard:
    info = manifest.shards[number]
    tokens_file, _ = shard_files(manifest, info)
    tokens = local_file(split, **tokens_file._asdict(), verified=verified)
    documents = _open_documents(split, manifest, info, verified)
    starts = np.ascontiguousarray(documents["start"]).astype(np.int64)
    return _Shard(np.memmap(tokens, dtype=manifest.dtype, mode="r"), documents, starts)


def _open_documents(
    split: Storage, manifest: ShardManifest, info: ShardInfo, verified: set[str] | None = None
) -> np.ndarray:
    """The document table of a shard with documents, mapped."""
    _, table_file = shard_files(manifest, info)
    return np.memmap(local_file(split, **table_file._asdict(), verified=verified), dtype=DOCUMENT, mode="r")


def known_documents(split: Storage, manifest: ShardManifest) -> np.ndarray:
    """Sorted uint64 keys of every document in a split."""
    keys = [np.array(_open_documents(split, manifest, info)["id"]) for info in manifest.shards if info.num_documents]
    return np.sort(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.uint64)


class DocumentPosition(NamedTuple):
    """Where a document is in the shards."""

    shard: str
    first: int
    """Position in the shard's stream of its first token, after the separator."""
    num_tokens: int
    """Tokens of its text, without a separator."""


def find_document(split: Storage, manifest: ShardManifest, document_id: str) -> DocumentPosition | None:
    """Where the document with this id is in a split, or None. Reads the document tables only."""
    key = np.uint64(document_key(document_id))
    for info in manifest.shards:
        if not info.num_documents:
            continue
        documents = _open_documents(split, manifest, info)
        for number in np.flatnonzero(documents["id"] == key)[:1]:
            start = int(documents["start"][number])
            last = number + 1 == len(documents)
            end = info.num_tokens - 1 if last else int(documents["start"][number + 1])
            return DocumentPosition(info.name, start + 1, end - start - 1)
    return None
