"""Rows: a row is a document on its way to a part, kept or dropped with a reason. Many rows form an Arrow table."""

# pyarrow.compute creates its functions when it is imported, so type checkers cannot see them.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Row(NamedTuple):
    """A document on its way to a part.

    A row that is kept so far has a text and a key. A dropped row has a reason and no text. A row that is dropped after
    the cleaning steps, for example as a duplicate, still has its key.
    """

    id: str
    source: str
    file: int
    """Number of the file among the source's files."""
    offset: int
    """Position of the document in the file (`Document.offset`)."""
    text: str | None = None
    metadata: str | None = None
    """The document's metadata as JSON."""
    key: bytes | None = None
    """Hash that is equal for equal texts (`exact_duplicates.text_key`)."""
    reason: str | None = None
    """Why the document was dropped: `STEP/RULE` of a cleaning step, or one word such as `exact_duplicates`."""
    kept_id: str | None = None
    """Id of the document of which this document is a duplicate, if it was dropped as a duplicate. That document may
    have been dropped afterwards itself: as a near-duplicate, or because of the mixture. If `raymill forget` removed
    that document, but this document could not be read again, this is the document of which that one was a duplicate,
    or None."""


ID_COLUMNS = (("id", pa.string()), ("source", pa.string()))
ORIGIN_COLUMNS = (("file", pa.uint32()), ("offset", pa.uint64()))
# These strings are `large_string`, because a part may contain more than 2 GiB of texts or of metadata.
CONTENT_COLUMNS = (("text", pa.large_string()), ("metadata", pa.large_string()))
DROP_COLUMNS = (("reason", pa.string()), ("kept_id", pa.string()))
ROW_SCHEMA = pa.schema([*ID_COLUMNS, *ORIGIN_COLUMNS, *CONTENT_COLUMNS, ("key", pa.binary()), *DROP_COLUMNS])
"""The columns of a table of rows: the fields of `Row`, in their order."""


class Drop(NamedTuple):
    """Why a row is dropped, and for a duplicate the id of the other document (`Row.reason` and `Row.kept_id`)."""

    reason: str
    kept_id: str | None = None


class KeptCounts(NamedTuple):
    """Number of kept documents of a source, and the bytes of their texts."""

    documents: int
    bytes: int


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Return the rows as a table with the columns `ROW_SCHEMA`."""
    if not rows:
        return ROW_SCHEMA.empty_table()
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=ROW_SCHEMA)


def drop_rows(rows: pa.Table, drops: Mapping[int, Drop]) -> pa.Table:
    """Return the table with some rows dropped. `drops` maps the positions of these rows to why they are dropped.

    A dropped row stays in the table. It gets the reason and the `kept_id` of its `Drop`, and it loses its text.
    """
    if not drops:
        return rows
    positions = sorted(drops)
    mask = np.zeros(len(rows), dtype=np.bool_)
    mask[positions] = True
    for name, values in (
        ("reason", [drops[position].reason for position in positions]),
        ("kept_id", [drops[position].kept_id for position in positions]),
        ("text", [None] * len(positions)),
    ):
        column = rows[name].combine_chunks()
        column = pc.replace_with_mask(column, pa.array(mask), pa.array(values, column.type))
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def sort_rows(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return the table sorted by these columns, with contiguous columns."""
    return table.sort_by([(name, "ascending") for name in columns]).combine_chunks()


def kept_rows(rows: pa.Table) -> pa.Table:
    """Return the rows that are not dropped."""
    return rows.filter(rows["reason"].is_null())


def kept_positions(rows: pa.Table) -> np.ndarray:
    """Return the positions of the rows that are not dropped."""
    return np.flatnonzero(rows["reason"].is_null().to_numpy())


def count_kept_by_source(documents: pa.Table) -> dict[str, KeptCounts]:
    """Return the number of documents and the bytes of their texts. The keys are the names of the sources.

    No document of the table may be dropped.
    """
    table = pa.table({"source": documents["source"], "bytes": pc.binary_length(documents["text"])})
    table = table.group_by("source").aggregate([("bytes", "count"), ("bytes", "sum")])
    return {row["source"]: KeptCounts(row["bytes_count"], row["bytes_sum"]) for row in table.to_pylist()}


def kept_bytes_by_source(rows: pa.Table) -> dict[str, int]:
    """Return the bytes of the kept texts of each source. The keys are the names of the sources."""
    return {source: counts.bytes for source, counts in count_kept_by_source(kept_rows(rows)).items()}
