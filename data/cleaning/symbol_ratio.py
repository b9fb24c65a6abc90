"""Text rather than marks: two rules of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1) by themselves."""

import re
from dataclasses import dataclass

from data.cleaning.step import Outcome, check_least, check_share, judged


@dataclass(frozen=True, kw_only=True)
class SymbolRatio:
    """Text that is mostly marks: Gopher's symbol and alphabetic-word rules."""

    max_symbols_per_word: float = 0.1
    """Number signs and ellipses, over the number of words."""
    min_alphabetic_words: float = 0.8
    """Part of the words with at least one letter."""

    def check(self, where: str) -> None:
        check_share(f"{where}.min_alphabetic_words", self.min_alphabetic_words)
        check_least(f"{where}.max_symbols_per_word", self.max_symbols_per_word, 0)


_SYMBOL = re.compile(r"#|\.\.\.|…")


def symbol_ratio(texts: list[str], rule: SymbolRatio) -> Outcome:
    def judge(text: str) -> str | None:
        words = text.split()
        if len(_SYMBOL.findall(text)) > rule.max_symbols_per_word * len(words):
            return "symbol_ratio/symbols_per_word"
        if sum(any(map(str.isalpha, word)) for word in words) < rule.min_alphabetic_words * len(words):
            return "symbol_ratio/alphabetic_words"
        return None

    return judged(texts, judge)
