"""The step `symbol_ratio`: two of the quality rules of Gopher (Rae et al. 2021, arXiv:2112.11446, section A.1.1).

Unlike the step `gopher_quality`, this step separates words only at white space (except in scripts without spaces), and
its maximum applies to the sum of number signs and ellipses.
"""

import re
from dataclasses import dataclass

from data.cleaning.step import Outcome, check_at_least, check_share, filter_outcome
from data.words import space_separated_words


@dataclass(frozen=True, kw_only=True)
class SymbolRatio:
    """Drop documents with many symbols, or with few words that contain a letter."""

    max_symbols_per_word: float = 0.1
    """Maximum number of number signs (`#`) and ellipses together, divided by the number of words."""
    min_alphabetic_words: float = 0.8
    """Minimum share of the words that contain a letter."""

    def check(self, field_path: str) -> None:
        check_share(f"{field_path}.min_alphabetic_words", self.min_alphabetic_words)
        check_at_least(f"{field_path}.max_symbols_per_word", self.max_symbols_per_word, 0)


_SYMBOL = re.compile(r"#|\.\.\.|…")


def symbol_ratio(texts: list[str], settings: SymbolRatio) -> Outcome:
    def drop_reason(text: str) -> str | None:
        words = space_separated_words(text)
        if len(_SYMBOL.findall(text)) > settings.max_symbols_per_word * len(words):
            return "symbol_ratio/symbols_per_word"
        if sum(any(map(str.isalpha, word)) for word in words) < settings.min_alphabetic_words * len(words):
            return "symbol_ratio/alphabetic_words"
        return None

    return filter_outcome(texts, drop_reason)
