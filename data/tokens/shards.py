"""Token shards: what training reads. A contract between `jobs/shards.py`, every reader, and every later corpus.

A split (train/, validation/) is a folder of shards and a manifest, which is written last:

    manifest.json
    shard-00000.tokens.bin      S a … a S b … b S c … c S      little-endian token ids; S stands between documents
    shard-00000.documents.bin   one `DOCUMENT` record for each document, in the order of the stream

The separator S ends one document and begins the next: as a target it is the document's last token, as an input it is
the next one's first. So every token is predicted exactly once, a document's first token from S alone, its end from all
of it, and nothing is masked or stored twice. `document_ids` keep attention inside a document.

The documents of a source stand together in a shard, a `Stretch`. Sequence length is the reader's choice: sample w of a
stretch from token f on is stream[f + w * T : f + w * T + T + 1], the last one shorter, so a sample belongs to one
source and sources can be mixed by weight. A document never crosses shards, so that one that must be forgotten costs
its shard alone, and a corpus grows by another generation of shards. The order of samples is a function of
(generations, seed, sequence length, mixture), computed by index (`data/tokens/order.py`).
"""

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.storage import Storage
from data.tokens.encode import Encoder
from data.tokens.order import Mixture, epoch_order

FORMAT = 2
MANIFEST = "manifest.json"
PADDING_DOCUMENT = -1

DOCUMENT = np.dtype([("start", "<u8"), ("num_bytes", "<u8"), ("id", "<u8"), ("source", "<u4")])
"""Of one document: place of the separator before it, bytes of its text, `document_key` of its id, its source's place
in the manifest's list."""

_ENCODE_DOCUMENTS = 256  # documents that the encoder gets at once
_OPEN_SHARDS = 64  # shards that a reader keeps mapped, two files each
_FETCHERS = 4  # threads that read ahead


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The documents of one source in a shard."""

    source: int
    """The source's place in the manifest's list."""
    first: int
    """Place in the stream of the separator before its first document."""
    num_targets: int
    """Its documents' tokens and their ends."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    name: str
    part: str
    """The part of the corpus that it was made from, and that part's content digest at the time."""
    part_digest: str
    encoder: str
    """The route by which its text was encoded (`data.tokens.encode`)."""
    num_tokens: int
    """Length of the stream, separators included."""
    num_documents: int
    num_bytes: int
    """Bytes of the documents' texts."""
    stretches: tuple[Stretch, ...]
    """In the order of the stream, which is that of the manifest's sources; together they hold every target once."""
    tokens_sha256: str
    documents_sha256: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The shards that were added together."""

    corpus: str
    """Content digest of the corpus that they were made from."""
    shards: tuple[ShardInfo, ...]
    known: str = ""
    """Checksum of the sorted keys of the documents that were to be left out, for older generations hold them."""


@dataclass(frozen=True, kw_only=True)
class ShardManifest:
    tokenizer: str
    """Fingerprint of the tokenizer (`data.tokens.tokenizer.fingerprint`)."""
    vocab_size: int
    separator: int
    sources: tuple[str, ...]
    generations: tuple[Generation, ...]
    format: int = FORMAT

    @property
    def dtype(self) -> np.dtype:
        """Of the stored tokens: 16 bits where all ids fit, else 32."""
        return np.dtype("<u2") if self.vocab_size <= 2**16 else np.dtype("<u4")

    @cached_property
    def shards(self) -> tuple[ShardInfo, ...]:
        return tuple(shard for generation in self.generations for shard in generation.shards)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted in one epoch: every document's tokens and its end."""
        return sum(shard.num_tokens - 1 for shard in self.shards)

    @property
    def targets_by_source(self) -> dict[str, int]:
        """`num_targets` of each source."""
        found = dict.fromkeys(self.sources, 0)
        for shard in self.shards:
            for stretch in shard.stretches:
                found[self.sources[stretch.source]] += stretch.num_targets
        return found

    @cached_property
    def digest(self) -> str:
        """Identity of the list of generations, by content."""
        checksums = [[shard.tokens_sha256 for shard in generation.shards] for generation in self.generations]
        return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()


def write_manifest(split: Storage, manifest: ShardManifest) -> None:
    """Write the manifest; from now on the split is whole."""
    split.write_json(MANIFEST, asdict(manifest))


