"""Drops exact duplicates: documents whose texts are equal apart from case, white space and Unicode normalization.

The document with the lowest id is kept.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import pyarrow as pa

from data.corpus.rows import Drop, Row, drop_rows, kept_positions, sort_rows


def text_key(text: str) -> bytes:
    """Return a hash of 128 bits that is equal for texts that are exact duplicates."""
    normalized = " ".join(unicodedata.normalize("NFC", text.casefold()).split())
    return hashlib.blake2b(normalized.encode(), digest_size=16).digest()


def sort_and_deduplicate(rows: pa.Table, *, deduplicate: bool) -> pa.Table:
    """Sort the rows of a part. With `deduplicate`, all rows but the first one of each text are dropped.

    With every row, `rows` must contain all other rows of the corpus that have an equal text. All rows of a part are an
    example, because documents with equal texts are in one part. `rows` may contain rows of several parts.
    """
    rows = sort_rows(rows, ["id", "text", "metadata", "reason", "file", "offset"])
    if not deduplicate:
        return rows
    ids, keys = rows["id"].to_pylist(), rows["key"].to_pylist()
    first_positions: dict[bytes, int] = {}
    # In a chunk, only the first row of each text still has the text (`without_equal_texts`). The row that is first in
    # the part was also first in its chunk, so it still has the text.
    for position in kept_positions(rows).tolist():
        first_positions.setdefault(keys[position], position)
    # A row without a key was dropped by a cleaning step, so it cannot be a duplicate.
    duplicates = {
        position: first_positions[key] for position, key in enumerate(keys) if key and first_positions[key] != position
    }
    return drop_rows(rows, {position: Drop("exact_duplicates", ids[kept]) for position, kept in duplicates.items()})


def without_equal_texts(rows: Sequence[Row]) -> list[Row]:
    """Drop all rows but the first one of each text. Returns the kept and the dropped rows.

    Rows without a key were dropped by a cleaning step and are returned unchanged.

    The first row is the first in the order of `sort_and_deduplicate`. Dropped rows lose their texts, which saves space
    in a chunk. `sort_and_deduplicate` sets their `kept_id` later, because the kept row may be in another chunk.
    """
    result = [row for row in rows if row.key is None]
    seen_keys: set[bytes | None] = set()
    rows_with_text = [row for row in rows if row.key is not None]
    for row in sorted(rows_with_text, key=lambda row: (row.id, row.text, row.metadata, row.file, row.offset)):
        is_duplicate = row.key in seen_keys
        result.append(row._replace(text=None, metadata=None, reason="exact_duplicates") if is_duplicate else row)
        seen_keys.add(row.key)
    return result
