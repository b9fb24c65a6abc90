"""The rules of C4 for lines and documents, on small cases with hand-computed results."""

import re

import pytest

from data.cleaning.c4_quality import C4Quality, c4_quality


def test_c4_removes_and_counts_lines_and_keeps_the_other_lines() -> None:
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


def test_c4_does_not_count_changes_in_dropped_documents() -> None:
    texts = [
        "Lorem ipsum dolor sit amet.",
        "This is code { and more.",
        "This { is no sentence\nBut this one is.",  # The line with the bracket is removed.
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


def test_a_line_that_is_removed_for_its_words_or_punctuation_does_not_drop_the_document() -> None:
    prose = "One two three.\n" * 5
    outcome = c4_quality([f"{prose}if (x) {{", f"{prose}lorem ipsum dolor"], C4Quality())
    assert outcome.reasons == [None, None] and outcome.texts == [prose.strip()] * 2


def test_every_c4_rule_can_be_turned_off() -> None:
    settings = C4Quality(
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
    settings.check("here")
    text = f"Menu [1]\nlorem ipsum {{\nJavascript terms of use\n{'x' * 2000}"
    assert c4_quality([text, ""], settings)[:2] == ([text, ""], [None, None])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (C4Quality(max_word_length=0), "steps.max_word_length: 0 must be at least 1"),
        (C4Quality(policy_phrases=["a", " "]), "steps.policy_phrases: a blank phrase would match"),
    ],
)
def test_the_error_names_the_wrong_setting(settings: C4Quality, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.check("steps")
