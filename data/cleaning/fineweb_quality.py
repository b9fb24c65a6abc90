"""The quality rules that FineWeb adds to Gopher's and C4's (Penedo et al. 2024, section 3.6).

Words are those of `data/cleaning/words.py`. Where the paper leaves a count open, it is counted as datatrove does.
"""

from dataclasses import dataclass

from data.cleaning.sentences import ends_sentence
from data.cleaning.step import Outcome, check_least, check_shares, is_above, judged
from data.cleaning.words import split_words


@dataclass(frozen=True, kw_only=True)
class FineWebQuality:
    """The rules that FineWeb adds to Gopher's and C4's (Penedo et al. 2024, section 3.6). Blank lines do not count."""

    min_punctuated_lines: float | None = 0.12
    """Part of the lines that end in a mark that ends sentences."""
    max_short_lines: float | None = 0.67
    """Part of the lines of at most `short_line` characters."""
    short_line: int = 30
    """Characters of a line that counts as short, at most."""
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
        if sum(ends_sentence(line[-1]) for line in lines) / len(lines) < (rule.min_punctuated_lines or 0):
            return "fineweb_quality/punctuated_lines"
        if is_above(sum(len(line) <= rule.short_line for line in lines) / len(lines), rule.max_short_lines):
            return "fineweb_quality/short_lines"
        breaks = text.count("\n")
        repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
        if is_above(repeated / (len(text) - breaks), rule.max_duplicate_characters):
            return "fineweb_quality/duplicate_characters"
        if breaks and is_above(breaks / len(split_words(text)), rule.max_line_breaks_per_word):
            return "fineweb_quality/line_breaks_per_word"
        return None

    return judged(texts, judge)
