"""The shares of a mixture, and the documents that it keeps."""

import pyarrow as pa
import pytest

from data.cleaning.duplicates import ExactDuplicates
from data.corpus.exact_duplicates import sort_and_deduplicate, text_key
from data.corpus.mixture import apply_mixture, mixture_shares
from data.corpus.rows import Row, kept_bytes_by_source, to_table
from data.document import unit_hash


def rows(*texts: tuple[str, str], source: str = "s") -> pa.Table:
    """Return a table with a row for each (id, text). Every row has a different file number."""
    return to_table(
        [
            Row(name, source, number, 0, text, "{}", text_key(text, ExactDuplicates()))
            for number, (name, text) in enumerate(texts)
        ]
    )


def test_a_mixture_keeps_as_many_bytes_as_its_weights_allow() -> None:
    # 3 : 1 of 300 and 1,000 bytes: the first limits, 300 / 0.75 = 400 in all, so 100 of the second's 1,000.
    assert mixture_shares({"a": 300, "b": 1000}, {"a": 3, "b": 1}) == {"a": 1.0, "b": pytest.approx(0.1)}
    assert mixture_shares({"a": 300, "b": 1000}, {"a": 1, "b": 0}) == {"a": 1.0, "b": 0.0}
    assert mixture_shares({"a": 0, "b": 1000}, {"a": 1, "b": 1}) == {"a": 0.0, "b": 1.0}


def test_a_mixture_selects_documents_by_a_hash_of_their_ids() -> None:
    table = sort_and_deduplicate(rows(*((f"s/{n}", f"text {n}") for n in range(2000))), deduplicate=False)
    mixed = apply_mixture(table, {"s": 0.25})
    kept = [row["id"] for row in mixed.to_pylist() if row["reason"] is None]
    assert kept == [document_id for document_id in table["id"].to_pylist() if unit_hash(document_id, "mixture") < 0.25]
    assert 430 < len(kept) < 570
    assert kept_bytes_by_source(mixed) == {"s": sum(len(row["text"]) for row in mixed.to_pylist() if row["text"])}
