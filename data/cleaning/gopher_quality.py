"""The step `gopher_quality`: the quality rules of Gopher (Rae et al. 2021, section A.1.1).

`data/words.py` splits the text into words and punctuation marks. Where the paper does not define exactly what is
counted, the step counts nearly as datatrove does. The difference: for datatrove a word is everything except
punctuation, and here it must have a letter or a digit. So an emoji is not counted as a word here.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from data.cleaning.language_rules import LanguageRules, LanguageSettings
from data.cleaning.step import Outcome, check_at_least, check_range, check_shares, filter_by_language, is_above
from data.words import StringCache, Unit, WordRule, check_word_rule, split_words, unit_of


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
    by_language: bool = True
    """Take the values of the document's language (`data/cleaning/language_rules.py`) for `min_words`, the mean word
    length, `min_alphabetic_words` and `stop_words`, where these have their default values, which are for English. The
    language is the one that the step `language` found, or else the most important one of the script. With false,
    documents in all languages are judged by the same values."""
    words: WordRule = "classes"
    """How text in scripts without spaces is cut into words: by `classes` of characters, or by the dictionaries of `icu`
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese), which need `pip install raymill[languages]`."""

    def check(self, field_path: str) -> None:
        check_word_rule(f"{field_path}.words", self.words)
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
    """Counts of the words and punctuation marks of a text.

    The words of scripts without spaces are counted as `LanguageRules.units_per_word` says.
    """

    total: float
    """Number of words and punctuation marks."""
    alphanumeric: float
    """Number of words with a letter or a digit."""
    alphabetic: float
    """Number of words with a letter."""
    characters: int
    """Number of characters in the words with a letter or a digit."""


def gopher_quality(texts: list[str], settings: GopherQuality, languages: Sequence[str | None] | None = None) -> Outcome:
    """Drop the texts that break a rule, with the first broken rule as the reason."""
    by_language = LanguageSettings(settings)

    def drop_reason(text: str, language: str | None) -> str | None:
        adapted, rules = by_language.for_text(language, text)
        words = split_words(text, settings.words)
        reason = _reason_by_words(text, _count_words(words, rules), adapted) or _reason_by_lines(text, adapted)
        return reason or _reason_by_stop_words(text, words, adapted, rules)

    return filter_by_language(texts, languages, drop_reason)


def _reason_by_stop_words(text: str, words: Sequence[str], settings: GopherQuality, rules: LanguageRules) -> str | None:
    # A letter and its mark may be one character or two. Vietnamese of windows-1258 and Korean of macOS have two.
    stop_words = frozenset(unicodedata.normalize("NFC", word) for word in settings.stop_words)
    if not unicodedata.is_normalized("NFC", text):
        text, words = unicodedata.normalize("NFC", text), [unicodedata.normalize("NFC", word) for word in words]
    if rules.are_stop_words_parts:
        num_found = sum(word in text for word in stop_words)
    else:
        num_found = len(stop_words.intersection(words))
    # The language may have fewer stop words than English, or none that are known.
    return "gopher_quality/stop_words" if num_found < min(settings.min_stop_words or 0, len(stop_words)) else None


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


def _count_words(words: list[str], rules: LanguageRules) -> _WordCounts:
    properties = np.fromiter(map(_WORD_PROPERTIES.__getitem__, words), np.int64, len(words))
    alphanumeric = properties & 1
    # The number by which the units of scripts without spaces exceed the words that they are.
    surplus = int((properties >> 2 & 1).sum()) * (1 - 1 / rules.units_per_word)
    return _WordCounts(
        total=len(words) - surplus,
        alphanumeric=int(alphanumeric.sum()) - surplus,
        alphabetic=int((properties >> 1 & 1).sum()) - surplus,
        characters=int((alphanumeric * (properties >> 3)).sum()),
    )


def _word_properties(word: str) -> int:
    """Return the properties of a word in one number, so that numpy can count them.

    Bit 0 is set if the word contains a letter or a digit, bit 1 if it contains a letter, and bit 2 if it is a word of a
    script without spaces with a letter. The higher bits are the number of characters.
    """
    is_alphabetic = any(map(str.isalpha, word))
    is_unit = is_alphabetic and unit_of(word) is not Unit.WORD
    return len(word) << 3 | is_unit << 2 | is_alphabetic << 1 | any(map(str.isalnum, word))


_WORD_PROPERTIES = StringCache(_word_properties)
