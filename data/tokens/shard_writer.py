"""Writing shards: a part's documents become a file of tokens and a file of document records."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from cluster.storage import Storage
from data.tokens.encode import Encoder
from data.tokens.shard_format import DOCUMENT_DTYPE, ShardInfo, ShardManifest, SourceRange, document_key

_ENCODE_DOCUMENTS = 256  # documents that the encoder gets at once


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
        documents = [(source, document) for source, of_source in enumerate(self._written) for document in of_source]
        table = np.zeros(len(documents), dtype=DOCUMENT_DTYPE)
        ends = np.cumsum([len(written.tokens) + 1 for _, written in documents], dtype=np.int64)
        table["start"][1:] = ends[:-1]
        table["num_bytes"] = [written.num_bytes for _, written in documents]
        table["id"] = np.array([written.key for _, written in documents], dtype=np.uint64)
        table["source"] = [source for source, _ in documents]
        arrays = [array for _, written in documents for array in (written.tokens, separator)]
        tokens = np.concatenate([separator, *arrays]).tobytes()
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
            source_ranges=self._source_ranges(),
            tokens_sha256=hashlib.sha256(tokens).hexdigest(),
            documents_sha256=hashlib.sha256(table.tobytes()).hexdigest(),
        )

    def _source_ranges(self) -> tuple[SourceRange, ...]:
        ranges: list[SourceRange] = []
        first = 0
        for source, documents in enumerate(self._written):
            if documents:
                num_targets = sum(len(document.tokens) + 1 for document in documents)
                ranges.append(SourceRange(source=source, first=first, num_targets=num_targets))
                first += num_targets
        return tuple(ranges)


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
