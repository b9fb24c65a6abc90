"""The file format of token shards, which training reads. `shard_writer.py` writes it and `shard_reader.py` reads it.

A tokenized corpus has two splits, train/ and validation/. A split is a folder of shards and a manifest. The manifest is
written last, so a split without a manifest is incomplete:

    manifest.json
    shard-00000.tokens.bin      the stream: S a … a S b … b S c … c S    little-endian token ids
    shard-00000.documents.bin   one `DOCUMENT_DTYPE` record for each document, in the order of the stream

The stream of a shard is the sequence of its token ids. Here a, b and c are the tokens of three documents, and S is the
separator, a special token between documents. The model reads each token as an input and predicts the next token, the
target. As a target, the separator is the last token of the document before it. As an input, it is the first token of
the document after it, and a reader replaces it by the token `begin`, which is the tokenizer's bos token if it has one:

    inputs    B a a a B b b B c …
    targets   a a a S b b S c …

So every token of a document and the document's end are targets exactly once, no target has to be masked, and no token
is stored twice. The document table says where documents begin. With it, training gives each document in a row a number,
so that attention does not cross from one document to the next.

In a shard, all documents of one source follow one another; they are a `SourceRange`. The sequence length T is not part
of the format. A reader cuts a range that begins at position f into rows. Row r is

    stream[f + r * T : f + r * T + T + 1]

and the last row of a range may be shorter. So each row belongs to one source, and a reader can mix sources by weight.

A document is never split between shards, so when a document must be forgotten only its shard is written again. A corpus
grows by adding shards, which form a new generation. The order in which rows are trained on depends only on the
generations, the seed, the sequence length and the mixture of sources (`data/tokens/shuffle.py` and
`data/tokens/mixture.py`).
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cluster.plain import from_plain, to_plain
from cluster.storage import Storage

FORMAT = 3
"""Version of this format, stored in the manifest."""
MANIFEST = "manifest.json"
SPLITS = ("train", "validation")

DOCUMENT_DTYPE = np.dtype([("start", "<u8"), ("num_bytes", "<u8"), ("id", "<u8"), ("source", "<u4")])
"""Type of the records in a shard's document table, the file `<shard>.documents.bin`. Their fields are:

- start: position in the stream of the separator before the document.
- num_bytes: size of the document's text in bytes.
- id: hash of the document's id (`document_key`).
- source: position of the document's source in the list of sources in the manifest.
"""


@dataclass(frozen=True, kw_only=True)
class SourceRange:
    """The part of a shard's stream that holds the documents of one source."""

    source: int
    """Position of the source in the list of sources in the manifest."""
    first: int
    """Position in the stream of the separator before the range's first document."""
    num_targets: int
    """Number of tokens to predict: all tokens of the documents, and the separator after each document."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """What the manifest records about a shard."""

    name: str
    part: str
    """Name of the corpus part that the shard was made from. A part is an output file of a corpus. Empty if the shard
    was not made from a corpus part."""
    part_digest: str
    """Content digest of the part when the shard was made. Empty if `part` is empty."""
    encoder: str
    """Name of the library that encoded the text, `tiktoken` or `tokenizers` (`data.tokens.encode`)."""
    num_tokens: int
    """Length of the stream, including separators."""
    num_documents: int
    num_bytes: int
    """Total size of the documents' texts in bytes."""
    source_ranges: tuple[SourceRange, ...]
    """The ranges in the order of the stream. Every target of the shard is in exactly one range."""
    tokens_sha256: str
    """Checksum of the token file."""
    documents_sha256: str
    """Checksum of the document table."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Shards that were added to a split at the same time, from the same corpus."""

    corpus: str
    """Content digest of the corpus."""
    shards: tuple[ShardInfo, ...]
    known: str = ""
    """Checksum of the list of excluded documents (`data.tokens.growth.ExcludedDocuments`), which were left out because
    older generations already contain them. Empty for a first generation."""


@dataclass(frozen=True, kw_only=True)
class ShardManifest:
    """The content of manifest.json: which shards a split has, and how they were made."""

    tokenizer: str
    """Fingerprint of the tokenizer (`data.tokens.tokenizer.fingerprint`)."""
    vocab_size: int
    begin: int
    """Id of the token that every document begins with as an input (`data.tokens.tokenizer.DocumentTokens`)."""
    separator: int
    """Id of the separator, the token at the end of every document."""
    sources: tuple[str, ...]
    """Names of the sources. The documents of a shard are in the order of this list."""
    generations: tuple[Generation, ...]
    format: int = FORMAT

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored token ids: 16 bits if every id fits, otherwise 32 bits."""
        return np.dtype("<u2") if self.vocab_size <= 2**16 else np.dtype("<u4")

    @cached_property
    def shards(self) -> tuple[ShardInfo, ...]:
        """The shards of all generations, oldest generation first."""
        return tuple(shard for generation in self.generations for shard in generation.shards)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def num_targets(self) -> int:
        """Number of tokens to predict in one epoch: all tokens of the documents, and the end of each document."""
        return sum(shard.num_tokens - 1 for shard in self.shards)

    @property
    def targets_by_source(self) -> dict[str, int]:
        """The number of targets of each source."""
        targets = dict.fromkeys(self.sources, 0)
        for shard in self.shards:
            for source_range in shard.source_ranges:
                targets[self.sources[source_range.source]] += source_range.num_targets
        return targets

    @cached_property
    def digest(self) -> str:
        """Hash of the checksums of the token files, generation by generation."""
        checksums = [[shard.tokens_sha256 for shard in generation.shards] for generation in self.generations]
        return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()


class SplitManifests(NamedTuple):
    """The manifests of both splits. The order of the fields is that of `SPLITS`."""

    train: ShardManifest
    validation: ShardManifest


def write_manifest(split: Storage, manifest: ShardManifest) -> None:
    """Write the manifest of a split. All shards must exist already, because a split with a manifest is complete."""
    split.write_json(MANIFEST, to_plain(manifest))


def read_manifest(split: Storage) -> ShardManifest:
    """Return the manifest of a split. Raises ValueError if it is missing or has another format version."""
    try:
        raw = split.read_json(MANIFEST)
    except FileNotFoundError as error:
        raise ValueError(
            f"{split.url} has no {MANIFEST}: it is not a split of token shards, or the job that writes the shards did "
            "not finish"
        ) from error
    if raw.get("format") != FORMAT:
        raise ValueError(
            f"{split.url}/{MANIFEST}: format version {raw.get('format')} is not supported, only version {FORMAT} is; "
            "make the shards again"
        )
    return from_plain(ShardManifest, raw)


class ShardFile(NamedTuple):
    """The name, size and checksum that a file of a shard must have."""

    name: str
    num_bytes: int
    """Size of the file, not of the documents' texts."""
    sha256: str


def shard_files(manifest: ShardManifest, info: ShardInfo) -> tuple[ShardFile, ShardFile]:
    """Return the token file and the document table of a shard."""
    num_bytes = info.num_tokens * manifest.dtype.itemsize
    return (
        ShardFile(f"{info.name}.tokens.bin", num_bytes, info.tokens_sha256),
        ShardFile(f"{info.name}.documents.bin", info.num_documents * DOCUMENT_DTYPE.itemsize, info.documents_sha256),
    )


def document_key(document_id: str) -> int:
    """Return a 64-bit hash of a document id. Document tables store this hash instead of the id."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little")
