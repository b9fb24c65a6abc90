"""The quality rules of Gopher (Rae et al. 2021, section A.1.1).

Words are those of `data/cleaning/words.py`. Where the paper leaves a count open, it is counted as datatrove does.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from data.cleaning.step import Outcome, check_least, check_range, check_shares, is_above, judged
from data.cleaning.words import Remembered, split_words


@dataclass(frozen=True, kw_only=True)
class GopherQuality:
    """The quality rules of Gopher (Rae et al. 2021, section A.1.1)."""

    min_words: int | None = 50
    """Words with a letter or a digit."""
    max_words: int | None = 100_000
    """Words of a document, at most."""
    min_mean_word_length: float | None = 3
    """Characters, over the words with a letter or a digit."""
    max_mean_word_length: float | None = 10
    """Largest mean of the same words."""
    max_symbols_per_word: float | None = 0.1
    """Number signs, and on their own ellipses, over the number of words and marks."""
    max_bullet_lines: float | None = 0.9
    """Part of the lines that start with `•` or `-`."""
    max_ellipsis_lines: float | None = 0.3
    """Part of the lines that end with an ellipsis."""
    min_alphabetic_words: float | None = 0.8
    """Part of the words and marks with at least one letter."""
    min_stop_words: int | None = 2
    """How many different ones of `stop_words` occur, as they are written."""
    stop_words: list[str] = field(default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"])
    """Words that good prose has."""

    def check(self, where: str) -> None:
        check_range(where, "words", self.min_words, self.max_words)
        check_range(where, "mean_word_length", self.min_mean_word_length, self.max_mean_word_length)
        check_least(f"{where}.max_symbols_per_word", self.max_symbols_per_word or 0, 0)
        check_shares(
            where,
            max_bullet_lines=self.max_bullet_lines,
            max_ellipsis_lines=self.max_ellipsis_lines,
            min_alphabetic_words=self.min_alphabetic_words,
        )
        check_least(f"{where}.min_stop_words", self.min_stop_words or 0, 0)
        if (self.min_stop_words or 0) > len(set(self.stop_words)):
            raise ValueError(
                f"{where}.min_stop_words: {self.min_stop_words} must be at most the number of stop_words "
                f"({len(set(self.stop_words))})"
            )


class _WordCounts(NamedTuple):
    all: int
    """Words and marks."""
    spoken: int
    """Those with a letter or a digit."""
    alphabetic: int
    """Those with a letter."""
    characters: int
    """Of the spoken ones."""


def gopher_quality(texts: list[str], rule: GopherQuality) -> Outcome:
    """The texts as they are, dropped for the first rule that they break."""
    stop_words = frozenset(rule.stop_words)

    def judge(text: str) -> str | None:
        words = split_words(text)
        reason = _reason_by_words(text, _count_words(words), rule) or _reason_by_lines(text, rule)
        if reason is None and len(stop_words.intersection(words)) < (rule.min_stop_words or 0):
            return "gopher_quality/stop_words"
        return reason

    return judged(texts, judge)


def _reason_by_words(text: str, words: _WordCounts, rule: GopherQuality) -> str | None:
    mean_length = words.characters / max(words.spoken, 1)
    if words.spoken < (rule.min_words or 0):
        return "gopher_quality/min_words"
    if is_above(words.spoken, rule.max_words):
        return "gopher_quality/max_words"
    if mean_length < (rule.min_mean_word_length or 0):
        return "gopher_quality/min_mean_word_length"
    if is_above(mean_length, rule.max_mean_word_length):
        return "gopher_quality/max_mean_word_length"
    if is_above(text.count("#") / max(words.all, 1), rule.max_symbols_per_word):
        return "gopher_quality/number_signs"
    if is_above((text.count("...") + text.count("…")) / max(words.all, 1), rule.max_symbols_per_word):
        return "gopher_quality/ellipses"
    if words.alphabetic / max(words.all, 1) < (rule.min_alphabetic_words or 0):
        return "gopher_quality/alphabetic_words"
    return None


def _reason_by_lines(text: str, rule: GopherQuality) -> str | None:
    lines = text.splitlines()
    if is_above(
        sum(line.lstrip().startswith(("•", "-")) for line in lines) / max(len(lines), 1), rule.max_bullet_lines
    ):
        return "gopher_quality/bullet_lines"
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    if is_above(ellipses / max(len(lines), 1), rule.max_ellipsis_lines):
        return "gopher_quality/ellipsis_lines"
    return None


def _count_words(words: list[str]) -> _WordCounts:
    traits = np.fromiter(map(_TRAITS.__getitem__, words), np.int64, len(words))
    spoken = traits & 1
    return _WordCounts(len(words), int(spoken.sum()), int((traits >> 1 & 1).sum()), int((spoken * (traits >> 2)).sum()))


def _traits(word: str) -> int:
    """Bit 0: holds a letter or a digit; bit 1: holds a letter; from bit 2: the length."""
    return len(word) << 2 | any(map(str.isalpha, word)) << 1 | any(map(str.isalnum, word))


_TRAITS = Remembered(_traits)
