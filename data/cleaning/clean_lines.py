"""Line cleaning: lines that are no text are removed; the document is kept."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from data.cleaning.step import Outcome, check_least, check_shares

_LONGEST_NOTICE = 200
"""Characters; a longer line with a phrase is a paragraph about cookies, say, and not the notice itself."""


@dataclass(frozen=True, kw_only=True)
class CleanLines:
    """Remove lines. By default only notices, white space at line ends and long runs of blank lines are removed, so that
    code, verse and tables keep their lines; every other rule is off until it has a value."""

    trim: bool = True
    """Remove white space at the ends of lines."""
    max_blank_lines: int | None = 2
    """Longer runs of blank lines are cut to this many; at the start and the end of a document too."""
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
    """Remove lines of at most 200 characters with one of these, in any case."""
    min_words: int | None = None
    """Remove lines with fewer words between white space: menus, but verse and code too."""
    max_characters: int | None = None
    """Remove longer lines: minified code and data (100,000 is beyond any paragraph)."""
    max_non_alphabetic: float | None = None
    """Remove lines with a higher part of characters (white space apart) that are no letters: rulers and tables, but
    code and formulas too."""
    dedupe_lines: bool = False
    """Remove lines that equal an earlier one of the document apart from white space around them: page headers, but
    refrains and closing brackets too."""

    def check(self, where: str) -> None:
        for name in ("max_blank_lines", "min_words"):
            check_least(f"{where}.{name}", self.__dict__[name] or 0, 0)
        if self.max_characters is not None:
            check_least(f"{where}.max_characters", self.max_characters, 1)
        check_shares(where, max_non_alphabetic=self.max_non_alphabetic)
        if not all(map(str.strip, self.phrases)):
            raise ValueError(f"{where}.phrases: holds an empty phrase, which is in every line; remove it")


_CHANGES = ("trimmed", "blank", "phrases", "min_words", "max_characters", "non_alphabetic", "repeated")


def clean_lines(texts: list[str], rule: CleanLines) -> Outcome:
    """The texts with the lines that are kept. Drops no text; counts the lines that each rule removed or trimmed."""
    counts = Counter(dict.fromkeys((f"clean_lines/{change}" for change in _CHANGES), 0))
    cleaned = ["\n".join(_lines(text.split("\n"), rule, counts)) for text in texts]
    return Outcome(cleaned, [None] * len(texts), dict(counts))


def _lines(lines: Iterable[str], rule: CleanLines, counts: Counter[str]) -> Iterable[str]:
    broken_rule = _line_checker(rule)
    blanks = 0  # in the cleaned text: a removed line does not end a run
    for line in lines:
        if rule.trim and line[-1:].isspace():
            line = line.rstrip()
            counts["clean_lines/trimmed"] += 1
        if not line or line.isspace():
            blanks += 1
            if rule.max_blank_lines is not None and blanks > rule.max_blank_lines:
                counts["clean_lines/blank"] += 1
                continue
        elif name := broken_rule(line):
            counts[f"clean_lines/{name}"] += 1
            continue
        else:
            blanks = 0
        yield line


def _line_checker(rule: CleanLines) -> Callable[[str], str | None]:
    """A function that returns the first rule that a line of one document breaks; it remembers earlier lines."""
    phrases = [phrase.lower() for phrase in rule.phrases]
    seen: set[str] = set()

    def broken_rule(line: str) -> str | None:
        if rule.max_characters is not None and len(line) > rule.max_characters:
            return "max_characters"
        if phrases and len(line) <= _LONGEST_NOTICE:
            lower = line.lower()
            if any(phrase in lower for phrase in phrases):
                return "phrases"
        if rule.min_words and len(line.split(None, rule.min_words - 1)) < rule.min_words:
            return "min_words"
        if rule.max_non_alphabetic is not None and _non_alphabetic(line) > rule.max_non_alphabetic:
            return "non_alphabetic"
        if rule.dedupe_lines:
            if (stripped := line.strip()) in seen:
                return "repeated"
            seen.add(stripped)
        return None

    return broken_rule


def _non_alphabetic(line: str) -> float:
    characters = "".join(line.split())
    return 1 - sum(map(str.isalpha, characters)) / len(characters)
