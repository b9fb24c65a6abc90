"""Drops exact duplicates: documents whose texts are equal, apart from what the settings of `exact_duplicates` ignore.

The document with the lowest id is kept.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import pyarrow as pa

from data.cleaning.duplicates import ExactDuplicates
from data.corpus.rows import Drop, Row, drop_rows, kept_positions, sort_rows


def text_key(text: str, settings: ExactDuplicates) -> bytes:
    """Return a hash of 128 bits that is equal for texts that are exact duplicates."""
    normalized = unicodedata.normalize("NFC", text.casefold() if settings.ignore_case else text)
    if settings.ignore_whitespace:
        normalized = " ".join(normalized.split())
    return hashlib.blake2b(normalized.encode(), digest_size=16).digest()


def sort_and_deduplicate(rows: pa.Table, *, deduplicate: bool) -> pa.Table:
    """Sort the rows of a part. With `deduplicate`, all rows but the first one of each text are marked as dropped.

    `rows` must contain every row that may have the same text as one of them. A complete part does, because all rows
    with the same key are in one part.
    """
    rows = sort_rows(rows, ["id", "text", "metadata", "reason", "file", "offset"])
    if not deduplicate:
        return rows
    ids, keys = rows["id"].to_pylist(), rows["key"].to_pylist()
    first_positions: dict[bytes, int] = {}
    # It is enough to look at the rows that are still kept. In each chunk `mark_equal_texts` has dropped all rows of a
    # text but the first, and the row that is first in the part was also the first in its chunk.
    for position in kept_positions(rows).tolist():
        first_positions.setdefault(keys[position], position)
    # A row without a key was dropped by a cleaning step, so it cannot be a duplicate.
    duplicates = {
        position: first_positions[key] for position, key in enumerate(keys) if key and first_positions[key] != position
    }
    return drop_rows(rows, {position: Drop("exact_duplicates", ids[kept]) for position, kept in duplicates.items()})


def mark_equal_texts(rows: Sequence[Row]) -> list[Row]:
    """Return all rows, but mark every row except the first one of each text as dropped.

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
