"""Rows: documents on their way to a part, kept or dropped with a reason, as Arrow tables."""

# pyarrow.compute makes its functions while it is imported, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Row(NamedTuple):
    """A document on its way to a part: with text and key while it is kept, with a reason once it is dropped.

    A row with both a key and a reason has the same text as another row, which is kept.
    """

    id: str
    source: str
    file: int
    """Position in the list of the source's files."""
    offset: int
    """`Document.offset`."""
    text: str | None = None
    metadata: str | None = None
    """As JSON."""
    key: bytes | None = None
    """`text_key` of the text."""
    reason: str | None = None
    """`step/rule` of the step that dropped it."""
    kept_id: str | None = None
    """Id of the document that is kept in place of this duplicate."""


ID_COLUMNS = (("id", pa.string()), ("source", pa.string()))
ORIGIN_COLUMNS = (("file", pa.uint32()), ("offset", pa.uint64()))
CONTENT_COLUMNS = (
    ("text", pa.large_string()),
    ("metadata", pa.large_string()),
)  # a part may hold more than 2 GiB of either
DROP_COLUMNS = (("reason", pa.string()), ("kept_id", pa.string()))
ROW_SCHEMA = pa.schema([*ID_COLUMNS, *ORIGIN_COLUMNS, *CONTENT_COLUMNS, ("key", pa.binary()), *DROP_COLUMNS])
"""The fields of `Row`, in their order."""


class Drop(NamedTuple):
    """Why a row is dropped."""

    reason: str
    kept_id: str | None = None


class KeptCounts(NamedTuple):
    """How much of a source is kept."""

    documents: int
    bytes: int


def to_table(rows: Sequence[Row]) -> pa.Table:
    """The rows as a table of `ROW_SCHEMA`."""
    if not rows:
        return ROW_SCHEMA.empty_table()
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=ROW_SCHEMA)


def drop_rows(rows: pa.Table, drops: Mapping[int, Drop]) -> pa.Table:
    """The rows after those at some positions have got a reason and lost their text."""
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
    """The table sorted by these columns, as one Arrow chunk."""
    return table.sort_by([(name, "ascending") for name in columns]).combine_chunks()


def kept_rows(rows: pa.Table) -> pa.Table:
    """The rows that are not dropped."""
    return rows.filter(rows["reason"].is_null())


def kept_positions(rows: pa.Table) -> np.ndarray:
    """Positions of the rows that are not dropped."""
    return np.flatnonzero(rows["reason"].is_null().to_numpy())


def count_kept_by_source(documents: pa.Table) -> dict[str, KeptCounts]:
    """Number of documents and bytes of their texts, by source."""
    table = pa.table({"source": documents["source"], "size": pc.binary_length(documents["text"])})
    table = table.group_by("source").aggregate([("size", "count"), ("size", "sum")])
    return {row["source"]: KeptCounts(row["size_count"], row["size_sum"]) for row in table.to_pylist()}


def kept_bytes_by_source(rows: pa.Table) -> dict[str, int]:
    """Bytes of text that each source has among the rows that are kept."""
    return {source: text.bytes for source, text in count_kept_by_source(kept_rows(rows)).items()}