def read_manifest(split: Storage) -> ShardManifest:
    """The manifest of a split. Raises ValueError when there is none or it is of another format."""
    try:
        raw = split.read_json(MANIFEST)
    except FileNotFoundError as error:
        raise ValueError(f"{split.url} holds no {MANIFEST}: it is no split of shards, or was never finished") from error
    if raw.get("format") != FORMAT:
        raise ValueError(f"{split.url}/{MANIFEST}: format {raw.get('format')} is not {FORMAT}; make the shards again")
    generations = tuple(
        Generation(**{**entry, "shards": tuple(map(shard_info, entry["shards"]))}) for entry in raw["generations"]
    )
    return ShardManifest(**{**raw, "sources": tuple(raw["sources"]), "generations": generations})


def shard_info(raw: Mapping[str, Any]) -> ShardInfo:
    """A shard's description from its JSON form."""
    return ShardInfo(**{**raw, "stretches": tuple(Stretch(**stretch) for stretch in raw["stretches"])})


class ShardFile(NamedTuple):
    """A file of a shard, as the manifest describes it."""

    name: str
    num_bytes: int
    sha256: str


def shard_files(manifest: ShardManifest, info: ShardInfo) -> tuple[ShardFile, ShardFile]:
    """The token file and the document table of a shard."""
    num_bytes = info.num_tokens * manifest.dtype.itemsize
    return (
        ShardFile(f"{info.name}.tokens.bin", num_bytes, info.tokens_sha256),
        ShardFile(f"{info.name}.documents.bin", info.num_documents * DOCUMENT.itemsize, info.documents_sha256),
    )


def document_key(document_id: str) -> int:
    """64 bits of a document id, to find a document in the shards."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little")


# Writing.


class TextDocument(NamedTuple):
    id: str
    text: str
    source: str


class _Written(NamedTuple):
    """A document that waits to be stored."""

    tokens: np.ndarray
    num_bytes: int
    key: int


class ShardWriter:
    """Gathers the documents of one shard in memory, as ids of 2 or 4 bytes, and writes them source by source."""

    def __init__(self, manifest: ShardManifest, encoder: Encoder) -> None:
        """The shard will have the manifest's dtype, separator and sources."""
        self.manifest, self.encoder = manifest, encoder
        self._number = {source: number for number, source in enumerate(manifest.sources)}
        self._written: list[list[_Written]] = [[] for _ in manifest.sources]

    def add(self, documents: Sequence[TextDocument]) -> None:
        """Encode some documents; those of a source keep their order, and none holds the separator."""
        encoded = self.encoder.encode_batch([document.text for document in documents])
        for document, ids in zip(documents, encoded, strict=True):
            if (ids == self.manifest.separator).any():
                ids = self.encoder.encode_without(document.text, self.manifest.separator)
            tokens = ids.astype(self.manifest.dtype)
            written = _Written(tokens, len(document.text.encode()), document_key(document.id))
            self._written[self._number[document.source]].append(written)

    def write(self, split: Storage, name: str, *, part: str = "", part_digest: str = "") -> ShardInfo:
        """Write the shard of everything that was added; `part` is what the documents came from."""
        separator = np.array([self.manifest.separator], dtype=self.manifest.dtype)
        documents = [(source, written) for source, own in enumerate(self._written) for written in own]
        table = np.zeros(len(documents), dtype=DOCUMENT)
        ends = np.cumsum([len(written.tokens) + 1 for _, written in documents], dtype=np.int64)
        table["start"][1:] = ends[:-1]
        table["num_bytes"] = [written.num_bytes for _, written in documents]
        table["id"] = np.array([written.key for _, written in documents], dtype=np.uint64)
        table["source"] = [source for source, _ in documents]
        pieces = [piece for _, written in documents for piece in (written.tokens, separator)]
        tokens = np.concatenate([separator, *pieces]).tobytes()
        split.write_bytes(f"{name}.tokens.bin", tokens)
        split.write_bytes(f"{name}.documents.bin", table.tobytes())
        return ShardInfo(
            name=name,
            part=part,
            part_digest=part_digest,
            encoder=self.encoder.route,
            num_tokens=len(tokens) // self.manifest.dtype.itemsize,
            num_documents=len(table),
            num_bytes=int(table["num_bytes"].sum()),
            stretches=self._stretches(),
            tokens_sha256=hashlib.sha256(tokens).hexdigest(),
            documents_sha256=hashlib.sha256(table.tobytes()).hexdigest(),
        )

    def _stretches(self) -> tuple[Stretch, ...]:
        stretches: list[Stretch] = []
        first = 0
        for source, own in enumerate(self._written):
            if own:
                num_targets = sum(len(written.tokens) + 1 for written in own)
                stretches.append(Stretch(source=source, first=first, num_targets=num_targets))
                first += num_targets
        return tuple(stretches)


