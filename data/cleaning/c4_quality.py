"""The step `c4_quality`: the quality rules of C4 (Raffel et al. 2020, section 2.2), without its list of bad words.

Where the paper does not define exactly what is counted, the step counts as datatrove does.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from data.cleaning.language_rules import rules_for
from data.cleaning.sentences import line_ends_sentence, num_sentences
from data.cleaning.step import Outcome, check_at_least
from data.words import space_separated_words


@dataclass(frozen=True, kw_only=True)
class C4Quality:
    """The rules of C4: remove lines, then drop the document depending on the remaining lines. Use this step only for
    web prose, because code, tables and verse lose most of their lines. False, null or an empty list turns a rule
    off."""

    terminal_punctuation: bool = True
    """Remove lines that do not end with one of `. ? ! " '` or a mark that ends sentences in another script, and lines
    that end with an ellipsis. Lines of documents in Thai and Lao, which have no such mark, are not removed."""
    min_words_per_line: int | None = 3
    """Remove lines with fewer words than this. Words are separated by white space and, in scripts without spaces, as
    `data/words.py` says."""
    max_word_length: int | None = 1000
    """Remove lines that contain a word with more characters than this."""
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
    """Remove lines that contain one of these phrases. Upper and lower case do not matter."""
    citations: bool = True
    """Remove `[1]`, `[]`, `[edit]` and `[citation needed]` from lines."""
    lorem_ipsum: bool = True
    """Drop documents with the placeholder text "lorem ipsum". Lines that are removed because of their words or their
    punctuation are not searched."""
    curly_bracket: bool = True
    """Drop documents with `{`, which hardly occurs in prose. Lines that are removed because of their words, their
    punctuation or Javascript are not searched."""
    min_sentences: int | None = 5
    """Drop documents with fewer sentences than this in the remaining lines. In Thai and Lao, spaces and line breaks
    separate sentences."""

    def check(self, field_path: str) -> None:
        check_at_least(f"{field_path}.min_words_per_line", self.min_words_per_line or 0, 0)
        if self.max_word_length is not None:
            check_at_least(f"{field_path}.max_word_length", self.max_word_length, 1)
        check_at_least(f"{field_path}.min_sentences", self.min_sentences or 0, 0)
        if not all(map(str.strip, self.policy_phrases)):
            raise ValueError(f"{field_path}.policy_phrases: a blank phrase would match nearly every line; remove it")


_CHANGES = ("long_word", "terminal_punctuation", "few_words", "javascript", "policy", "citations")
"""The kinds of change that the step counts. A count has the key `c4_quality/CHANGE`."""

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


def c4_quality(texts: list[str], settings: C4Quality, languages: Sequence[str | None] | None = None) -> Outcome:
    """Remove the lines that break a rule, and drop documents depending on the remaining lines.

    Counts the lines that each rule removed and the removed citations. Changes in dropped documents are not counted.
    """
    counts = Counter(dict.fromkeys((f"c4_quality/{change}" for change in _CHANGES), 0))
    cleaned: list[str] = []
    reasons: list[str | None] = []
    for text, language in zip(texts, languages or [None] * len(texts), strict=True):
        changes: Counter[str] = Counter()
        rules = rules_for(language, text)
        has_marks = rules is None or rules.has_sentence_marks
        lines = list(_kept_lines(text, settings, changes, has_marks))
        reason = _drop_reason(lines, settings, has_marks)
        reasons.append(reason)
        cleaned.append("\n".join(lines).strip() if reason is None else text)
        if reason is None:
            counts.update(changes)
    return Outcome(cleaned, reasons, dict(counts))


def _kept_lines(text: str, settings: C4Quality, changes: Counter[str], has_marks: bool) -> Iterable[str]:
    """Yield the lines to keep, and add the removed lines and citations to `changes`.

    `has_marks` is whether the language has marks that end sentences. A line that causes the document to be dropped is
    also yielded, so that `_drop_reason` finds it.
    """
    policies = [phrase.lower() for phrase in settings.policy_phrases]
    for line in map(str.strip, text.splitlines()):
        words = space_separated_words(line)
        if _has_long_word(line, words, settings.max_word_length):
            changes["c4_quality/long_word"] += 1
            continue
        if settings.citations and "[" in line:
            line, citations = _CITATION.subn("", line)
            changes["c4_quality/citations"] += citations
        lower = line.lower()
        if settings.terminal_punctuation and has_marks and not _ends_well(line):
            changes["c4_quality/terminal_punctuation"] += 1
        elif len(words) < (settings.min_words_per_line or 0):
            changes["c4_quality/few_words"] += 1
        elif _drop_reason_of_line(line, lower, settings):
            yield line
        elif settings.javascript and "javascript" in lower:
            changes["c4_quality/javascript"] += 1
        elif any(phrase in lower for phrase in policies):
            changes["c4_quality/policy"] += 1
        else:
            yield line


def _has_long_word(line: str, words: list[str], max_length: int | None) -> bool:
    """Return whether a word has more than `max_length` characters. Most lines are too short for such a word."""
    return max_length is not None and len(line) > max_length and any(len(word) > max_length for word in words)


def _ends_well(line: str) -> bool:
    """Return whether a line ends with one of C4's marks, or one of another script, and not with an ellipsis."""
    last = line[-1:]
    if last.isascii():
        return last in {*".?!\"'"} and not line.endswith("...")
    return line_ends_sentence(line)


def _drop_reason_of_line(line: str, lower: str, settings: C4Quality) -> str | None:
    """Return the reason why this line causes its document to be dropped, or None. `lower` is the line in lower case."""
    if settings.lorem_ipsum and "lorem ipsum" in lower:
        return "c4_quality/lorem_ipsum"
    # As in C4, a line that is removed because of Javascript does not count for the curly bracket rule.
    is_javascript = settings.javascript and "javascript" in lower
    return "c4_quality/curly_bracket" if settings.curly_bracket and "{" in line and not is_javascript else None


def _drop_reason(lines: list[str], settings: C4Quality, has_marks: bool) -> str | None:
    """Return the reason why a document with these remaining lines is dropped, or None if it is kept."""
    for line in lines:
        if reason := _drop_reason_of_line(line, line.lower(), settings):
            return reason
    # `num_missing` is the number of sentences that are still needed. The counting stops when there are enough.
    num_missing = settings.min_sentences or 0
    for line in lines:
        if num_missing <= 0:
            break
        num_missing -= num_sentences(line) if has_marks else len(line.split())
    return "c4_quality/sentences" if num_missing > 0 else None
