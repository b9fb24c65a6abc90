"""Token shards: what training reads. A contract between `shard_writer.py`, every reader, and every later corpus.

A split (train/, validation/) is a folder of shards and a manifest, which is written last:

    manifest.json
    shard-00000.tokens.bin      S a … a S b … b S c … c S      little-endian token ids; S is between documents
    shard-00000.documents.bin   one `DOCUMENT_DTYPE` record for each document, in the order of the stream

The separator S ends one document and begins the next: as a target it is the document's last token, as an input it is
the next one's first. So every token is predicted exactly once, a document's first token from S alone, its end from all
of it, and nothing is masked or stored twice. `document_ids` keep attention inside a document.

The documents of a source follow one another in a shard, in a `SourceRange`. Sequence length is the reader's choice:
window w of a range from token f on is stream[f + w * T : f + w * T + T + 1], the last one shorter, so a sample belongs
to one source and sources can be mixed by weight. A document never crosses shards, so that one that must be forgotten
costs its shard alone, and a corpus grows by another generation of shards. The order of samples is a function of
(generations, seed, sequence length, mixture), computed by index (`data/tokens/order.py`).
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cluster.plain import from_plain, to_plain
from cluster.storage import Storage

FORMAT = 2
MANIFEST = "manifest.json"
SPLITS = ("train", "validation")

DOCUMENT_DTYPE = np.dtype([("start", "<u8"), ("num_bytes", "<u8"), ("id", "<u8"), ("source", "<u4")])
"""Of one document: position of the separator before it, bytes of its text, `document_key` of its id, its source's
position in the manifest's list."""


@dataclass(frozen=True, kw_only=True)
class SourceRange:
    """The documents of one source in a shard."""

    source: int
    """The source's position in the manifest's list."""
    first: int
    """Position in the stream of the separator before its first document."""
    num_targets: int
    """Its documents' tokens and their ends."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    name: str
    part: str
    """The part of the corpus that it is made from; `part_digest` is the content digest that the part then had."""
    part_digest: str
    encoder: str
    """The route by which its text was encoded (`data.tokens.encode`)."""
    num_tokens: int
    """Length of the stream, separators included."""
    num_documents: int
    num_bytes: int
    """Bytes of the documents' texts."""
    source_ranges: tuple[SourceRange, ...]
    """In the order of the stream, which is that of the manifest's sources; together they hold every target once."""
    tokens_sha256: str
    documents_sha256: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The shards that were added together."""

    corpus: str
    """Content digest of their corpus."""
    shards: tuple[ShardInfo, ...]
    known: str = ""
    """Checksum of the sorted keys of the documents that were left out because older generations hold them."""


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
        targets = dict.fromkeys(self.sources, 0)
        for shard in self.shards:
            for source_range in shard.source_ranges:
                targets[self.sources[source_range.source]] += source_range.num_targets
        return targets

    @cached_property
    def digest(self) -> str:
        """Identity of the list of generations, by content."""
        checksums = [[shard.tokens_sha256 for shard in generation.shards] for generation in self.generations]
        return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()


class SplitManifests(NamedTuple):
    """The manifests of both splits, in the order of `SPLITS`."""

    train: ShardManifest
    validation: ShardManifest


def write_manifest(split: Storage, manifest: ShardManifest) -> None:
    """Write the manifest, which makes the split complete."""
    split.write_json(MANIFEST, to_plain(manifest))


def read_manifest(split: Storage) -> ShardManifest:
    """The manifest of a split. Raises ValueError when there is none or it is of another format."""
    try:
        raw = split.read_json(MANIFEST)
    except FileNotFoundError as error:
        raise ValueError(f"{split.url} holds no {MANIFEST}: it is no split of shards, or was never finished") from error
    if raw.get("format") != FORMAT:
        raise ValueError(f"{split.url}/{MANIFEST}: format {raw.get('format')} is not {FORMAT}; make the shards again")
    return from_plain(ShardManifest, raw)


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
        ShardFile(f"{info.name}.documents.bin", info.num_documents * DOCUMENT_DTYPE.itemsize, info.documents_sha256),
    )


def document_key(document_id: str) -> int:
    """64 bits of a document id, by which the shards are searched for a document."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little")
