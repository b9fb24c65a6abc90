"""The rules of FineWeb: for each threshold a document that just meets it and one that just does not."""

import re
from typing import Any

import pytest

from data.cleaning.fineweb_quality import FineWebQuality, fineweb_quality


def test_each_fineweb_rule_keeps_documents_at_its_threshold_and_drops_them_beyond() -> None:
    none: dict[str, Any] = {
        "min_punctuated_lines": None,
        "max_short_lines": None,
        "max_duplicate_characters": None,
        "max_line_breaks_per_word": None,
    }
    cases: list[tuple[dict[str, Any], str, str, str]] = [
        ({"min_punctuated_lines": 0.5}, "a.\n\nb", "a。\nb\nc", "punctuated_lines"),
        ({"max_short_lines": 0.5, "short_line": 3}, "abc\nabcd", "abc\nab\nabcd", "short_lines"),
        ({"max_duplicate_characters": 0.25}, "ab\nab\nabcd", "ab\nab\nabc", "duplicate_characters"),  # 2 of 8, 2 of 7
        ({"max_line_breaks_per_word": 0.5}, "a b\nc .\n", "a b\nc\n", "line_breaks_per_word"),  # 2 of 4, 2 of 3
    ]
    for bound, kept, dropped, reason in cases:
        settings = FineWebQuality(**(none | bound))
        settings.check("here")
        assert fineweb_quality([kept, dropped], settings).reasons == [None, f"fineweb_quality/{reason}"], bound
        assert fineweb_quality([kept, dropped], FineWebQuality(**none)).reasons == [None, None]
    assert fineweb_quality(["", " \n\t"], FineWebQuality()).reasons == ["fineweb_quality/no_text"] * 2
    separators = "\u200b\n\u200b\u200b"  # two lines without a word
    only_breaks = FineWebQuality(**(none | {"max_line_breaks_per_word": 0.3}))
    assert fineweb_quality([separators], only_breaks).reasons == ["fineweb_quality/line_breaks_per_word"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (FineWebQuality(max_short_lines=67), "steps.max_short_lines: 67 must be between 0 and 1"),
        (FineWebQuality(max_line_breaks_per_word=-0.1), "steps.max_line_breaks_per_word: -0.1 must be at least 0"),
    ],
)
def test_the_error_names_the_wrong_setting(settings: FineWebQuality, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.check("steps")
