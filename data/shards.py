"""Token shards: what training reads. A contract between `jobs/shards.py`, every reader, and every later corpus.

A split (train/, validation/) is a folder of shards and a manifest, which is written last:

    manifest.json
    shard-00000.tokens.bin      S a … a S b … b S c … c S      little-endian token ids; S stands between documents
    shard-00000.documents.bin   one `DOCUMENT` record for each document, in the order of the stream

The separator S ends one document and begins the next: as a target it is the document's last token, as an input it is
the next one's first. So every token is predicted exactly once, a document's first token from S alone, its end from all
of it, and nothing is masked or stored twice. `document_ids` keep attention inside a document.

Sequence length is the reader's choice: sample w of a shard is stream[w * T : w * T + T + 1], the last one shorter. A
document never crosses shards, so that one that must be forgotten costs its shard alone, and a corpus grows by another
generation of shards. The order of samples is a function of (generations, seed, sequence length), computed by index
(`data/order.py`).
"""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from cluster.storage import Storage
from data.order import epoch_order

FORMAT = 1
MANIFEST = "manifest.json"
PADDING_DOCUMENT = -1

DOCUMENT = np.dtype([("start", "<u8"), ("num_bytes", "<u8"), ("id", "<u8"), ("source", "<u4")])
"""Of one document: place of the separator before it, bytes of its text, `document_key` of its id, its source's place
in the manifest's list."""

_ENCODE_DOCUMENTS = 256  # documents that the tokenizer gets at once


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    name: str
    num_tokens: int
    """Length of the stream, separators included."""
    num_documents: int
    num_bytes: int
    """Bytes of the documents' texts."""
    tokens_sha256: str
    documents_sha256: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The shards that were added together."""

    corpus: str
    """Content digest of the corpus that they were made from."""
    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True, kw_only=True)
class ShardManifest:
    tokenizer: str
    """Fingerprint of the tokenizer (`data.tokenizer.fingerprint`)."""
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
        Generation(corpus=entry["corpus"], shards=tuple(ShardInfo(**shard) for shard in entry["shards"]))
        for entry in raw["generations"]
    )
    return ShardManifest(**{**raw, "sources": tuple(raw["sources"]), "generations": generations})


def document_key(document_id: str) -> int:
    """64 bits of a document id, to find a document in the shards."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little")


# Writing.


class TextDocument(NamedTuple):
    id: str
    text: str
    source: str


def write_shard(
    split: Storage, name: str, documents: Iterable[TextDocument], encoder: Tokenizer, manifest: ShardManifest
) -> ShardInfo:
    """Tokenise the documents into one shard of the split, in their order, by the manifest's dtype and separator."""
    stream: list[np.ndarray] = [np.array([manifest.separator], dtype=manifest.dtype)]
    records: list[tuple[int, int, int, int]] = []
    start = 0
    for batch in _batches(documents, _ENCODE_DOCUMENTS):
        encodings = encoder.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            num_bytes = len(document.text.encode())
            records.append((start, num_bytes, document_key(document.id), manifest.sources.index(document.source)))
            stream.append(np.array([*encoding.ids, manifest.separator], dtype=manifest.dtype))
            start += len(stream[-1])
    tokens = np.concatenate(stream).tobytes()
    table = np.array(records, dtype=DOCUMENT).tobytes()
    split.write_bytes(f"{name}.tokens.bin", tokens)
    split.write_bytes(f"{name}.documents.bin", table)
    return ShardInfo(
        name=name,
        num_tokens=start + 1,
        num_documents=len(records),
        num_bytes=sum(record[1] for record in records),
        tokens_sha256=hashlib.sha256(tokens).hexdigest(),
        documents_sha256=hashlib.sha256(table).hexdigest(),
    )


