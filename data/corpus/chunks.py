"""Chunks: the intermediate files in which a cleaning task writes the rows of its documents.

A chunk has one bucket for each part of the corpus. A hash of the text decides which part a document belongs to. So
documents with equal texts are in one part, whatever files they come from. Only a document that a cleaning step drops is
assigned to a part by a hash of its id.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from cluster.storage import Storage
from data.chunk_files import read_table, write_tables
from data.cleaning.changes import SamplesByStep
from data.cleaning.recipe import Step, clean, exact_duplicate_settings
from data.corpus.exact_duplicates import mark_equal_texts, sort_and_deduplicate, text_key
from data.corpus.rows import ROW_SCHEMA, Row, to_table
from data.document import Document, unit_hash

_CHUNK_BYTES = 64 << 20
"""A chunk is written when the estimated size of the collected rows is above this. The estimate counts one byte for each
character of the text and metadata, and `_ROW_BYTES` for each row."""
_ROW_BYTES = 200
"""Approximate size in memory of a row without its text and metadata."""


class PartRow(NamedTuple):
    """A row and the number of the part that it belongs to."""

    part_number: int
    row: Row


class CleanRows(NamedTuple):
    """The result of `clean_rows`."""

    rows: list[PartRow]
    """One row for every document, kept or dropped."""
    num_changes: Mapping[str, int]
    """How often cleaning steps made each kind of change (`data.cleaning.recipe.CleaningResult.counts`)."""
    samples: SamplesByStep
    """Samples of the texts that each step changed."""


def part_of_text(key: bytes, num_parts: int) -> int:
    """Return the number of the part to which a document with this `text_key` belongs."""
    return int.from_bytes(key[:8], "big") * num_parts >> 64


def clean_rows(
    documents: Sequence[Document], steps: Sequence[Step], *, fraction: float, files: Mapping[str, int], num_parts: int
) -> CleanRows:
    """Clean documents of one source, and return a row for each of them.

    The cleaning steps are applied to a `fraction` of the documents. The others are dropped with the reason `fraction`.
    `files` maps the URL of each document's file to the file's number.
    """
    chosen = [document for document in documents if unit_hash(document.id, "fraction") < fraction]
    not_chosen = [document for document in documents if unit_hash(document.id, "fraction") >= fraction]
    cleaned = clean(chosen, steps)
    rows: list[PartRow] = []
    settings = exact_duplicate_settings(steps)
    for document in cleaned.kept:
        key = text_key(document.text, settings)
        metadata = json.dumps(document.metadata, sort_keys=True, ensure_ascii=False, default=str)
        row = _identity_row(document, files)._replace(text=document.text, metadata=metadata, key=key)
        rows.append(PartRow(part_of_text(key, num_parts), row))
    for document, reason in [*cleaned.dropped, *((document, "fraction") for document in not_chosen)]:
        part_number = int(unit_hash(document.id, "bucket") * num_parts)  # a dropped document may be in any part
        rows.append(PartRow(part_number, _identity_row(document, files)._replace(reason=reason)))
    return CleanRows(rows, cleaned.counts, cleaned.samples)


def _identity_row(document: Document, files: Mapping[str, int]) -> Row:
    """Return a row with the document's id and origin, but without its text and without a reason."""
    return Row(document.id, document.source, files[document.file], document.offset)


class ChunkWriter:
    """Collects rows and writes them as chunks. Bucket p of a chunk contains the rows of part p.

    With `deduplicate`, a chunk contains each text only once. This keeps the buckets small, because all copies of a text
    belong to one part, and a frequent text may have millions of copies.

    The names of the chunks begin with `prefix`.
    """

    def __init__(self, folder: Storage, prefix: str, num_parts: int, *, deduplicate: bool) -> None:
        self._folder, self._prefix, self._deduplicate = folder, prefix, deduplicate
        self._rows_by_part: list[list[Row]] = [[] for _ in range(num_parts)]
        self._num_bytes = 0
        self._names: list[str] = []

    def add(self, rows: Iterable[PartRow]) -> None:
        """Add rows. Writes a chunk if the estimated size of the collected rows is above `_CHUNK_BYTES`."""
        for part_number, row in rows:
            self._rows_by_part[part_number].append(row)
            self._num_bytes += len(row.text or "") + len(row.metadata or "") + _ROW_BYTES
        if self._num_bytes > _CHUNK_BYTES:
            self._write()

    def close(self) -> list[str]:
        """Write the remaining rows. Returns the names of all chunks."""
        if self._num_bytes:
            self._write()
        return self._names

    def _write(self) -> None:
        """Write the collected rows as one chunk."""
        rows_by_part = self._rows_by_part
        if self._deduplicate:
            rows_by_part = [mark_equal_texts(rows) for rows in rows_by_part]
        name = f"{self._prefix}-{len(self._names):05d}.arrow"
        write_tables(self._folder, name, [to_table(rows) for rows in rows_by_part])
        self._names.append(name)
        self._rows_by_part = [[] for _ in self._rows_by_part]
        self._num_bytes = 0


def read_part_rows(folder: Storage, chunks: Sequence[str], part_number: int, *, deduplicate: bool) -> pa.Table:
    """Read all rows of one part from the chunks, and sort them. With `deduplicate`, exact duplicates are dropped."""
    return sort_and_deduplicate(read_table(folder, chunks, part_number, ROW_SCHEMA), deduplicate=deduplicate)
