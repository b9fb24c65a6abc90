"""The step `fineweb_quality`: the quality rules that FineWeb adds to those of Gopher and C4.

The rules are in section 3.6 of the paper (Penedo et al. 2024). `data/words.py` splits the text into words.
Where the paper does not define exactly what is counted, the step counts as datatrove does.
"""

from dataclasses import dataclass

from data.cleaning.sentences import ends_sentence
from data.cleaning.step import Outcome, check_at_least, check_shares, filter_outcome, is_above
from data.words import split_words


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

    def check(self, field_path: str) -> None:
        check_shares(
            field_path,
            min_punctuated_lines=self.min_punctuated_lines,
            max_short_lines=self.max_short_lines,
            max_duplicate_characters=self.max_duplicate_characters,
        )
        check_at_least(f"{field_path}.short_line", self.short_line, 0)
        check_at_least(f"{field_path}.max_line_breaks_per_word", self.max_line_breaks_per_word or 0, 0)


def fineweb_quality(texts: list[str], settings: FineWebQuality) -> Outcome:
    """Drop the texts that break a rule, with the first broken rule as the reason.

    A text that has only blank lines is dropped with the reason `fineweb_quality/no_text`.
    """

    def drop_reason(text: str) -> str | None:
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return "fineweb_quality/no_text"
        if sum(ends_sentence(line[-1]) for line in lines) / len(lines) < (settings.min_punctuated_lines or 0):
            return "fineweb_quality/punctuated_lines"
        if is_above(sum(len(line) <= settings.short_line for line in lines) / len(lines), settings.max_short_lines):
            return "fineweb_quality/short_lines"
        breaks = text.count("\n")
        repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
        if is_above(repeated / (len(text) - breaks), settings.max_duplicate_characters):
            return "fineweb_quality/duplicate_characters"
        if breaks and is_above(breaks / len(split_words(text)), settings.max_line_breaks_per_word):
            return "fineweb_quality/line_breaks_per_word"
        return None

    return filter_outcome(texts, drop_reason)