def write_shard(
    split: Storage, name: str, documents: Iterable[TextDocument], encoder: Encoder, manifest: ShardManifest
) -> ShardInfo:
    """Encode the documents into one shard of the split, by the manifest's dtype, separator and sources."""
    writer = ShardWriter(manifest, encoder)
    for batch in batches(documents, _ENCODE_DOCUMENTS):
        writer.add(batch)
    return writer.write(split, name)


def batches(documents: Iterable[TextDocument], size: int) -> Iterator[list[TextDocument]]:
    """The documents in lists of `size`, the last one shorter."""
    remaining = iter(documents)
    while batch := list(islice(remaining, size)):
        yield batch


# Reading.


class Sample(NamedTuple):
    """A window of a stream."""

    tokens: np.ndarray
    """[n + 1] int64, n at most T: inputs are all but the last, targets all but the first."""
    starts: np.ndarray
    """Places among the inputs where a document begins (its separator)."""
    context: int = 0
    """Targets before this place are only read, not scored: an overlap with the window before."""


class Rows(NamedTuple):
    """Samples side by side, with the fields of a training batch: all [B, T], int64 but for the mask."""

    input_ids: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray
    """bool, true where the target counts."""
    positions: np.ndarray
    """From 0 inside each document's part of the row."""
    document_ids: np.ndarray
    """Equal within a document's part of the row; -1 is padding."""


class StoredDocument(NamedTuple):
    """A whole document as it stands in a shard."""

    tokens: np.ndarray
    """[n + 2] int64: separator, the document's n tokens, separator."""
    num_bytes: int
    """Bytes of its text."""
    source: str
    key: int
    """`document_key` of its id."""


