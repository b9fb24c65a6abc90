"""The step `fineweb_quality`: the quality rules that FineWeb adds to those of Gopher and C4.

The rules are in section 3.6 of the paper (Penedo et al. 2024). `data/words.py` splits the text into words.
Where the paper does not define exactly what is counted, the step counts as datatrove does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data.cleaning.language_rules import LanguageRules, LanguageSettings
from data.cleaning.sentences import line_ends_sentence
from data.cleaning.step import Outcome, check_at_least, check_shares, filter_by_language, is_above
from data.words import WordRule, check_word_rule, num_units, split_words


@dataclass(frozen=True, kw_only=True)
class FineWebQuality:
    """Drop documents that break a quality rule of FineWeb (Penedo et al. 2024).

    Blank lines are not counted as lines. Null turns a rule off.
    """

    min_punctuated_lines: float | None = 0.12
    """Minimum share of the lines whose last character ends sentences, such as a full stop."""
    max_short_lines: float | None = 0.67
    """Maximum share of the lines that are short, which means that they have at most `short_line` characters."""
    short_line: int = 30
    """Maximum number of characters of a short line."""
    max_duplicate_characters: float | None = 0.1
    """Maximum share of the characters that are in lines equal to an earlier line. Line breaks are not counted. The
    default is the paper's value; the default of datatrove is 0.01."""
    max_line_breaks_per_word: float | None = 0.3
    """Maximum number of line breaks divided by the number of words and punctuation marks. Lists often exceed this
    maximum."""
    by_language: bool = True
    """Take the values of the document's language (`data/cleaning/language_rules.py`) for `min_punctuated_lines` and
    `max_line_breaks_per_word`, where these have their default values, which are for English. The language is the one
    that the step `language` found, or else the most important one of the script. With false, documents in all languages
    are judged by the same values."""
    words: WordRule = "classes"
    """How text in scripts without spaces is cut into words: by `classes` of characters, or by the dictionaries of `icu`
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese), which need `pip install raymill[languages]`."""

    def check(self, field_path: str) -> None:
        check_word_rule(f"{field_path}.words", self.words)
        check_shares(
            field_path,
            min_punctuated_lines=self.min_punctuated_lines,
            max_short_lines=self.max_short_lines,
            max_duplicate_characters=self.max_duplicate_characters,
        )
        check_at_least(f"{field_path}.short_line", self.short_line, 0)
        check_at_least(f"{field_path}.max_line_breaks_per_word", self.max_line_breaks_per_word or 0, 0)


def fineweb_quality(
    texts: list[str], settings: FineWebQuality, languages: Sequence[str | None] | None = None
) -> Outcome:
    """Drop the texts that break a rule, with the first broken rule as the reason.

    A text that has only blank lines is dropped with the reason `fineweb_quality/no_text`.
    """

    by_language = LanguageSettings(settings)

    def drop_reason(text: str, language: str | None) -> str | None:
        adapted, rules = by_language.for_text(language, text)
        return _drop_reason(text, adapted, rules)

    return filter_by_language(texts, languages, drop_reason)


def _drop_reason(text: str, settings: FineWebQuality, rules: LanguageRules) -> str | None:
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return "fineweb_quality/no_text"
    if sum(map(line_ends_sentence, lines)) / len(lines) < (settings.min_punctuated_lines or 0):
        return "fineweb_quality/punctuated_lines"
    if is_above(sum(len(line) <= settings.short_line for line in lines) / len(lines), settings.max_short_lines):
        return "fineweb_quality/short_lines"
    breaks = text.count("\n")
    repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
    if is_above(repeated / (len(text) - breaks), settings.max_duplicate_characters):
        return "fineweb_quality/duplicate_characters"
    if breaks and is_above(breaks / max(_num_words(text, settings.words, rules), 1), settings.max_line_breaks_per_word):
        return "fineweb_quality/line_breaks_per_word"
    return None


def _num_words(text: str, rule: WordRule, rules: LanguageRules) -> float:
    """Return the number of words and punctuation marks, with the units of scripts without spaces counted as words."""
    words = split_words(text, rule)
    if text.isascii():
        return len(words)
    return len(words) - num_units(words) * (1 - 1 / rules.units_per_word)
