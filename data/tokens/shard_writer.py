"""Writes shards: token files and document tables in the format of `data/tokens/shard_format.py`."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from cluster.storage import Storage
from data.tokens.encode import Encoder, encode_documents
from data.tokens.shard_format import DOCUMENT_DTYPE, ShardInfo, ShardManifest, SourceRange, document_key

_ENCODE_BATCH_DOCUMENTS = 256  # documents that are encoded in one call


class TextDocument(NamedTuple):
    """A document to encode."""

    id: str
    text: str
    source: str


class _EncodedDocument(NamedTuple):
    """A document that is encoded but not written yet."""

    tokens: np.ndarray
    """Token ids of the text, without separators."""
    num_bytes: int
    """Size of the document's text in bytes."""
    key: int
    """Hash of the document's id (`document_key`)."""


class ShardWriter:
    """Encodes the documents of one shard, keeps their tokens in memory, and writes the shard source by source."""

    def __init__(self, manifest: ShardManifest, encoder: Encoder) -> None:
        """Create a writer of one shard with the dtype, separator and sources of the manifest."""
        self.manifest, self.encoder = manifest, encoder
        self._source_index = {source: index for index, source in enumerate(manifest.sources)}
        self._encoded: list[list[_EncodedDocument]] = [[] for _ in manifest.sources]
        """The documents added so far, one list for each source."""

    def add(self, documents: Sequence[TextDocument]) -> None:
        """Encode documents and add them to the shard. The documents of a source keep their order."""
        around = (self.manifest.begin, self.manifest.separator)
        encoded_texts = encode_documents(self.encoder, [document.text for document in documents], around)
        for document, token_ids in zip(documents, encoded_texts, strict=True):
            tokens = token_ids.astype(self.manifest.dtype)
            encoded = _EncodedDocument(tokens, len(document.text.encode()), document_key(document.id))
            self._encoded[self._source_index[document.source]].append(encoded)

    def write(self, split: Storage, name: str, *, part: str = "", part_digest: str = "") -> ShardInfo:
        """Write all added documents as a shard with this name, and return the shard's entry for the manifest.

        `part` is the name of the corpus part that the documents came from, and `part_digest` is its content digest.
        Both are empty if the documents did not come from a corpus part.
        """
        separator = np.array([self.manifest.separator], dtype=self.manifest.dtype)
        documents = [
            (source_index, document)
            for source_index, source_documents in enumerate(self._encoded)
            for document in source_documents
        ]
        table = np.zeros(len(documents), dtype=DOCUMENT_DTYPE)
        ends = np.cumsum([len(document.tokens) + 1 for _, document in documents], dtype=np.int64)
        table["start"][1:] = ends[:-1]
        table["num_bytes"] = [document.num_bytes for _, document in documents]
        table["id"] = np.array([document.key for _, document in documents], dtype=np.uint64)
        table["source"] = [source_index for source_index, _ in documents]
        arrays = [array for _, document in documents for array in (document.tokens, separator)]
        tokens = np.concatenate([separator, *arrays]).tobytes()
        split.write_bytes(f"{name}.tokens.bin", tokens)
        split.write_bytes(f"{name}.documents.bin", table.tobytes())
        return ShardInfo(
            name=name,
            part=part,
            part_digest=part_digest,
            encoder=self.encoder.backend,
            num_tokens=len(tokens) // self.manifest.dtype.itemsize,
            num_documents=len(table),
            num_bytes=int(table["num_bytes"].sum()),
            source_ranges=self._source_ranges(),
            tokens_sha256=hashlib.sha256(tokens).hexdigest(),
            documents_sha256=hashlib.sha256(table.tobytes()).hexdigest(),
        )

    def _source_ranges(self) -> tuple[SourceRange, ...]:
        """Return the range of each source that has documents in the shard, in the order of the stream."""
        ranges: list[SourceRange] = []
        first = 0
        for source_index, documents in enumerate(self._encoded):
            if documents:
                num_targets = sum(len(document.tokens) + 1 for document in documents)
                ranges.append(SourceRange(source=source_index, first=first, num_targets=num_targets))
                first += num_targets
        return tuple(ranges)


def write_shard(
    split: Storage, name: str, documents: Iterable[TextDocument], encoder: Encoder, manifest: ShardManifest
) -> ShardInfo:
    """Encode the documents and write them as one shard of the split. Returns the shard's entry for the manifest.

    The shard has the dtype, separator and sources of `manifest`.
    """
    writer = ShardWriter(manifest, encoder)
    for batch in batches(documents, _ENCODE_BATCH_DOCUMENTS):
        writer.add(batch)
    return writer.write(split, name)


def batches(documents: Iterable[TextDocument], size: int) -> Iterator[list[TextDocument]]:
    """Yield the documents in lists of `size`. The last list may be shorter."""
    remaining = iter(documents)
    while batch := list(islice(remaining, size)):
        yield batch