class ShardReader:
    """Samples of a split by global index. Cheap to make: a shard is opened, and proved whole, when first read.

    The files are mapped, not loaded; the most recently used `_OPEN_SHARDS` shards stay mapped. Those of a remote split
    are fetched whole to the local disk, which has to have room for the split.
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
        """`mixture` gives every source of the split a weight, its part of the targets that are read (more rows, then,
        of a source whose rows are shorter, as the last of every stretch may be); without one the sources have their
        natural shares. `tokenizer` is the fingerprint that the shards must have been made with.

        Raises ValueError for a missing or foreign manifest, another tokenizer, or weights of other sources.
        """
        if sequence_length < 1:
            raise ValueError(f"sequence_length: {sequence_length} must be at least 1")
        self.split, self.sequence_length, self.seed = split, sequence_length, seed
        self.manifest = read_manifest(split)
        if tokenizer is not None:
            check_tokenizer(split, self.manifest, tokenizer)
        stretches = [(shard, part) for shard, info in enumerate(self.manifest.shards) for part in info.stretches]
        self._stretches: list[tuple[int, Stretch]] = stretches
        self._windows = np.array([-(-part.num_targets // sequence_length) for _, part in stretches], dtype=np.int64)
        self._ends = np.cumsum(self._windows)
        self._mixture = None
        if mixture is not None:
            _check_sources(split, self.manifest, mixture)
            self._mixture = Mixture(mixture, targets_per_row=self._targets_per_row(mixture))
        self._opened: OrderedDict[int, _Shard] = OrderedDict()
        self._proved: set[str] = set()
        self._lock = threading.Lock()
        self._opening = [threading.Lock() for _ in self.manifest.shards]

    @property
    def num_samples(self) -> int:
        """Samples of one epoch of the sources that are read: together they hold every target of theirs exactly once."""
        return sum(self.samples_by_source.values())

    @cached_property
    def samples_by_source(self) -> dict[str, int]:
        """Samples of one epoch of each source that is read."""
        sources = self.manifest.sources if self._mixture is None else self._mixture.sources
        return {name: self._num_windows(name) for name in sources}

    def order(self, indices: Iterable[int]) -> np.ndarray:
        """Places of samples in the stream of windows, for global sample indices 0, 1, 2, … over all epochs.

        Without a mixture each epoch is a permutation of all samples. With one, the mixture gives an index to a source,
        and the source goes through permutations of its own samples: none comes again before all have come.
        """
        key = f"{self.manifest.digest}:{self.sequence_length}"
        if self._mixture is None:
            return epoch_order(indices, self.num_samples, seed=self.seed, key=key)
        places: list[int] = []
        for index in indices:
            source, number = self._mixture.turn(index)
            size = self.samples_by_source[source]
            (own,) = epoch_order([number], size, seed=self.seed, key=f"{key}:{source}")
            places.append(self._place(source, int(own)))
        return np.array(places, dtype=np.int64)

    def sample(self, index: int) -> Sample:
        """The sample at a global index; without a mixture, index // num_samples is its epoch."""
        return self._window(int(self.order([index])[0]))

    def rows(self, indices: Iterable[int]) -> Rows:
        """The samples at global indices as arrays [B, T]."""
        return to_rows([self._window(int(place)) for place in self.order(indices)], self.sequence_length)

    def read_ahead(self, steps: Iterable[Iterable[int]], *, num_steps: int = 2) -> Iterator[Rows]:
        """`rows` of each item of `steps`, read by other threads while the caller works on up to `num_steps` before.

        So the shards that coming steps need are on their way from object storage already.
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
        return int(self._windows[self._own_stretches(source)].sum())

    def _own_stretches(self, source: str) -> np.ndarray:
        """Places in `_stretches` of a source's."""
        number = self.manifest.sources.index(source)
        return np.array([n for n, (_, part) in enumerate(self._stretches) if part.source == number], dtype=np.int64)

    @cached_property
    def _source_ends(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each source, its stretches and the running number of its samples at the end of each."""
        owned = {source: self._own_stretches(source) for source in self.samples_by_source}
        return {source: (own, np.cumsum(self._windows[own])) for source, own in owned.items()}

    def _place(self, source: str, own: int) -> int:
        """The place among all windows of a source's window number `own`."""
        stretches, ends = self._source_ends[source]
        number = int(np.searchsorted(ends, own, side="right"))
        return int(self._ends[stretches[number]] - (ends[number] - own))

    def _window(self, place: int) -> Sample:
        number = int(np.searchsorted(self._ends, place, side="right"))
        shard_number, stretch = self._stretches[number]
        shard = self._shard(shard_number)
        before = int(self._ends[number] - self._windows[number])
        first = stretch.first + (place - before) * self.sequence_length
        last = min(first + self.sequence_length, stretch.first + stretch.num_targets)
        low, high = np.searchsorted(shard.starts, [first, last])
        return Sample(shard.tokens[first : last + 1].astype(np.int64), shard.starts[low:high] - first)

    def _shard(self, number: int) -> "_Shard":
        """A shard's files, mapped; several threads may ask, and one of them opens it."""
        with self._opening[number]:
            with self._lock:
                if shard := self._opened.get(number):
                    self._opened.move_to_end(number)
                    return shard
            shard = _open_shard(self.split, self.manifest, number, self._proved)
            with self._lock:
                self._opened[number] = shard
                if len(self._opened) > _OPEN_SHARDS:
                    self._opened.popitem(last=False)
            return shard


def _check_sources(split: Storage, manifest: ShardManifest, mixture: Mapping[str, float]) -> None:
    """Raise ValueError unless the weights are for the sources of the split, each of them."""
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


def _open_shard(split: Storage, manifest: ShardManifest, number: int, proved: set[str]) -> _Shard:
    info = manifest.shards[number]
    tokens_file, _ = shard_files(manifest, info)
    tokens = local_file(split, **tokens_file._asdict(), proved=proved)
    documents = _open_documents(split, manifest, info, proved)
    starts = np.ascontiguousarray(documents["start"]).astype(np.int64)
    return _Shard(np.memmap(tokens, dtype=manifest.dtype, mode="r"), documents, starts)


def _open_documents(
    split: Storage, manifest: ShardManifest, info: ShardInfo, proved: set[str] | None = None
) -> np.ndarray:
    """The document table of a shard that holds any, mapped."""
    _, table_file = shard_files(manifest, info)
    return np.memmap(local_file(split, **table_file._asdict(), proved=proved), dtype=DOCUMENT, mode="r")


def local_file(split: Storage, name: str, *, sha256: str, num_bytes: int, proved: set[str] | None = None) -> Path:
    """A file on the local disk, proved to be whole. Raises ValueError when it is not.

    A remote file is fetched once into a cache by its checksum, which all processes of a node share; a copy of another
    size is fetched again. `proved` remembers the names that need no second proof.
    """
    path = Path(split.path(name)) if split.is_local else _fetched(split, name, sha256, num_bytes)
    found = path.stat().st_size if path.exists() else None
    if found != num_bytes:
        state = "is missing" if found is None else f"has {found:,} bytes instead of {num_bytes:,}"
        raise ValueError(f"shard {split.url}/{name} {state}; make the shards again, or copy the file again")
    if proved is not None and name in proved:
        return path
    if _sha256(path) != sha256:
        if not split.is_local:
            path.unlink()  # so that the next attempt fetches it again
        raise ValueError(
            f"shard {split.url}/{name} is corrupt: its checksum differs from the manifest's; make it again"
        )
    if proved is not None:
        proved.add(name)
    return path


def _fetched(split: Storage, name: str, sha256: str, num_bytes: int) -> Path:
    """The cached copy of a remote file; of the processes of a node that want it one fetches it."""
    path = shard_cache() / sha256
    if _has_size(path, num_bytes):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_name(f"{sha256}.lock")):
        if not _has_size(path, num_bytes):
            split.copy(name, Storage(str(path.parent)), sha256)
    return path


