"""The step `clean_lines`: remove lines that are not text, such as cookie notices, and keep the rest of the document."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from data.cleaning.step import Outcome, check_at_least, check_shares
from data.words import space_separated_words

_MAX_NOTICE_CHARACTERS = 200
"""A longer line is kept even if it contains a phrase, because it is probably not a notice. For example, it may be a
paragraph about cookies."""


@dataclass(frozen=True, kw_only=True)
class CleanLines:
    """Remove lines and white space. By default, the step removes only notices, white space at line ends and surplus
    blank lines, so that code, verse and tables keep their lines. The other rules are off unless they are set. False,
    null or an empty list turns a rule off."""

    trim: bool = True
    """Remove white space at the end of each line. White space at its start is kept."""
    max_blank_lines: int | None = 2
    """Remove blank lines after this many in a row, also at the start and the end of a document."""
    phrases: list[str] = field(
        default_factory=lambda: [
            "we use cookies",
            "this site uses cookies",
            "this website uses cookies",
            "accept all cookies",
            "please enable javascript",
            "javascript is disabled",
        ]
    )
    """Remove lines of at most 200 characters that contain one of these phrases. Upper and lower case do not matter."""
    min_words: int | None = None
    """Remove lines with fewer words than this. Words are separated by white space and, in scripts without spaces, as
    `data/words.py` says. The rule removes menus, but also verse and code."""
    max_characters: int | None = None
    """Remove lines with more characters than this. With 100,000, the rule removes minified code and data, but no
    ordinary paragraph."""
    max_non_alphabetic: float | None = None
    """Remove lines in which the share of characters that are not letters is higher than this. White space is not
    counted. The rule removes separator lines and tables, but also code and formulas."""
    dedupe_lines: bool = False
    """Remove lines that are equal to an earlier line of the document, except for white space around them. The rule
    removes page headers, but also refrains and closing brackets."""

    def check(self, field_path: str) -> None:
        for name in ("max_blank_lines", "min_words"):
            check_at_least(f"{field_path}.{name}", self.__dict__[name] or 0, 0)
        if self.max_characters is not None:
            check_at_least(f"{field_path}.max_characters", self.max_characters, 1)
        check_shares(field_path, max_non_alphabetic=self.max_non_alphabetic)
        if not all(map(str.strip, self.phrases)):
            raise ValueError(f"{field_path}.phrases: a blank phrase would match nearly every line; remove it")


_CHANGES = ("trimmed", "blank", "phrases", "min_words", "max_characters", "non_alphabetic", "repeated")
"""The kinds of change that the step counts. A count has the key `clean_lines/CHANGE`."""


def clean_lines(texts: list[str], settings: CleanLines) -> Outcome:
    """Remove lines and white space. Drops no text. Counts the lines that each rule removed or trimmed."""
    counts = Counter(dict.fromkeys((f"clean_lines/{change}" for change in _CHANGES), 0))
    cleaned = ["\n".join(_kept_lines(text.split("\n"), settings, counts)) for text in texts]
    return Outcome(cleaned, [None] * len(texts), dict(counts))


def _kept_lines(lines: Iterable[str], settings: CleanLines, counts: Counter[str]) -> Iterable[str]:
    broken_rule = _line_checker(settings)
    # The number of blank lines since the last line with text that was kept. A removed line does not set this number
    # back to 0, because the line is not in the cleaned text.
    num_blank = 0
    for line in lines:
        if settings.trim and line[-1:].isspace():
            line = line.rstrip()
            counts["clean_lines/trimmed"] += 1
        if not line or line.isspace():
            num_blank += 1
            if settings.max_blank_lines is not None and num_blank > settings.max_blank_lines:
                counts["clean_lines/blank"] += 1
                continue
        elif name := broken_rule(line):
            counts[f"clean_lines/{name}"] += 1
            continue
        else:
            num_blank = 0
        yield line


def _line_checker(settings: CleanLines) -> Callable[[str], str | None]:
    """Return a function that returns the first rule that a line breaks, or None if the line is to be kept.

    The function must be called with the lines of one document in order, because it remembers lines for `dedupe_lines`.
    """
    phrases = [phrase.lower() for phrase in settings.phrases]
    seen: set[str] = set()

    def broken_rule(line: str) -> str | None:
        if settings.max_characters is not None and len(line) > settings.max_characters:
            return "max_characters"
        if phrases and len(line) <= _MAX_NOTICE_CHARACTERS:
            lower = line.lower()
            if any(phrase in lower for phrase in phrases):
                return "phrases"
        if settings.min_words and len(space_separated_words(line)) < settings.min_words:
            return "min_words"
        if settings.max_non_alphabetic is not None and _non_alphabetic_share(line) > settings.max_non_alphabetic:
            return "non_alphabetic"
        if settings.dedupe_lines:
            if (stripped := line.strip()) in seen:
                return "repeated"
            seen.add(stripped)
        return None

    return broken_rule


def _non_alphabetic_share(line: str) -> float:
    characters = "".join(line.split())
    return 1 - sum(map(str.isalpha, characters)) / len(characters)
