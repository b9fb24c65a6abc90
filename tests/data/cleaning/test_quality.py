"""Every quality rule on numbers worked by hand: the last document inside a bound and the first outside."""

import re
from typing import Any

import pytest

from data.cleaning.quality import C4Quality, FineWebQuality, GopherQuality, c4_quality, fineweb_quality, gopher_quality

NO_GOPHER: dict[str, Any] = {
    "min_words": None,
    "max_words": None,
    "min_mean_word_length": None,
    "max_mean_word_length": None,
    "max_symbols_per_word": None,
    "max_bullet_lines": None,
    "max_ellipsis_lines": None,
    "min_alphabetic_words": None,
    "min_stop_words": None,
}


@pytest.mark.parametrize(
    ("bound", "kept", "dropped", "reason"),
    [
        ({"min_words": 3}, "one, two, 3!", "one, two - !", "min_words"),  # marks are no words
        ({"max_words": 3}, "one, two, 3!", "one, two, 3 four", "max_words"),
        ({"min_mean_word_length": 2}, "a bbb , .", "a bb c", "min_mean_word_length"),  # (1 + 3) / 2, (1 + 2 + 1) / 3
        ({"max_mean_word_length": 2}, "a bbb", "a bbbb", "max_mean_word_length"),
        ({"max_symbols_per_word": 0.25}, "# b c d", "# b c", "number_signs"),  # 1 of 4, 1 of 3
        ({"max_symbols_per_word": 0.25}, "b… c d", "b... c", "ellipses"),  # 1 of 4 words and marks, 1 of 3
        ({"max_bullet_lines": 0.5}, "- a\nb", " - a\n• b\nc", "bullet_lines"),
        ({"max_ellipsis_lines": 0.5}, "a...\nb", "a…\nb... \nc", "ellipsis_lines"),
        ({"min_alphabetic_words": 0.5}, "a b 1 .", "a b 1 2 .", "alphabetic_words"),
        ({"min_stop_words": 2}, "the one of it", "the one the other The", "stop_words"),
    ],
)
def test_each_gopher_rule_keeps_its_bound_and_drops_beyond(
    bound: dict[str, Any], kept: str, dropped: str, reason: str
) -> None:
    rule = GopherQuality(**(NO_GOPHER | bound))
    rule.check("here")
    assert gopher_quality([kept, dropped], rule).reasons == [None, f"gopher_quality/{reason}"]
    assert gopher_quality([kept, dropped], GopherQuality(**NO_GOPHER)).reasons == [None, None]


def test_gopher_keeps_prose_and_drops_the_empty_text_for_its_length() -> None:
    prose = "It was the best of times and it was the worst of times, so that we have to be glad. " * 4
    outcome = gopher_quality([prose, "", " \n"], GopherQuality())
    assert outcome.texts == [prose, "", " \n"]
    assert outcome.reasons == [None, "gopher_quality/min_words", "gopher_quality/min_words"]
    assert gopher_quality([""], GopherQuality(**NO_GOPHER)).reasons == [None]


def test_c4_removes_lines_counts_them_and_keeps_the_rest() -> None:
    text = (
        "This line stays as it is.\n"
        "Home | About | Contact\n"
        "Too few.\n"
        "  This one stays[1] too, without its mark.[citation needed]  \n"
        "Please turn on JavaScript to go on.\n"
        "By going on you accept our Privacy Policy.\n"
        "It trails off at its end...\n"
        f"One word is {'x' * 1001}.\n"
        'He said "yes and no."'
    )
    outcome = c4_quality([text], C4Quality(min_sentences=3))
    assert outcome.texts == ['This line stays as it is.\nThis one stays too, without its mark.\nHe said "yes and no."']
    assert outcome.reasons == [None]
    assert outcome.counts == {
        "c4_quality/long_word": 1,
        "c4_quality/terminal_punctuation": 2,
        "c4_quality/few_words": 1,
        "c4_quality/javascript": 1,
        "c4_quality/policy": 1,
        "c4_quality/citations": 2,
    }


def test_c4_drops_documents_as_they_were_and_counts_nothing_of_them() -> None:
    texts = [
        "Lorem ipsum dolor sit amet.",
        "This is code { and more.",
        "This { is no sentence\nBut this one is.",  # the bracket goes with its line
        "One goes here. Two goes here.",
    ]
    outcome = c4_quality(texts, C4Quality(min_sentences=1))
    assert outcome.reasons == ["c4_quality/lorem_ipsum", "c4_quality/curly_bracket", None, None]
    assert outcome.texts == [*texts[:2], "But this one is.", texts[3]]
    assert outcome.counts["c4_quality/terminal_punctuation"] == 1
    dropped = c4_quality(["Menu\nOnly one is here.[2]"], C4Quality())
    assert (dropped.texts, dropped.reasons) == (["Menu\nOnly one is here.[2]"], ["c4_quality/sentences"])
    assert set(dropped.counts.values()) == {0}


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is here! Is three here? Yes it is.", 4),
        ('Mr. Smith of the U.S. said: "I came... and I saw." Then he left.', 2),
        ("It costs 3.50 at example.org today.", 1),
        ("Really?! Yes, it is (so they say.) Fine by me.", 3),
    ],
)
def test_c4_counts_sentences(text: str, sentences: int) -> None:
    assert c4_quality([text], C4Quality(min_sentences=sentences)).reasons == [None]
    assert c4_quality([text], C4Quality(min_sentences=sentences + 1)).reasons == ["c4_quality/sentences"]


def test_every_c4_rule_can_be_left_out() -> None:
    rule = C4Quality(
        terminal_punctuation=False,
        min_words_per_line=None,
        max_word_length=None,
        javascript=False,
        policy_phrases=[],
        citations=False,
        lorem_ipsum=False,
        curly_bracket=False,
        min_sentences=None,
    )
    rule.check("here")
    text = f"Menu [1]\nlorem ipsum {{\nJavascript terms of use\n{'x' * 2000}"
    assert c4_quality([text, ""], rule)[:2] == ([text, ""], [None, None])


def test_each_fineweb_rule_keeps_its_bound_and_drops_beyond() -> None:
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
        rule = FineWebQuality(**(none | bound))
        rule.check("here")
        assert fineweb_quality([kept, dropped], rule).reasons == [None, f"fineweb_quality/{reason}"], bound
        assert fineweb_quality([kept, dropped], FineWebQuality(**none)).reasons == [None, None]
    assert fineweb_quality(["", " \n\t"], FineWebQuality()).reasons == ["fineweb_quality/no_text"] * 2


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (GopherQuality(min_words=9, max_words=8), "steps.max_words: 8 must be at least min_words (9)"),
        (GopherQuality(min_mean_word_length=-1), "steps.min_mean_word_length: -1 must be at least 0"),
        (GopherQuality(min_alphabetic_words=1.5), "steps.min_alphabetic_words: 1.5 must be between 0 and 1"),
        (GopherQuality(stop_words=["a"]), "steps.min_stop_words: 2 must be at most the number of stop_words (1)"),
        (C4Quality(max_word_length=0), "steps.max_word_length: 0 must be at least 1"),
        (C4Quality(policy_phrases=[""]), "steps.policy_phrases: holds an empty phrase"),
        (FineWebQuality(max_short_lines=67), "steps.max_short_lines: 67 must be between 0 and 1"),
        (FineWebQuality(max_line_breaks_per_word=-0.1), "steps.max_line_breaks_per_word: -0.1 must be at least 0"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(rule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        rule.check("steps")
