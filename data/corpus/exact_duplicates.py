"""Exact duplicates: documents whose texts are equal apart from case, white space and Unicode form."""

import hashlib
import unicodedata
from collections.abc import Sequence

import pyarrow as pa

from data.corpus.rows import Drop, Row, drop_rows, kept_positions, sort_rows


def text_key(text: str) -> bytes:
    """128 bits that two texts share when they are the same apart from case, white space and Unicode form."""
    normal = " ".join(unicodedata.normalize("NFC", text.casefold()).split())
    return hashlib.blake2b(normal.encode(), digest_size=16).digest()


def sort_and_deduplicate(rows: pa.Table, *, deduplicate: bool) -> pa.Table:
    """The rows in the order of a part; with `deduplicate`, all but the first of those with equal texts are dropped."""
    rows = sort_rows(rows, ["id", "text", "metadata", "reason", "file", "offset"])
    if not deduplicate:
        return rows
    ids, keys = rows["id"].to_pylist(), rows["key"].to_pylist()
    first: dict[bytes, int] = {}
    for position in kept_positions(rows).tolist():  # the very first still has its text, whatever chunks the rest was in
        first.setdefault(keys[position], position)
    duplicates = {position: first[key] for position, key in enumerate(keys) if key and first[key] != position}
    return drop_rows(rows, {position: Drop("exact_duplicates", ids[kept]) for position, kept in duplicates.items()})


def without_equal_texts(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a part, of which each text keeps only its first row in the order of `sort_and_deduplicate`."""
    result = [row for row in rows if row.key is None]
    seen: set[bytes | None] = set()
    with_text = [row for row in rows if row.key is not None]
    for row in sorted(with_text, key=lambda row: (row.id, row.text, row.metadata, row.file, row.offset)):
        is_duplicate = row.key in seen
        result.append(row._replace(text=None, metadata=None, reason="exact_duplicates") if is_duplicate else row)
        seen.add(row.key)
    return result
