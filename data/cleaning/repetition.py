"""Repetition inside a document: the rules of Gopher, counted as datatrove counts them."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from data.cleaning.step import Outcome, check_share, check_shares, judged
from data.cleaning.words import split_words


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """The repetition rules of Gopher (Rae et al. 2021, table A1); a part above its bound drops the document.

    A bound of None turns a rule off, and so does leaving an n out. Shares of characters are of the whole text's.
    """

    duplicate_paragraphs: float | None = 0.30
    """Part of the paragraphs (between blank lines) that repeat an earlier one."""
    duplicate_paragraph_characters: float | None = 0.20
    """Part of the characters that are in such paragraphs."""
    duplicate_lines: float | None = 0.30
    """Part of the lines that repeat an earlier line."""
    duplicate_line_characters: float | None = 0.20
    """Part of the characters that are in such lines."""
    top_ngrams: dict[int, float] = field(default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16})
    """Part of the characters in the most frequent n-gram of words, for each n; once is no repetition."""
    duplicate_ngrams: dict[int, float] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    """Part of the characters in n-grams that repeat an earlier one, none counted twice, for each n."""

    def check(self, where: str) -> None:
        check_shares(
            where,
            duplicate_paragraphs=self.duplicate_paragraphs,
            duplicate_paragraph_characters=self.duplicate_paragraph_characters,
            duplicate_lines=self.duplicate_lines,
            duplicate_line_characters=self.duplicate_line_characters,
        )
        for name, bounds in (("top_ngrams", self.top_ngrams), ("duplicate_ngrams", self.duplicate_ngrams)):
            for n, share in bounds.items():
                check_share(f"{where}.{name}[{n}]", share)
                if n < 1:
                    raise ValueError(f"{where}.{name}: {n} must be at least 1, the number of words in an n-gram")


_PARAGRAPH_BREAK = re.compile(r"\n{2,}")
_LINE_BREAK = re.compile(r"\n+")


def repetition(texts: list[str], rule: Repetition) -> Outcome:
    """The texts as they are, dropped for the first rule that they break."""
    return judged(texts, lambda text: _repeated_parts(text, rule) or _repeated_ngrams(text, rule))


def _repeated_parts(text: str, rule: Repetition) -> str | None:
    """Reason of the first rule on whole paragraphs and lines that the text breaks."""
    paragraphs = _PARAGRAPH_BREAK.split(text.strip())
    lines = _LINE_BREAK.split(text)
    for name, parts, most, most_characters in (
        ("paragraph", paragraphs, rule.duplicate_paragraphs, rule.duplicate_paragraph_characters),
        ("line", lines, rule.duplicate_lines, rule.duplicate_line_characters),
    ):
        different = set(parts)
        if most is not None and (len(parts) - len(different)) / len(parts) > most:
            return f"repetition/duplicate_{name}s"
        if most_characters is not None:
            characters = sum(map(len, parts)) - sum(map(len, different))
            if characters > 0 and characters / len(text) > most_characters:
                return f"repetition/duplicate_{name}_characters"
    return None


def _repeated_ngrams(text: str, rule: Repetition) -> str | None:
    """Reason of the first n-gram rule that the words of the text break.

    `groups` numbers the n-grams at `positions` so that equal ones share a number. An n-gram can only repeat where its
    first n-1 words do, so each n looks only at the repetitions of the n before: next to none in ordinary text.
    """
    words = split_words(text)
    numbering: defaultdict[str, int] = defaultdict(count().__next__)
    numbers = np.fromiter(map(numbering.__getitem__, words), np.int64, len(words))
    ends = np.zeros(len(words) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, words), np.int64, len(words)), out=ends[1:])
    positions, groups, occurrences = np.arange(len(words)), numbers, np.bincount(numbers)
    for n in range(1, max((*rule.top_ngrams, *rule.duplicate_ngrams), default=0) + 1):
        if n > 1:
            inside = positions <= len(words) - n
            positions = positions[inside]
            longer = groups[inside] * len(numbering) + numbers[positions + n - 1]
            _, groups, occurrences = np.unique(longer, return_inverse=True, return_counts=True)
        times = occurrences[groups]
        positions, groups, times = positions[times > 1], groups[times > 1], times[times > 1]
        if not len(positions):
            return None
        if n in rule.top_ngrams:
            first = int(times.argmax())  # of equally frequent n-grams the one that comes first
            span = int(ends[positions[first] + n] - ends[positions[first]]) + n - 1  # with a space between words
            if span * int(times[first]) / len(text) > rule.top_ngrams[n]:
                return f"repetition/top_{n}gram"
        repeated = _repeated_characters(positions, groups, ends, n) if n in rule.duplicate_ngrams else 0
        if repeated and repeated / len(text) > rule.duplicate_ngrams[n]:
            return f"repetition/duplicate_{n}grams"
    return None


def _repeated_characters(positions: np.ndarray, groups: np.ndarray, ends: np.ndarray, n: int) -> int:
    """Characters of the n-grams that repeat an earlier one, read from left to right and without overlap, so that no
    character counts twice."""
    seen: set[int] = set()
    free = characters = 0
    for position, group in zip(positions.tolist(), groups.tolist(), strict=True):
        if position < free:
            continue
        if group in seen:
            free = position + n
            characters += int(ends[free] - ends[position])
        seen.add(group)
    return characters
