"""Exact duplicates: which texts are equal, and which document is kept."""

import pyarrow as pa

from data.corpus.exact_duplicates import sort_and_deduplicate, text_key
from data.corpus.rows import ROW_SCHEMA, Row, to_table


def test_texts_are_the_same_apart_from_case_white_space_and_unicode_form() -> None:
    assert text_key("A  café\n") == text_key("a cafe\u0301") != text_key("a cafes")


def rows(*texts: tuple[str, str], source: str = "s") -> pa.Table:
    """A table of (id, text), each in a file of its own."""
    return to_table(
        [Row(name, source, number, 0, text, "{}", text_key(text)) for number, (name, text) in enumerate(texts)]
    )


def test_of_equal_texts_the_lowest_id_is_kept_and_the_others_name_it() -> None:
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


def test_documents_of_one_id_stay_apart_unless_their_texts_are_equal() -> None:
    table = sort_and_deduplicate(rows(("a", "one"), ("a", "two"), ("a", "one")), deduplicate=True)
    assert [(row["text"], row["reason"]) for row in table.to_pylist()] == [
        ("one", None),
        (None, "exact_duplicates"),
        ("two", None),
    ]


def test_a_parts_texts_may_be_larger_than_offsets_of_32_bits_tell() -> None:
    table = sort_and_deduplicate(rows(("a", "x"), ("b", "X")), deduplicate=True)
    assert table.schema == ROW_SCHEMA and ROW_SCHEMA.field("text").type == pa.large_string()
