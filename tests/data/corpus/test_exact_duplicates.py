"""Exact duplicates: which texts are equal, and which document is kept."""

import pyarrow as pa
import pytest

from data.cleaning.duplicates import ExactDuplicates
from data.cleaning.recipe import Step
from data.corpus.chunks import clean_rows
from data.corpus.exact_duplicates import sort_and_deduplicate, text_key
from data.corpus.rows import ROW_SCHEMA, Row, to_table
from data.document import Document

IGNORE = ExactDuplicates()


def test_texts_that_differ_in_case_white_space_or_unicode_form_are_equal() -> None:
    assert text_key("A  café\n", IGNORE) == text_key("a cafe\u0301", IGNORE) != text_key("a cafes", IGNORE)


@pytest.mark.parametrize(
    ("one", "other", "differ_in_case", "differ_in_whitespace"),
    [
        ("if a:\n    b()\nc()", "if a:\n    b()\n    c()", False, True),  # the indentation is the program
        ("a:\tb", "a:    b", False, True),
        ("今天\u3000很好", "今天 很好", False, True),
        ("text", "text\r\n", False, True),
        ("const MAX = 1", "const max = 1", True, False),
        ("STRASSE", "straße", True, False),
        ("ΟΔΟΣ", "οδος", True, False),
        ("Same  Text", "same text", True, True),
        ("e\u0301", "é", False, False),
    ],
)
def test_case_and_white_space_are_choices(
    one: str, other: str, differ_in_case: bool, differ_in_whitespace: bool
) -> None:
    for case in (True, False):
        for space in (True, False):
            settings = ExactDuplicates(ignore_case=case, ignore_whitespace=space)
            are_equal = (case or not differ_in_case) and (space or not differ_in_whitespace)
            assert (text_key(one, settings) == text_key(other, settings)) == are_equal


def test_the_settings_of_the_recipe_decide_which_documents_are_equal() -> None:
    documents = [
        Document(id=f"s/{number}", text=text, source="s", metadata={}, file="f", offset=number)
        for number, text in enumerate(["if a:\n  b", "if a:\n    b", "IF A:\n    B"])
    ]
    for settings, kept in (
        (ExactDuplicates(), ["s/0"]),
        (ExactDuplicates(ignore_whitespace=False), ["s/0", "s/1"]),
        (ExactDuplicates(ignore_case=False), ["s/0", "s/2"]),
        (ExactDuplicates(ignore_case=False, ignore_whitespace=False), ["s/0", "s/1", "s/2"]),
    ):
        part_rows = clean_rows(documents, [Step(exact_duplicates=settings)], fraction=1.0, files={"f": 0}, num_parts=1)
        table = sort_and_deduplicate(to_table([row for _, row in part_rows.rows]), deduplicate=True)
        assert [row["id"] for row in table.to_pylist() if row["reason"] is None] == kept


def rows(*texts: tuple[str, str], source: str = "s") -> pa.Table:
    """Return a table with a row for each (id, text). Every row has a different file number."""
    return to_table(
        [Row(name, source, number, 0, text, "{}", text_key(text, IGNORE)) for number, (name, text) in enumerate(texts)]
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