def _batches(documents: Iterable[TextDocument], size: int) -> Iterator[list[TextDocument]]:
    batch: list[TextDocument] = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
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
    """Samples of a split by global index. Cheap to make: a shard is opened, and proved whole, when first read."""

    def __init__(self, split: Storage, *, sequence_length: int, seed: int = 0, tokenizer: str | None = None) -> None:
        """`tokenizer` is the fingerprint that the shards must have been made with.

        Raises ValueError for a missing or foreign manifest, or another tokenizer.
        """
        if sequence_length < 1:
            raise ValueError(f"sequence_length: {sequence_length} must be at least 1")
        self.split, self.sequence_length, self.seed = split, sequence_length, seed
        self.manifest = read_manifest(split)
        if tokenizer is not None:
            check_tokenizer(split, self.manifest, tokenizer)
        windows = [-(-(shard.num_tokens - 1) // sequence_length) for shard in self.manifest.shards]
        self._ends = np.cumsum(windows, dtype=np.int64)
        self._opened: dict[int, _Shard] = {}

    @property
    def num_samples(self) -> int:
        """Samples of one epoch: together they hold every target of the split exactly once."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def order(self, indices: Iterable[int]) -> np.ndarray:
        """Places of samples in the stream of windows, for global sample indices 0, 1, 2, … over all epochs."""
        key = f"{self.manifest.digest}:{self.sequence_length}"
        return epoch_order(indices, self.num_samples, seed=self.seed, key=key)

    def sample(self, index: int) -> Sample:
        """The sample at a global index; index // num_samples is its epoch."""
        return self._window(int(self.order([index])[0]))

    def rows(self, indices: Iterable[int]) -> Rows:
        """The samples at global indices as arrays [B, T]."""
        return to_rows([self._window(int(place)) for place in self.order(indices)], self.sequence_length)

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

    def _window(self, place: int) -> Sample:
        number = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        shard = self._shard(number)
        first = (place - before) * self.sequence_length
        tokens = shard.tokens[first : first + self.sequence_length + 1].astype(np.int64)
        low, high = np.searchsorted(shard.starts, [first, first + len(tokens) - 1])
        return Sample(tokens, shard.starts[low:high] - first)

    def _shard(self, number: int) -> "_Shard":
        if number not in self._opened:
            self._opened[number] = _open_shard(self.split, self.manifest, number)
        return self._opened[number]


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


def _open_shard(split: Storage, manifest: ShardManifest, number: int) -> _Shard:
    info = manifest.shards[number]
    tokens = _verified(split, f"{info.name}.tokens.bin", info.tokens_sha256, info.num_tokens * manifest.dtype.itemsize)
    table = _verified(
        split, f"{info.name}.documents.bin", info.documents_sha256, info.num_documents * DOCUMENT.itemsize
    )
    documents = np.memmap(table, dtype=DOCUMENT, mode="r")
    starts = np.ascontiguousarray(documents["start"]).astype(np.int64)
    return _Shard(np.memmap(tokens, dtype=manifest.dtype, mode="r"), documents, starts)


def _verified(split: Storage, name: str, sha256: str, num_bytes: int) -> Path:
    """A file of the split on the local disk, proved to be whole. Raises ValueError when it is not.

    A remote file is fetched once into a cache by its checksum, which all processes of a node share.
    """
    if split.is_local:
        path = Path(split.path(name))
    else:
        path = shard_cache() / sha256
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{sha256}.{uuid.uuid4().hex[:8]}.partial")
            split.fs.get_file(split.path(name), str(partial))
            partial.rename(path)
    found = path.stat().st_size if path.exists() else None
    if found != num_bytes:
        state = "is missing" if found is None else f"has {found:,} bytes instead of {num_bytes:,}"
        raise ValueError(f"shard {split.url}/{name} {state}; make the shards again, or copy the file again")
    if _sha256(path) != sha256:
        if not split.is_local:
            path.unlink()  # so that the next attempt fetches it again
        raise ValueError(
            f"shard {split.url}/{name} is corrupt: its checksum differs from the manifest's; make it again"
        )
    return path


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
    shards = [number for number, info in enumerate(manifest.shards) if info.num_documents]
    keys = [np.asarray(_open_shard(split, manifest, number).documents["id"]) for number in shards]
    return np.sort(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.uint64)
