"""The quality rules that published corpora were filtered by: Gopher's, C4's and FineWeb's.

Each rule is a bound on one number of a document, a bound of None leaves the rule out, and the reason of a drop names
the rule. Words are those of `data/cleaning/words.py`. Where a paper leaves a count open, it is counted as datatrove
does.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import regex

from data.cleaning.step import Outcome, check_least, check_shares, judged
from data.cleaning.words import Remembered, split_words


def _check_range(where: str, name: str, low: float | None, high: float | None) -> None:
    """Raise ValueError for a `min_{name}` below 0 or above `max_{name}`."""
    check_least(f"{where}.min_{name}", low or 0, 0)
    if high is not None and high < (low or 0):
        raise ValueError(f"{where}.max_{name}: {high} must be at least min_{name} ({low or 0}); null sets no bound")


@dataclass(frozen=True, kw_only=True)
class GopherQuality:
    """The quality rules of Gopher (Rae et al. 2021, section A.1.1)."""

    min_words: int | None = 50
    """Words with a letter or a digit."""
    max_words: int | None = 100_000
    min_mean_word_length: float | None = 3
    """Characters, over the words with a letter or a digit."""
    max_mean_word_length: float | None = 10
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

    def check(self, where: str) -> None:
        _check_range(where, "words", self.min_words, self.max_words)
        _check_range(where, "mean_word_length", self.min_mean_word_length, self.max_mean_word_length)
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


def _traits(word: str) -> int:
    """Bit 0: holds a letter or a digit; bit 1: holds a letter; from bit 2: the length."""
    return len(word) << 2 | any(map(str.isalpha, word)) << 1 | any(map(str.isalnum, word))


_TRAITS = Remembered(_traits)


def _count_words(words: list[str]) -> _WordCounts:
    traits = np.fromiter(map(_TRAITS.__getitem__, words), np.int64, len(words))
    spoken = traits & 1
    return _WordCounts(len(words), int(spoken.sum()), int((traits >> 1 & 1).sum()), int((spoken * (traits >> 2)).sum()))


def gopher_quality(texts: list[str], rule: GopherQuality) -> Outcome:
    """The texts as they are, dropped for the first rule that they break."""
    stop_words = frozenset(rule.stop_words)

    def judge(text: str) -> str | None:
        words = split_words(text)
        reason = _gopher_words(text, _count_words(words), rule) or _gopher_lines(text, rule)
        if reason is None and len(stop_words.intersection(words)) < (rule.min_stop_words or 0):
            return "gopher_quality/stop_words"
        return reason

    return judged(texts, judge)


def _gopher_words(text: str, words: _WordCounts, rule: GopherQuality) -> str | None:
    mean_length = words.characters / max(words.spoken, 1)
    if words.spoken < (rule.min_words or 0):
        return "gopher_quality/min_words"
    if _above(words.spoken, rule.max_words):
        return "gopher_quality/max_words"
    if mean_length < (rule.min_mean_word_length or 0):
        return "gopher_quality/min_mean_word_length"
    if _above(mean_length, rule.max_mean_word_length):
        return "gopher_quality/max_mean_word_length"
    if _above(text.count("#") / max(words.all, 1), rule.max_symbols_per_word):
        return "gopher_quality/number_signs"
    if _above((text.count("...") + text.count("…")) / max(words.all, 1), rule.max_symbols_per_word):
        return "gopher_quality/ellipses"
    if words.alphabetic / max(words.all, 1) < (rule.min_alphabetic_words or 0):
        return "gopher_quality/alphabetic_words"
    return None


def _gopher_lines(text: str, rule: GopherQuality) -> str | None:
    lines = text.splitlines()
    if _above(sum(line.lstrip().startswith(("•", "-")) for line in lines) / max(len(lines), 1), rule.max_bullet_lines):
        return "gopher_quality/bullet_lines"
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    if _above(ellipses / max(len(lines), 1), rule.max_ellipsis_lines):
        return "gopher_quality/ellipsis_lines"
    return None


def _above(number: float, bound: float | None) -> bool:
    return bound is not None and number > bound


@dataclass(frozen=True, kw_only=True)
class C4Quality:
    """The rules of C4 (Raffel et al. 2020, section 2.2), without its list of bad words: lines are removed first, then
    what is left is judged. It takes code, tables and verse apart; it is meant for web prose."""

    terminal_punctuation: bool = True
    """Remove lines that do not end in one of `. ? ! " '`, or that end in an ellipsis."""
    min_words_per_line: int | None = 3
    """Words between white space; a line with fewer is removed."""
    max_word_length: int | None = 1000
    """Characters; a line with a longer word is removed."""
    javascript: bool = True
    """Remove lines that speak of Javascript."""
    policy_phrases: list[str] = field(
        default_factory=lambda: [
            "terms of use",
            "privacy policy",
            "cookie policy",
            "uses cookies",
            "use of cookies",
            "use cookies",
        ]
    )
    """Remove lines with one of these, in any case."""
    citations: bool = True
    """Remove `[1]`, `[]`, `[edit]` and `[citation needed]`."""
    lorem_ipsum: bool = True
    """Drop a document with this filler."""
    curly_bracket: bool = True
    """Drop a document with `{`, which prose does not have."""
    min_sentences: int | None = 5
    """In the lines that are left."""

    def check(self, where: str) -> None:
        check_least(f"{where}.min_words_per_line", self.min_words_per_line or 0, 0)
        if self.max_word_length is not None:
            check_least(f"{where}.max_word_length", self.max_word_length, 1)
        check_least(f"{where}.min_sentences", self.min_sentences or 0, 0)
        if not all(self.policy_phrases):
            raise ValueError(f"{where}.policy_phrases: holds an empty phrase, which is in every line; remove it")


_C4_CHANGES = ("long_word", "terminal_punctuation", "few_words", "javascript", "policy", "citations")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


def c4_quality(texts: list[str], rule: C4Quality) -> Outcome:
    """The texts without the lines that break a rule, and whether what is left of them is dropped (it then stays as it
    was). Counts the lines removed by each rule and the citations taken out, in the documents that are kept."""
    counts = Counter(dict.fromkeys((f"c4_quality/{change}" for change in _C4_CHANGES), 0))
    left: list[str] = []
    reasons: list[str | None] = []
    for text in texts:
        changes: Counter[str] = Counter()
        lines = list(_c4_lines(text, rule, changes))
        reason = _c4_reason(lines, rule)
        reasons.append(reason)
        left.append("\n".join(lines).strip() if reason is None else text)
        if reason is None:
            counts.update(changes)
    return Outcome(left, reasons, dict(counts))


def _c4_lines(text: str, rule: C4Quality, changes: Counter[str]) -> Iterable[str]:
    """The lines that stay. A line that damns the document stays too: nothing after it matters."""
    policies = [phrase.lower() for phrase in rule.policy_phrases]
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        if _has_long_word(line, words, rule.max_word_length):
            changes["c4_quality/long_word"] += 1
            continue
        if rule.citations and "[" in line:
            line, citations = _CITATION.subn("", line)
            changes["c4_quality/citations"] += citations
        lower = line.lower()
        if rule.terminal_punctuation and (line[-1:] not in {*".?!\"'"} or line.endswith("...")):
            changes["c4_quality/terminal_punctuation"] += 1
        elif len(words) < (rule.min_words_per_line or 0):
            changes["c4_quality/few_words"] += 1
        elif _c4_damning(line, lower, rule):
            yield line
        elif rule.javascript and "javascript" in lower:
            changes["c4_quality/javascript"] += 1
        elif any(phrase in lower for phrase in policies):
            changes["c4_quality/policy"] += 1
        else:
            yield line


def _has_long_word(line: str, words: list[str], most: int | None) -> bool:
    return most is not None and len(line) > most and any(len(word) > most for word in words)


def _c4_damning(line: str, lower: str, rule: C4Quality) -> str | None:
    if rule.lorem_ipsum and "lorem ipsum" in lower:
        return "c4_quality/lorem_ipsum"
    # Gone with the other lines of Javascript, unless that rule is off: so says the order in which C4 looks.
    javascript = rule.javascript and "javascript" in lower
    return "c4_quality/curly_bracket" if rule.curly_bracket and "{" in line and not javascript else None


def _c4_reason(lines: list[str], rule: C4Quality) -> str | None:
    for line in lines:
        if reason := _c4_damning(line, line.lower(), rule):
            return reason
    missing = rule.min_sentences or 0
    for line in lines:
        if missing <= 0:
            break
        missing -= _num_sentences(line)
    return "c4_quality/sentences" if missing > 0 else None


_TERMINAL = regex.compile(r"\p{Sentence_Terminal}")
_ONLY_PUNCTUATION = regex.compile(r"\p{P}+")


@lru_cache(maxsize=1 << 12)
def _ends_sentence(character: str) -> bool:
    return _TERMINAL.fullmatch(character) is not None


def _num_sentences(line: str) -> int:
    """A sentence ends with a mark that is a word of its own (no abbreviation's, no ellipsis) and the marks after."""
    number, ended = 0, True
    for word in split_words(line):
        if len(word) == 1 and _ends_sentence(word):
            number, ended = max(number, 1), True
        elif ended and not _ONLY_PUNCTUATION.fullmatch(word):
            number, ended = number + 1, False
    return number


@dataclass(frozen=True, kw_only=True)
class FineWebQuality:
    """The rules that FineWeb adds to Gopher's and C4's (Penedo et al. 2024, section 3.6). Blank lines do not count."""

    min_punctuated_lines: float | None = 0.12
    """Part of the lines that end in a mark that ends sentences."""
    max_short_lines: float | None = 0.67
    """Part of the lines of at most `short_line` characters."""
    short_line: int = 30
    max_duplicate_characters: float | None = 0.1
    """Part of the characters (line breaks apart) in lines that repeat an earlier one. The paper's bound; datatrove's
    default is 0.01."""
    max_line_breaks_per_word: float | None = 0.3
    """Line breaks over words and marks: lists."""

    def check(self, where: str) -> None:
        check_shares(
            where,
            min_punctuated_lines=self.min_punctuated_lines,
            max_short_lines=self.max_short_lines,
            max_duplicate_characters=self.max_duplicate_characters,
        )
        check_least(f"{where}.short_line", self.short_line, 0)
        check_least(f"{where}.max_line_breaks_per_word", self.max_line_breaks_per_word or 0, 0)


def fineweb_quality(texts: list[str], rule: FineWebQuality) -> Outcome:
    """The texts as they are, dropped for the first rule that they break; one without words for `no_text`."""

    def judge(text: str) -> str | None:
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return "fineweb_quality/no_text"
        if sum(_ends_sentence(line[-1]) for line in lines) / len(lines) < (rule.min_punctuated_lines or 0):
            return "fineweb_quality/punctuated_lines"
        if _above(sum(len(line) <= rule.short_line for line in lines) / len(lines), rule.max_short_lines):
            return "fineweb_quality/short_lines"
        breaks = text.count("\n")
        repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
        if _above(repeated / (len(text) - breaks), rule.max_duplicate_characters):
            return "fineweb_quality/duplicate_characters"
        if breaks and _above(breaks / len(split_words(text)), rule.max_line_breaks_per_word):
            return "fineweb_quality/line_breaks_per_word"
        return None

    return judged(texts, judge)
