"""Cleaning: small pure functions on a batch of texts, listed in the configuration like a paper's method.

    steps:
      - repair_unicode: {}
      - length: {min_bytes: 200}
      - repetition: {}

Every step takes the texts that the steps before it have left and says, for each, its new text and why it is dropped
(if it is). Nothing is dropped without a reason, and every change is counted.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import ftfy
import numpy as np

from data.document import Document


class Outcome(NamedTuple):
    """What a step made of a batch of texts."""

    texts: list[str]
    reasons: list[str | None]
    """Why a text is dropped (`step/rule`); None keeps it."""
    counts: dict[str, int]
    """How often something was changed (`step/change`)."""


@dataclass(frozen=True, kw_only=True)
class RepairUnicode:
    """Undo mojibake and HTML entities, drop control characters, bring line breaks and composition to one form."""

    normalization: Literal["NFC", "NFKC"] = "NFC"

    def check(self, where: str) -> None:
        """Every value that the type allows is right."""


@dataclass(frozen=True, kw_only=True)
class Length:
    min_bytes: int = 0
    max_bytes: int | None = None

    def check(self, where: str) -> None:
        if self.min_bytes < 0:
            raise ValueError(f"{where}.min_bytes: {self.min_bytes} must be at least 0")
        if self.max_bytes is not None and self.max_bytes < max(self.min_bytes, 1):
            raise ValueError(f"{where}.max_bytes: {self.max_bytes} must be at least min_bytes ({self.min_bytes})")


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """The repetition rules of Gopher (Rae et al. 2021, table A1); a fraction above its bound drops the document."""

    duplicate_lines: float = 0.30
    """Part of the lines that repeat an earlier line."""
    duplicate_line_characters: float = 0.20
    """Part of the characters that stand in such lines."""
    top_ngrams: dict[int, float] = field(default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16})
    """Part of the characters covered by the most frequent n-gram of words, for each n."""
    duplicate_ngrams: dict[int, float] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    """Part of the characters covered by n-grams of words that occur more than once, for each n."""

    def check(self, where: str) -> None:
        _check_share(f"{where}.duplicate_lines", self.duplicate_lines)
        _check_share(f"{where}.duplicate_line_characters", self.duplicate_line_characters)
        for name, bounds in (("top_ngrams", self.top_ngrams), ("duplicate_ngrams", self.duplicate_ngrams)):
            for n, share in bounds.items():
                _check_share(f"{where}.{name}[{n}]", share)
                if n < 1:
                    raise ValueError(f"{where}.{name}: {n} must be at least 1, the number of words in an n-gram")


@dataclass(frozen=True, kw_only=True)
class SymbolRatio:
    """Text that is mostly marks: Gopher's symbol and alphabetic-word rules."""

    max_symbols_per_word: float = 0.1
    """Number signs and ellipses, over the number of words."""
    min_alphabetic_words: float = 0.8
    """Part of the words with at least one letter."""

    def check(self, where: str) -> None:
        _check_share(f"{where}.min_alphabetic_words", self.min_alphabetic_words)
        if self.max_symbols_per_word < 0:
            raise ValueError(f"{where}.max_symbols_per_word: {self.max_symbols_per_word} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class RedactPII:
    """Put typed placeholders where e-mail addresses and telephone numbers stood."""

    email: str = "[EMAIL]"
    phone: str = "[PHONE]"

    def check(self, where: str) -> None:
        """Any placeholder will do, the empty one too."""


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates:
    """Keep one document of those with the same text, whatever source it is in. Has to be the last step: it compares
    what all others have left, across the whole corpus (`data/dedup.py`)."""

    def check(self, where: str) -> None:
        """There is nothing to set."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the recipe; exactly one field is set, and its name says which."""

    repair_unicode: RepairUnicode | None = None
    length: Length | None = None
    repetition: Repetition | None = None
    symbol_ratio: SymbolRatio | None = None
    redact_pii: RedactPII | None = None
    exact_duplicates: ExactDuplicates | None = None


def chosen(step: Step) -> tuple[str, Any]:
    """The name and the parameters of the one step that is set. Raises ValueError for none or several."""
    names = [field.name for field in fields(Step)]
    given = [(name, value) for name in names if (value := step.__dict__[name]) is not None]
    if len(given) != 1:
        found = ", ".join(name for name, _ in given) or "none"
        raise ValueError(
            f"steps: an item names exactly one step, as in `- length: {{}}`, but one names {found} "
            f"(steps: {', '.join(names)})"
        )
    return given[0]


def check_steps(steps: Sequence[Step]) -> None:
    """Raise ValueError for a step whose parameters contradict each other or that stands in the wrong place."""
    for position, step in enumerate(steps):
        name, rule = chosen(step)
        rule.check(f"steps[{position}].{name}")
        if name == "exact_duplicates" and position < len(steps) - 1:
            raise ValueError("steps: exact_duplicates must be the last step; it compares what all others have left")


def _check_share(where: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{where}: {share} must be between 0 and 1")


class Cleaned(NamedTuple):
    kept: list[Document]
    dropped: list[tuple[Document, str]]
    """Documents as they stood at that step, and the reason (`step/rule`)."""
    counts: dict[str, int]
    """How often each change was made (`step/change`)."""


def clean(documents: Sequence[Document], steps: Sequence[Step]) -> Cleaned:
    """The documents after every per-document step, in order. Ends by dropping what was left without text."""
    kept = list(documents)
    dropped: list[tuple[Document, str]] = []
    counts: dict[str, int] = {}
    recipe = [chosen(step) for step in steps]
    for name, rule in [*recipe, ("not_empty", None)]:
        if name == "exact_duplicates":
            continue  # not a matter of one document: `jobs/corpus.py` does it where equal texts meet
        outcome = STEPS[name]([document.text for document in kept], rule)
        counts |= {change: counts.get(change, 0) + number for change, number in outcome.counts.items()}
        left: list[Document] = []
        for document, text, reason in zip(kept, outcome.texts, outcome.reasons, strict=True):
            if reason is None:
                left.append(document if text == document.text else replace(document, text=text))
            else:
                dropped.append((document, reason))
        kept = left
    return Cleaned(kept, dropped, counts)


# The steps. Each is a function of the texts and its parameters alone.


# Whatever ftfy may change in ASCII text: entities, and control characters other than tab and line feed.
_REPAIRABLE_ASCII = re.compile(r"[&\x00-\x08\x0b-\x1f\x7f]")


def repair_unicode(texts: list[str], rule: RepairUnicode) -> Outcome:
    # Curly quotes stay: they are the author's, not damage.
    settings = ftfy.TextFixerConfig(normalization=rule.normalization, uncurl_quotes=False, explain=False)

    def repair(text: str) -> str:
        # ftfy works line by line, some 10 us each: half of all cleaning time on dialogue, where nothing is broken.
        if text.isascii() and not _REPAIRABLE_ASCII.search(text):
            return text
        return ftfy.fix_text(text, settings)

    repaired = [repair(text) for text in texts]
    changed = sum(before != after for before, after in zip(texts, repaired, strict=True))
    return Outcome(repaired, [None] * len(texts), {"repair_unicode/documents": changed})


def length(texts: list[str], rule: Length) -> Outcome:
    def judge(text: str) -> str | None:
        num_bytes = len(text.encode())
        if num_bytes < rule.min_bytes:
            return "length/min_bytes"
        if rule.max_bytes is not None and num_bytes > rule.max_bytes:
            return "length/max_bytes"
        return None

    return _judged(texts, judge)


def repetition(texts: list[str], rule: Repetition) -> Outcome:
    return _judged(texts, lambda text: _repeated_lines(text, rule) or _repeated_ngrams(text, rule))


def _repeated_lines(text: str, rule: Repetition) -> str | None:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    seen: set[str] = set()
    repeated = repeated_characters = 0
    for line in lines:
        if line in seen:
            repeated += 1
            repeated_characters += len(line)
        seen.add(line)
    if repeated > rule.duplicate_lines * len(lines):
        return "repetition/duplicate_lines"
    if repeated_characters > rule.duplicate_line_characters * sum(map(len, lines)):
        return "repetition/duplicate_line_characters"
    return None


def _repeated_ngrams(text: str, rule: Repetition) -> str | None:
    """Reason of the first n-gram rule that the words of the text break.

    An n-gram is a polynomial hash of its words' numbers, modulo 2**64 (numpy's own overflow), built from that of n-1.
    """
    words = text.split()
    numbering: dict[str, int] = {}
    numbers = np.array([numbering.setdefault(word, len(numbering) + 1) for word in words], dtype=np.uint64)
    word_lengths = np.array([len(word) for word in words], dtype=np.int64)
    total = int(word_lengths.sum())
    hashes = np.zeros(len(words) + 1, dtype=np.uint64)
    for n in range(1, max((*rule.top_ngrams, *rule.duplicate_ngrams), default=0) + 1):
        if len(words) < n:
            return None
        hashes = hashes[:-1] * np.uint64(0x9E3779B97F4A7C15) + numbers[n - 1 :]
        if n not in rule.top_ngrams and n not in rule.duplicate_ngrams:
            continue
        order = np.argsort(hashes, kind="stable")
        new = np.concatenate(([True], hashes[order][1:] != hashes[order][:-1]))
        counts = np.diff(np.append(np.flatnonzero(new), len(order)))
        if counts.max() == 1:
            return None  # where no n-gram occurs twice, no longer one does
        if n in rule.duplicate_ngrams:
            repeated = np.zeros(len(order), dtype=np.int64)
            repeated[order] = counts[np.cumsum(new) - 1] > 1
            covered = np.convolve(repeated, np.ones(n, dtype=np.int64)) > 0  # every word inside a repeated n-gram
            if int(word_lengths[covered].sum()) > rule.duplicate_ngrams[n] * total:
                return f"repetition/duplicate_{n}grams"
        if n in rule.top_ngrams:
            # Of n-grams that are equally frequent, the one that covers most characters (as in Gopher's rule).
            spans = np.convolve(word_lengths, np.ones(n, dtype=np.int64), mode="valid")[order[new]]
            if int(spans[counts == counts.max()].max() * counts.max()) > rule.top_ngrams[n] * total:
                return f"repetition/top_{n}gram"
    return None


_SYMBOL = re.compile(r"#|\.\.\.|…")


def symbol_ratio(texts: list[str], rule: SymbolRatio) -> Outcome:
    def judge(text: str) -> str | None:
        words = text.split()
        if len(_SYMBOL.findall(text)) > rule.max_symbols_per_word * len(words):
            return "symbol_ratio/symbols_per_word"
        if sum(any(map(str.isalpha, word)) for word in words) < rule.min_alphabetic_words * len(words):
            return "symbol_ratio/alphabetic_words"
        return None

    return _judged(texts, judge)


_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
# An international number (+, then 8 to 15 digits in groups) or a North American one in its usual shapes. A bare run of
# digits is left alone: it is more often a year range, an ISBN or an amount.
_PHONE = re.compile(
    r"(?<![\w+./-])(?:"
    r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}"
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"
    r")(?![\w/-]|\.\d)"
)


def redact_pii(texts: list[str], rule: RedactPII) -> Outcome:
    counts = {"redact_pii/email": 0, "redact_pii/phone": 0}

    def email(match: re.Match[str]) -> str:
        counts["redact_pii/email"] += 1
        return rule.email

    def phone(match: re.Match[str]) -> str:
        if not 8 <= sum(map(str.isdigit, match[0])) <= 15:
            return match[0]
        counts["redact_pii/phone"] += 1
        return rule.phone

    redacted = [_PHONE.sub(phone, _EMAIL.sub(email, text) if "@" in text else text) for text in texts]
    return Outcome(redacted, [None] * len(texts), counts)


def not_empty(texts: list[str], rule: None) -> Outcome:
    return _judged(texts, lambda text: None if text.strip() else "empty")


def _judged(texts: list[str], judge: Callable[[str], str | None]) -> Outcome:
    return Outcome(texts, [judge(text) for text in texts], {})


STEPS: dict[str, Callable[[list[str], Any], Outcome]] = {
    "repair_unicode": repair_unicode,
    "length": length,
    "repetition": repetition,
    "symbol_ratio": symbol_ratio,
    "redact_pii": redact_pii,
    "not_empty": not_empty,
}
"""The per-document steps by the name that the configuration uses; not_empty always comes last."""
