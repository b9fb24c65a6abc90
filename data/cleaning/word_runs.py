"""Runs of consecutive words that hold about the same amount of text in every script.

A run is an n-gram of `decontaminate` or a shingle of `near_duplicates`. If its length were a number of words or units,
13 ideographs would be as good as 13 words, although a single official name can have as many. So the length is an amount
of text: a word counts as one word, and a unit of a script without spaces as a part of one. A run ends with the first
word with which its amount is large enough.

The hash of a run is a polynomial of the hash values of its words, modulo 2**64 (numpy's integer overflow). A run of n
words with the values v has the hash sum(v[k] * F**(n - 1 - k)).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from data.cleaning.step import check_at_least
from data.words import Unit, unit_of

WORD_AMOUNT = 10**6
"""The amount of a word. Amounts are integers, so that sums are exact."""
_FACTOR = 0x9E3779B97F4A7C15
"""The number F at which the polynomial of a hash is evaluated, an arbitrary odd constant."""


@dataclass(frozen=True, kw_only=True)
class UnitsPerWord:
    """How many units of a script without spaces count as one word.

    The Universal Declaration of Human Rights has 1,753 words in English, 1.5 times as many ideographs in Chinese, 1.7
    to 1.8 times as many syllables in Yi and Tibetan, and 2.5 (Burmese) to 3.2 times as many in Thai, Lao and Khmer. In
    Japanese, 3.4 kana are as much as one word if 1.5 ideographs are. Names have more ideographs for a word of their
    translation than running text has."""

    ideographs: float = 1.7
    """Ideographs of Chinese and Japanese, and syllables of Yi and Tibetan."""
    syllables: float = 3.0
    """Syllables of hiragana, Thai, Lao, Khmer, Burmese and similar scripts, as `data/words.py` cuts them. A sequence of
    katakana is a word."""

    def check(self, field_path: str) -> None:
        """Raises ValueError for a value below 1."""
        for name in ("ideographs", "syllables"):
            check_at_least(f"{field_path}.{name}", self.__dict__[name], 1)

    def amount_of(self, word: str) -> int:
        """Return the amount of a word or unit, rounded up so that `syllables` units are never less than a word."""
        unit = unit_of(word)
        if unit is Unit.WORD:
            return WORD_AMOUNT
        return math.ceil(WORD_AMOUNT / (self.ideographs if unit is Unit.IDEOGRAPH else self.syllables))

    def amount_of_words(self, words: Sequence[str]) -> int:
        return sum(map(self.amount_of, words))


def run_ends(amounts: np.ndarray, num_words: int) -> np.ndarray:
    """Return for each position the end of the run that starts there and holds the amount of `num_words` words.

    `amounts` are the amounts of consecutive words (int64). Positions near the end, where less text is left, have no
    run and are not in the result.
    """
    if (amounts == WORD_AMOUNT).all():
        return np.arange(num_words, len(amounts) + 1)
    sums = np.concatenate(([0], np.cumsum(amounts)))
    ends = np.searchsorted(sums, sums[:-1] + num_words * WORD_AMOUNT)
    return ends[: np.searchsorted(ends, len(sums))]


def word_hash(word: str) -> int:
    """Return the hash value of a word, with 64 bits."""
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


class RunHasher:
    """Computes the hashes of runs in a sequence of words, in a time that does not depend on their lengths."""

    def __init__(self, values: np.ndarray) -> None:
        """`values` has the hash value of each word of the sequence (uint64), as `word_hash` returns it."""
        self._powers, inverse_powers = _powers_of_factor(1 << max(len(values), 1).bit_length())
        # With the inverse powers, the terms of all runs that contain a word are equal up to a factor of the run's end.
        self._sums = np.zeros(len(values) + 1, np.uint64)
        np.cumsum(values * inverse_powers[: len(values)], out=self._sums[1:])

    def hashes(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the hash of each run of the words from `start` to before `end` (uint64). No run is empty."""
        return (self._sums[ends] - self._sums[starts]) * self._powers[ends - 1]


@lru_cache(maxsize=2)
def _powers_of_factor(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the powers F**0, F**1, … and the powers of the inverse of F modulo 2**64, `count` each."""
    factors = np.full((2, count), [[_FACTOR], [pow(_FACTOR, -1, 2**64)]], np.uint64)
    factors[:, 0] = 1
    powers, inverse_powers = np.cumprod(factors, axis=1, dtype=np.uint64)
    return powers, inverse_powers
