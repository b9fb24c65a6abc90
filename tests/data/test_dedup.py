"""Exact duplicates."""

from data.dedup import duplicates, text_key


def test_texts_are_the_same_apart_from_case_white_space_and_unicode_form() -> None:
    assert text_key("A  café\n") == text_key("a cafe\u0301") != text_key("a cafes")


def test_the_lowest_id_of_equal_texts_is_kept_wherever_it_stands() -> None:
    keys = [text_key(text) for text in ("x", "y", "X", "x ")]
    assert duplicates(keys, ["c", "d", "a", "b"]) == [True, False, False, True]


def test_of_equal_ids_the_first_is_kept() -> None:
    assert duplicates([b"k", b"k"], ["a", "a"]) == [False, True]
