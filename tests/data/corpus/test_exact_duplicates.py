"""Exact duplicates: which texts are equal, and which document is kept."""

import pyarrow as pa

from data.corpus.exact_duplicates import sort_and_deduplicate, text_key
from data.corpus.rows import ROW_SCHEMA, Row, to_table


def test_texts_that_differ_in_case_white_space_or_unicode_form_are_equal() -> None:
    assert text_key("A  café\n") == text_key("a cafe\u0301") != text_key("a cafes")


def rows(*texts: tuple[str, str], source: str = "s") -> pa.Table:
    """Return a table with a row for each (id, text). Every row has a different file number."""
    return to_table(
        [Row(name, source, number, 0, text, "{}", text_key(text)) for number, (name, text) in enumerate(texts)]
    )


def test_of_equal_texts_the_lowest_id_is_kept_and_is_the_kept_id_of_the_others() -> None:
    table = sort_and_deduplicate(
        rows(("c", "Same  text"), ("a", "same text"), ("b", "other"), ("d", "SAME TEXT")), deduplicate=True
    )
    found = [(row["id"], row["reason"], row["kept_id"]) for row in table.to_pylist()]
    assert found == [
        ("a", None, None),
        ("b", None, None),
        ("c", "exact_duplicates", "a"),
        ("d", "exact_duplicates", "a"),
    ]
    assert [row["text"] for row in table.to_pylist()] == ["same text", "other", None, None]


def test_documents_with_equal_ids_are_kept_unless_their_texts_are_equal() -> None:
    table = sort_and_deduplicate(rows(("a", "one"), ("a", "two"), ("a", "one")), deduplicate=True)
    assert [(row["text"], row["reason"]) for row in table.to_pylist()] == [
        ("one", None),
        (None, "exact_duplicates"),
        ("two", None),
    ]


def test_texts_of_a_part_may_exceed_32_bit_offsets() -> None:
    table = sort_and_deduplicate(rows(("a", "x"), ("b", "X")), deduplicate=True)
    assert table.schema == ROW_SCHEMA and ROW_SCHEMA.field("text").type == pa.large_string()
