"""What each rule of the step `clean_lines` removes and counts, and which texts it does not change."""

import re
from typing import Any

import pytest

from data.cleaning.clean_lines import CleanLines, clean_lines

OFF: dict[str, Any] = {"trim": False, "max_blank_lines": None, "phrases": []}


def cleaned(text: str, **rules: Any) -> tuple[str, dict[str, int]]:
    """Return the cleaned text, and the counts that are not 0."""
    settings = CleanLines(**(OFF | rules))
    settings.check("here")
    outcome = clean_lines([text], settings)
    assert outcome.reasons == [None]
    return outcome.texts[0], {name.removeprefix("clean_lines/"): n for name, n in outcome.counts.items() if n}


def test_each_rule_removes_and_counts_its_lines() -> None:
    assert cleaned("a  \n\tb\t\nc", trim=True) == ("a\n\tb\nc", {"trimmed": 2})
    assert cleaned("\n\na\n\n\n\nb\n \n", max_blank_lines=1) == ("\na\n\nb\n ", {"blank": 4})
    assert cleaned("a\nb\n", max_blank_lines=0) == ("a\nb", {"blank": 1})
    assert cleaned("Here WE use\nYes, we use it.", phrases=["We Use"]) == ("", {"phrases": 2})
    assert cleaned("one two\none\n\none two three", min_words=2) == ("one two\n\none two three", {"min_words": 1})
    assert cleaned("我们爱北京。\n首页\nสิทธิมนุษยชน", min_words=4) == ("我们爱北京。\nสิทธิมนุษยชน", {"min_words": 1})
    assert cleaned("abc\nabcd", max_characters=3) == ("abc", {"max_characters": 1})
    assert cleaned("ab 12\na 123", max_non_alphabetic=0.5) == ("ab 12", {"non_alphabetic": 1})
    assert cleaned("a\n a\n\nb\n\na", dedupe_lines=True) == ("a\n\nb\n", {"repeated": 2})


def test_blank_lines_around_a_removed_line_are_counted_together() -> None:
    assert cleaned("a\n\nMenu\n\nb c", min_words=1, phrases=["menu"], max_blank_lines=1) == (
        "a\n\nb c",
        {"phrases": 1, "blank": 1},
    )


def test_a_paragraph_that_contains_a_phrase_is_kept() -> None:
    paragraph = "Many sites say that we use cookies, and they mean it. " * 5
    assert cleaned(f"{paragraph}\nWe use cookies.", phrases=["we use cookies"]) == (paragraph, {"phrases": 1})


def test_the_defaults_do_not_change_code_and_verse() -> None:
    code = "def f(x):\n    if x:\n        return {}\n\n\n    }\n    }\n#" + "=" * 500
    verse = "Tyger Tyger,\n\nburning bright,\nTyger Tyger,\nO!\n"
    outcome = clean_lines([code, verse, ""], CleanLines())
    assert outcome.texts == [code, verse, ""]
    assert set(outcome.counts.values()) == {0}


def test_without_rules_nothing_changes_and_a_second_cleaning_changes_nothing() -> None:
    text = " a \r\n\n\n\n\nb\x0cc\t\n\na\nwe use cookies\n"
    assert cleaned(text) == (text, {})
    settings = CleanLines(dedupe_lines=True, min_words=1)
    once = clean_lines([text], settings).texts
    assert clean_lines(once, settings).texts == once


def test_the_error_names_the_wrong_setting() -> None:
    for settings, message in (
        (CleanLines(max_blank_lines=-1), "steps.max_blank_lines: -1 must be at least 0"),
        (CleanLines(max_characters=0), "steps.max_characters: 0 must be at least 1"),
        (CleanLines(max_non_alphabetic=2), "steps.max_non_alphabetic: 2 must be between 0 and 1"),
        (CleanLines(phrases=["a", " "]), "steps.phrases: a blank phrase would match"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            settings.check("steps")
