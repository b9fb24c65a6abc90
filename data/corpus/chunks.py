"""Chunks: documents are cleaned into rows, and a task's rows are written with one bucket for each part.

A document belongs to the part that its text's hash names, so equal texts meet in one part whatever files they came
from.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from cluster.storage import Storage
from data.chunk_files import read_table, write_tables
from data.cleaning.recipe import Step, clean
from data.corpus.exact_duplicates import sort_and_deduplicate, text_key, without_equal_texts
from data.corpus.rows import ROW_SCHEMA, Row, to_table
from data.document import Document, unit_hash

_CHUNK_BYTES = 64 << 20
_ROW_BYTES = 200
"""About what a row takes beside its text and metadata."""


class PartRow(NamedTuple):
    """A row and the part that it belongs to."""

    part: int
    row: Row


class CleanRows(NamedTuple):
    rows: list[PartRow]
    """One of every document, kept or dropped."""
    changed: Mapping[str, int]
    """How often each change was made (`step/change`)."""


def part_of_text(key: bytes, num_parts: int) -> int:
    """The part of a document with this `text_key`."""
    return int.from_bytes(key[:8], "big") * num_parts >> 64


def clean_rows(
    documents: Sequence[Document], steps: Sequence[Step], *, fraction: float, files: Mapping[str, int], num_parts: int
) -> CleanRows:
    """The rows of one source's documents after its fraction is taken and the cleaning steps are applied.

    `files` gives the number of each of the source's files by URL.
    """
    chosen = [document for document in documents if unit_hash(document.id, "fraction") < fraction]
    surplus = [document for document in documents if unit_hash(document.id, "fraction") >= fraction]
    result = clean(chosen, steps)
    rows: list[PartRow] = []
    for document in result.kept:
        key = text_key(document.text)
        metadata = json.dumps(document.metadata, sort_keys=True, ensure_ascii=False, default=str)
        row = _identity_row(document, files)._replace(text=document.text, metadata=metadata, key=key)
        rows.append(PartRow(part_of_text(key, num_parts), row))
    for document, reason in [*result.dropped, *((document, "fraction") for document in surplus)]:
        part = int(unit_hash(document.id, "bucket") * num_parts)
        rows.append(PartRow(part, _identity_row(document, files)._replace(reason=reason)))
    return CleanRows(rows, result.counts)


def _identity_row(document: Document, files: Mapping[str, int]) -> Row:
    return Row(document.id, document.source, files[document.file], document.offset)


class ChunkWriter:
    """Collects rows and writes them as chunks, of which bucket p holds the rows of part p.

    With `deduplicate` only the first of a chunk's equal texts is written: all copies of a text meet in one part, and
    there may be millions.
    """

    def __init__(self, folder: Storage, prefix: str, num_parts: int, *, deduplicate: bool) -> None:
        self._folder, self._prefix, self._deduplicate = folder, prefix, deduplicate
        self._rows: list[list[Row]] = [[] for _ in range(num_parts)]
        self._num_bytes = 0
        self._names: list[str] = []

    def add(self, rows: Iterable[PartRow]) -> None:
        """Add rows, and write a chunk once there are enough."""
        for part, row in rows:
            self._rows[part].append(row)
            self._num_bytes += len(row.text or "") + len(row.metadata or "") + _ROW_BYTES
        if self._num_bytes > _CHUNK_BYTES:
            self._write()

    def close(self) -> list[str]:
        """Write the remaining rows; return the names of all chunks."""
        if self._num_bytes:
            self._write()
        return self._names

    def _write(self) -> None:
        rows_by_part = [without_equal_texts(rows) for rows in self._rows] if self._deduplicate else self._rows
        name = f"{self._prefix}-{len(self._names):05d}.arrow"
        write_tables(self._folder, name, [to_table(rows) for rows in rows_by_part])
        self._names.append(name)
        self._rows = [[] for _ in self._rows]
        self._num_bytes = 0


def read_part_rows(folder: Storage, chunks: Sequence[str], part: int, *, deduplicate: bool) -> pa.Table:
    """Every row of one part, from all chunks, in the order of a part (`sort_and_deduplicate`)."""
    return sort_and_deduplicate(read_table(folder, chunks, part, ROW_SCHEMA), deduplicate=deduplicate)