def _has_size(path: Path, num_bytes: int) -> bool:
    return path.exists() and path.stat().st_size == num_bytes


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a file's lock, which ends with the process that has it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shard_cache() -> Path:
    """Where copies of remote shards lie, named by their checksum."""
    return Path(tempfile.gettempdir()) / f"raymill-{os.getuid()}" / "shards"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_rows(samples: Sequence[Sample], sequence_length: int) -> Rows:
    """Samples as arrays [B, T], padded on the right where a sample is shorter."""
    shape = (len(samples), sequence_length)
    rows = Rows(
        input_ids=np.zeros(shape, dtype=np.int64),
        targets=np.zeros(shape, dtype=np.int64),
        loss_mask=np.zeros(shape, dtype=np.bool_),
        positions=np.zeros(shape, dtype=np.int64),
        document_ids=np.full(shape, PADDING_DOCUMENT, dtype=np.int64),
    )
    for row, sample in enumerate(samples):
        n = len(sample.tokens) - 1
        begins = np.zeros(n, dtype=np.int64)
        begins[sample.starts] = 1
        places = np.arange(n)
        rows.input_ids[row, :n] = sample.tokens[:-1]
        rows.targets[row, :n] = sample.tokens[1:]
        rows.loss_mask[row, sample.context : n] = True
        rows.document_ids[row, :n] = np.cumsum(begins)
        rows.positions[row, :n] = places - np.maximum.accumulate(places * begins)
    return rows


def document_samples(tokens: np.ndarray, sequence_length: int, *, overlap: int = 0) -> Iterator[Sample]:
    """Windows of one document (separators at both ends) in which every target is scored exactly once.

    Each window after the first begins with `overlap` tokens that are read but not scored, so that no target is
    predicted from less than that (0: windows side by side).
    """
    if not 0 <= overlap < sequence_length:
        raise ValueError(f"overlap: {overlap} must be at least 0 and below the sequence length ({sequence_length})")
    num_targets = len(tokens) - 1
    scored = 0
    while scored < num_targets:
        context = overlap if scored else 0
        first = scored - context
        window = tokens[first : first + sequence_length + 1]
        yield Sample(window, np.array([0] if first == 0 else [], dtype=np.int64), context)
        scored = first + len(window) - 1


def known_documents(split: Storage, manifest: ShardManifest) -> np.ndarray:
    """Sorted uint64 keys of every document in a split."""
    keys = [np.array(_open_documents(split, manifest, info)["id"]) for info in manifest.shards if info.num_documents]
    return np.sort(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.uint64)


class DocumentPlace(NamedTuple):
    """Where a document stands."""

    shard: str
    first: int
    """Place in the shard's stream of its first token, after the separator."""
    num_tokens: int
    """Of its text, without a separator."""


def find_document(split: Storage, manifest: ShardManifest, document_id: str) -> DocumentPlace | None:
    """Where the document with this id stands in a split; None where it does not. Reads the tables, not the tokens."""
    key = np.uint64(document_key(document_id))
    for info in manifest.shards:
        if not info.num_documents:
            continue
        documents = _open_documents(split, manifest, info)
        for number in np.flatnonzero(documents["id"] == key)[:1]:
            start = int(documents["start"][number])
            last = number + 1 == len(documents)
            end = info.num_tokens - 1 if last else int(documents["start"][number + 1])
            return DocumentPlace(info.name, start + 1, end - start - 1)
    return None
