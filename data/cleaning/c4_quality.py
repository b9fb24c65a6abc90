"""The quality rules of C4 (Raffel et al. 2020, section 2.2), without its list of bad words.

Where the paper leaves a count open, it is counted as datatrove does.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from data.cleaning.sentences import num_sentences
from data.cleaning.step import Outcome, check_least


@dataclass(frozen=True, kw_only=True)
class C4Quality:
    """The rules of C4: lines are removed first, then the document is judged by the remaining ones. For web prose only:
    code, tables and verse lose most of their lines."""

    terminal_punctuation: bool = True
    """Remove lines that do not end in one of `. ? ! " '`, or that end in an ellipsis."""
    min_words_per_line: int | None = 3
    """Words between white space; a line with fewer is removed."""
    max_word_length: int | None = 1000
    """Characters; a line with a longer word is removed."""
    javascript: bool = True
    """Remove lines that mention Javascript."""
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
    """In the remaining lines."""

    def check(self, where: str) -> None:
        check_least(f"{where}.min_words_per_line", self.min_words_per_line or 0, 0)
        if self.max_word_length is not None:
            check_least(f"{where}.max_word_length", self.max_word_length, 1)
        check_least(f"{where}.min_sentences", self.min_sentences or 0, 0)
        if not all(self.policy_phrases):
            raise ValueError(f"{where}.policy_phrases: holds an empty phrase, which is in every line; remove it")


_CHANGES = ("long_word", "terminal_punctuation", "few_words", "javascript", "policy", "citations")


_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


def c4_quality(texts: list[str], rule: C4Quality) -> Outcome:
    """The texts without the lines that break a rule; a document that is dropped keeps its text.

    Counts the lines removed by each rule and the citations removed, in the documents that are kept."""
    counts = Counter(dict.fromkeys((f"c4_quality/{change}" for change in _CHANGES), 0))
    cleaned: list[str] = []
    reasons: list[str | None] = []
    for text in texts:
        changes: Counter[str] = Counter()
        lines = list(_kept_lines(text, rule, changes))
        reason = _drop_reason(lines, rule)
        reasons.append(reason)
        cleaned.append("\n".join(lines).strip() if reason is None else text)
        if reason is None:
            counts.update(changes)
    return Outcome(cleaned, reasons, dict(counts))


def _kept_lines(text: str, rule: C4Quality, changes: Counter[str]) -> Iterable[str]:
    """The lines that are kept. A line for which the document is dropped is among them: nothing after it matters."""
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
        elif _drop_reason_of_line(line, lower, rule):
            yield line
        elif rule.javascript and "javascript" in lower:
            changes["c4_quality/javascript"] += 1
        elif any(phrase in lower for phrase in policies):
            changes["c4_quality/policy"] += 1
        else:
            yield line


def _has_long_word(line: str, words: list[str], most: int | None) -> bool:
    return most is not None and len(line) > most and any(len(word) > most for word in words)


def _drop_reason_of_line(line: str, lower: str, rule: C4Quality) -> str | None:
    if rule.lorem_ipsum and "lorem ipsum" in lower:
        return "c4_quality/lorem_ipsum"
    # A line of Javascript is removed first, unless that rule is off: the order in which C4 looks.
    javascript = rule.javascript and "javascript" in lower
    return "c4_quality/curly_bracket" if rule.curly_bracket and "{" in line and not javascript else None


def _drop_reason(lines: list[str], rule: C4Quality) -> str | None:
    for line in lines:
        if reason := _drop_reason_of_line(line, line.lower(), rule):
            return reason
    missing = rule.min_sentences or 0
    for line in lines:
        if missing <= 0:
            break
        missing -= num_sentences(line)
    return "c4_quality/sentences" if missing > 0 else None
