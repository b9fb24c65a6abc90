"""The repetition rules on small cases with hand-computed results, and the n-gram rules against a simple count."""

import random
import re
from collections import Counter
from typing import Any

import pytest

from data.cleaning.repetition import Repetition, repetition

NONE: dict[str, Any] = {
    "duplicate_paragraphs": None,
    "duplicate_paragraph_characters": None,
    "duplicate_lines": None,
    "duplicate_line_characters": None,
    "top_ngrams": {},
    "duplicate_ngrams": {},
}


def only(bounds: dict[str, Any]) -> Repetition:
    return Repetition(**{**NONE, **bounds})


@pytest.mark.parametrize(
    ("bound", "kept", "dropped", "reason"),
    [
        ({"duplicate_lines": 0.25}, "a\nb\nc\na", "a\nb\na", "duplicate_lines"),  # 1 of 4, 1 of 3
        # 3 of 12 characters, 3 of 11. Line breaks are characters too.
        (
            {"duplicate_line_characters": 0.25},
            "abc\nabc\nabcd",
            "abc\nabc\nabc"[: -0 or None][:11],
            "duplicate_line_characters",
        ),
        ({"duplicate_paragraphs": 0.25}, "a\na\n\nb\n\nc\n\na\na", "a\n\nb\n\n\na\n", "duplicate_paragraphs"),
        # 2 of 8 characters, 2 of 7.
        ({"duplicate_paragraph_characters": 0.25}, "ab\n\nab\n\n", "ab\n\nab\n", "duplicate_paragraph_characters"),
        # "a b" twice: 6 of 12 characters, 6 of 11.
        ({"top_ngrams": {2: 0.5}}, "a b c a b de", "a b c a b d", "top_2gram"),
        # The second "a b c" is 3 of 12 characters, 3 of 11.
        ({"duplicate_ngrams": {3: 0.25}}, "a b c a b c\n", "a b c a b c", "duplicate_3grams"),
    ],
)
def test_each_rule_keeps_documents_at_its_threshold_and_drops_them_beyond(
    bound: dict[str, Any], kept: str, dropped: str, reason: str
) -> None:
    settings = only(bound)
    settings.check("here")
    assert repetition([kept, dropped], settings).reasons == [None, f"repetition/{reason}"]
    assert repetition([kept, dropped, ""], only({})).reasons == [None, None, None]


def test_an_ngram_that_occurs_once_is_not_a_repetition() -> None:
    assert repetition(["five words are not many", "word", ""], Repetition()).reasons == [None, None, None]


def test_overlapping_repeats_count_their_characters_once() -> None:
    # In "a a a a a a", the 2-grams at 1 and 3 repeat the one at 0, and the last word remains: 4 of 11 characters.
    text = "a a a a a a"
    assert repetition([text], only({"duplicate_ngrams": {2: 4 / 11}})).reasons == [None]
    assert repetition([text], only({"duplicate_ngrams": {2: 0.36}})).reasons != [None]


def simple_shares(text: str, n: int) -> tuple[float, float]:
    """Return the shares of the top n-gram and of duplicate n-grams, computed with slices of the list of words."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    gram, times = Counter(grams).most_common(1)[0] if grams else ((), 0)
    top = times * len(" ".join(gram)) if times > 1 else 0
    seen, i, repeated = set(), 0, 0
    while i < len(grams):
        if grams[i] in seen:
            repeated += len("".join(grams[i]))
            i += n
        else:
            seen.add(grams[i])
            i += 1
    return top / len(text), repeated / len(text)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_ngram_rules_agree_with_a_simple_count(n: int) -> None:
    generator = random.Random(n)
    for _ in range(200):
        text = " ".join(generator.choice(["a", "bb", "ccc", "dddd", "e"]) for _ in range(generator.randint(1, 30)))
        top, duplicate = simple_shares(text, n)
        for bound in (0.1, 0.3, 0.6):
            tops = only({"top_ngrams": {n: bound}})
            assert (repetition([text], tops).reasons != [None]) == (top > bound), (text, top)
            duplicates = only({"duplicate_ngrams": {n: bound}})
            assert (repetition([text], duplicates).reasons != [None]) == (duplicate > bound), (text, duplicate)


def test_the_error_names_the_wrong_setting() -> None:
    for settings, message in (
        (Repetition(duplicate_lines=1.2), "steps.duplicate_lines: 1.2 must be between 0 and 1"),
        (Repetition(top_ngrams={2: -0.1}), "steps.top_ngrams[2]: -0.1 must be between 0 and 1"),
        (Repetition(duplicate_ngrams={0: 0.1}), "steps.duplicate_ngrams: 0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            settings.check("steps")
