"""The step `repetition`: drop documents that repeat themselves, by the rules of Gopher, counted as in datatrove."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from data.cleaning.language_rules import LanguageSettings
from data.cleaning.step import Outcome, check_share, check_shares, filter_by_language
from data.words import WordRule, check_word_rule, split_words


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Drop documents that contain too much repeated text (Gopher, Rae et al. 2021, table A1).

    Null turns a rule off. A share of characters is relative to all characters of the text.
    """

    duplicate_paragraphs: float | None = 0.30
    """Maximum share of the paragraphs that are equal to an earlier paragraph. Empty lines separate paragraphs."""
    duplicate_paragraph_characters: float | None = 0.20
    """Maximum share of the characters that are in paragraphs equal to an earlier paragraph."""
    duplicate_lines: float | None = 0.30
    """Maximum share of the lines that are equal to an earlier line."""
    duplicate_line_characters: float | None = 0.20
    """Maximum share of the characters that are in lines equal to an earlier line."""
    top_ngrams: dict[int, float] = field(default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16})
    """For each n the maximum share of the characters in all occurrences of the most frequent n-gram of words. An n-gram
    that occurs only once does not count."""
    duplicate_ngrams: dict[int, float] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    """For each n the maximum share of the characters in n-grams of words that are equal to an earlier n-gram. Each
    character is counted at most once."""
    by_language: bool = True
    """Take the values of the document's language (`data/cleaning/language_rules.py`) for `duplicate_lines`,
    `top_ngrams` and `duplicate_ngrams`, where these have their default values, which are for English. The language is
    the one that the step `language` found, or else the most important one of the script. With false, documents in all
    languages are judged by the same values."""
    words: WordRule = "classes"
    """How text in scripts without spaces is cut into words: by `classes` of characters, or by the dictionaries of `icu`
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese), which need `pip install raymill[languages]`."""

    def check(self, field_path: str) -> None:
        check_word_rule(f"{field_path}.words", self.words)
        check_shares(
            field_path,
            duplicate_paragraphs=self.duplicate_paragraphs,
            duplicate_paragraph_characters=self.duplicate_paragraph_characters,
            duplicate_lines=self.duplicate_lines,
            duplicate_line_characters=self.duplicate_line_characters,
        )
        for name, bounds in (("top_ngrams", self.top_ngrams), ("duplicate_ngrams", self.duplicate_ngrams)):
            for n, share in bounds.items():
                check_share(f"{field_path}.{name}[{n}]", share)
                if n < 1:
                    raise ValueError(f"{field_path}.{name}: {n} must be at least 1, because it is a number of words")


_PARAGRAPH_BREAK = re.compile(r"\n{2,}")
_LINE_BREAK = re.compile(r"\n+")


def repetition(texts: list[str], settings: Repetition, languages: Sequence[str | None] | None = None) -> Outcome:
    """Drop the texts that break a rule, with the first broken rule as the reason."""
    by_language = LanguageSettings(settings)

    def drop_reason(text: str, language: str | None) -> str | None:
        adapted, _ = by_language.for_text(language, text)
        return _reason_by_lines(text, adapted) or _reason_by_ngrams(text, adapted)

    return filter_by_language(texts, languages, drop_reason)


def _reason_by_lines(text: str, settings: Repetition) -> str | None:
    """Return the first rule about paragraphs and lines that the text breaks, or None."""
    paragraphs = _PARAGRAPH_BREAK.split(text.strip())
    lines = _LINE_BREAK.split(text)
    for name, parts, max_share, max_character_share in (
        ("paragraph", paragraphs, settings.duplicate_paragraphs, settings.duplicate_paragraph_characters),
        ("line", lines, settings.duplicate_lines, settings.duplicate_line_characters),
    ):
        distinct = set(parts)
        if max_share is not None and (len(parts) - len(distinct)) / len(parts) > max_share:
            return f"repetition/duplicate_{name}s"
        if max_character_share is not None:
            repeated_characters = sum(map(len, parts)) - sum(map(len, distinct))
            if repeated_characters > 0 and repeated_characters / len(text) > max_character_share:
                return f"repetition/duplicate_{name}_characters"
    return None


def _reason_by_ngrams(text: str, settings: Repetition) -> str | None:
    """Return the first rule about n-grams that the text breaks, or None.

    An n-gram can occur several times only if its first n-1 words occur several times. So for each n, only the positions
    whose (n-1)-gram occurs several times are examined. In ordinary text, these positions are few.
    """
    words = split_words(text, settings.words)
    word_ids: defaultdict[str, int] = defaultdict(count().__next__)
    ids = np.fromiter(map(word_ids.__getitem__, words), np.int64, len(words))
    ends = np.zeros(len(words) + 1, dtype=np.int64)  # ends[i] is the number of characters of the first i words.
    np.cumsum(np.fromiter(map(len, words), np.int64, len(words)), out=ends[1:])
    # `ngram_ids` contains an id for the n-gram at each of the `positions`. Equal n-grams have the same id.
    positions, ngram_ids, occurrences = np.arange(len(words)), ids, np.bincount(ids)
    for n in range(1, max((*settings.top_ngrams, *settings.duplicate_ngrams), default=0) + 1):
        if n > 1:
            fits = positions <= len(words) - n
            positions = positions[fits]
            extended = ngram_ids[fits] * len(word_ids) + ids[positions + n - 1]
            _, ngram_ids, occurrences = np.unique(extended, return_inverse=True, return_counts=True)
        times = occurrences[ngram_ids]
        positions, ngram_ids, times = positions[times > 1], ngram_ids[times > 1], times[times > 1]
        if not len(positions):
            return None
        if n in settings.top_ngrams:
            top = int(times.argmax())  # If several n-grams are equally frequent, the first one counts.
            # The n-1 spaces between the words are counted too.
            num_characters = int(ends[positions[top] + n] - ends[positions[top]]) + n - 1
            if num_characters * int(times[top]) / len(text) > settings.top_ngrams[n]:
                return f"repetition/top_{n}gram"
        repeated = _repeated_characters(positions, ngram_ids, ends, n) if n in settings.duplicate_ngrams else 0
        if repeated and repeated / len(text) > settings.duplicate_ngrams[n]:
            return f"repetition/duplicate_{n}grams"
    return None


def _repeated_characters(positions: np.ndarray, ngram_ids: np.ndarray, ends: np.ndarray, n: int) -> int:
    """Return the number of characters in n-grams that are equal to an earlier n-gram.

    The n-grams are read from left to right. An n-gram that overlaps with a counted one is skipped, so that no character
    is counted twice. The spaces between words are not counted.

    `positions` has the index of the first word of every n-gram that occurs several times, in ascending order, and
    `ngram_ids` has the ids of these n-grams. Equal n-grams have the same id. `ends[i]` is the number of characters of
    the first i words.
    """
    seen: set[int] = set()
    next_position = num_characters = 0
    for position, ngram_id in zip(positions.tolist(), ngram_ids.tolist(), strict=True):
        if position < next_position:
            continue
        if ngram_id in seen:
            next_position = position + n
            num_characters += int(ends[next_position] - ends[position])
        seen.add(ngram_id)
    return num_characters
