"""The step `gopher_quality`: the quality rules of Gopher (Rae et al. 2021, section A.1.1).

`data/words.py` splits the text into words and punctuation marks. Where the paper does not define exactly what
is counted, the step counts nearly as datatrove does. The difference: for datatrove a word is everything except
punctuation, and here it must have a letter or a digit. So an emoji is not counted as a word here.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from data.cleaning.step import Outcome, check_at_least, check_range, check_shares, filter_outcome, is_above
from data.words import StringCache, split_words


@dataclass(frozen=True, kw_only=True)
class GopherQuality:
    """Drop documents that break a quality rule of Gopher (Rae et al. 2021, section A.1.1). Null turns a rule off."""

    min_words: int | None = 50
    """Minimum number of words with a letter or a digit."""
    max_words: int | None = 100_000
    """Maximum number of words with a letter or a digit."""
    min_mean_word_length: float | None = 3
    """Minimum mean number of characters of the words with a letter or a digit."""
    max_mean_word_length: float | None = 10
    """Maximum mean number of characters of the words with a letter or a digit."""
    max_symbols_per_word: float | None = 0.1
    """Maximum number of number signs (`#`), divided by the number of words and punctuation marks. The same maximum
    applies to ellipses."""
    max_bullet_lines: float | None = 0.9
    """Maximum share of the lines that start with `•` or `-`."""
    max_ellipsis_lines: float | None = 0.3
    """Maximum share of the lines that end with an ellipsis."""
    min_alphabetic_words: float | None = 0.8
    """Minimum share of the words and punctuation marks that contain a letter."""
    min_stop_words: int | None = 2
    """Minimum number of different words of `stop_words` that occur in the document. Upper and lower case matter."""
    stop_words: list[str] = field(default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"])
    """Frequent words that good prose contains."""

    def check(self, field_path: str) -> None:
        check_range(field_path, "words", self.min_words, self.max_words)
        check_range(field_path, "mean_word_length", self.min_mean_word_length, self.max_mean_word_length)
        check_at_least(f"{field_path}.max_symbols_per_word", self.max_symbols_per_word or 0, 0)
        check_shares(
            field_path,
            max_bullet_lines=self.max_bullet_lines,
            max_ellipsis_lines=self.max_ellipsis_lines,
            min_alphabetic_words=self.min_alphabetic_words,
        )
        check_at_least(f"{field_path}.min_stop_words", self.min_stop_words or 0, 0)
        if (self.min_stop_words or 0) > len(set(self.stop_words)):
            raise ValueError(
                f"{field_path}.min_stop_words: {self.min_stop_words} must be at most the number of stop_words "
                f"({len(set(self.stop_words))})"
            )


class _WordCounts(NamedTuple):
    """Counts of the words and punctuation marks of a text."""

    total: int
    """Number of words and punctuation marks."""
    alphanumeric: int
    """Number of words with a letter or a digit."""
    alphabetic: int
    """Number of words with a letter."""
    characters: int
    """Number of characters in the words with a letter or a digit."""


def gopher_quality(texts: list[str], settings: GopherQuality) -> Outcome:
    """Drop the texts that break a rule, with the first broken rule as the reason."""
    stop_words = frozenset(settings.stop_words)

    def drop_reason(text: str) -> str | None:
        words = split_words(text)
        reason = _reason_by_words(text, _count_words(words), settings) or _reason_by_lines(text, settings)
        if reason is None and len(stop_words.intersection(words)) < (settings.min_stop_words or 0):
            return "gopher_quality/stop_words"
        return reason

    return filter_outcome(texts, drop_reason)


def _reason_by_words(text: str, words: _WordCounts, settings: GopherQuality) -> str | None:
    mean_length = words.characters / max(words.alphanumeric, 1)
    if words.alphanumeric < (settings.min_words or 0):
        return "gopher_quality/min_words"
    if is_above(words.alphanumeric, settings.max_words):
        return "gopher_quality/max_words"
    if mean_length < (settings.min_mean_word_length or 0):
        return "gopher_quality/min_mean_word_length"
    if is_above(mean_length, settings.max_mean_word_length):
        return "gopher_quality/max_mean_word_length"
    if is_above(text.count("#") / max(words.total, 1), settings.max_symbols_per_word):
        return "gopher_quality/number_signs"
    if is_above((text.count("...") + text.count("…")) / max(words.total, 1), settings.max_symbols_per_word):
        return "gopher_quality/ellipses"
    if words.alphabetic / max(words.total, 1) < (settings.min_alphabetic_words or 0):
        return "gopher_quality/alphabetic_words"
    return None


def _reason_by_lines(text: str, settings: GopherQuality) -> str | None:
    lines = text.splitlines()
    if is_above(
        sum(line.lstrip().startswith(("•", "-")) for line in lines) / max(len(lines), 1), settings.max_bullet_lines
    ):
        return "gopher_quality/bullet_lines"
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    if is_above(ellipses / max(len(lines), 1), settings.max_ellipsis_lines):
        return "gopher_quality/ellipsis_lines"
    return None


def _count_words(words: list[str]) -> _WordCounts:
    properties = np.fromiter(map(_WORD_PROPERTIES.__getitem__, words), np.int64, len(words))
    alphanumeric = properties & 1
    return _WordCounts(
        total=len(words),
        alphanumeric=int(alphanumeric.sum()),
        alphabetic=int((properties >> 1 & 1).sum()),
        characters=int((alphanumeric * (properties >> 2)).sum()),
    )


def _word_properties(word: str) -> int:
    """Return the properties of a word in one number, so that numpy can count them.

    Bit 0 is set if the word contains a letter or a digit, and bit 1 if it contains a letter. The higher bits are the
    number of characters.
    """
    return len(word) << 2 | any(map(str.isalpha, word)) << 1 | any(map(str.isalnum, word))


_WORD_PROPERTIES = StringCache(_word_properties)
