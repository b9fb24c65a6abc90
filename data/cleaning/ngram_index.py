"""An exact index of the n-grams of some texts, by which a text that shares one of them is found.

Texts are compared word by word, without case, punctuation and line breaks. Words are numbered by the indexed texts
alone (any other word is 0), n-grams are looked up by a polynomial hash, and what is found is compared number by number.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[^\W_{_IDEOGRAPHS}]+|[{_IDEOGRAPHS}]")
"""Letters and digits; in scripts that write no spaces, each ideograph or kana is a word."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Match(NamedTuple):
    """An n-gram of a text that is in an indexed text."""

    text: int
    """Position among the texts that are looked up."""
    indexed: int
    """Position of the first indexed text that holds it."""


class NgramIndex:
    """The n-grams of some texts, given as lists of words (`words`). A text with fewer than `ngram` words counts as a
    whole."""

    def __init__(self, texts: Sequence[list[str]], ngram: int) -> None:
        self._vocabulary: dict[str, int] = {}
        for text in texts:
            for word in text:
                self._vocabulary.setdefault(word, len(self._vocabulary) + 1)
        self._values = np.array([0, *map(_value, self._vocabulary)], dtype=np.uint64)
        """What a word adds to a hash, by its number."""
        self._joined = _join(texts, self._vocabulary)
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._ngrams: dict[int, _Ngrams] = {}
        """By their number of words."""
        sizes = sorted({min(int(length), ngram) for length in lengths})
        for size, starts, hashes in _hashed_ngrams(self._joined.numbers, self._values, sizes):
            if size < ngram:  # only whole texts, no parts of longer ones
                is_whole = lengths[self._joined.texts[starts]] == size
                starts, hashes = starts[is_whole], hashes[is_whole]
            self._ngrams[size] = _sorted_ngrams(hashes, starts)

    def matches(self, texts: Iterable[list[str]]) -> Iterator[Match]:
        """A match for every n-gram of the texts that is in the index."""
        numbers, text_of = _join(texts, self._vocabulary)
        for size, starts, hashes in _hashed_ngrams(numbers, self._values, list(self._ngrams)):
            ngrams = self._ngrams[size]
            is_likely = ngrams.leading[hashes >> _shift(ngrams.leading)]
            starts, hashes = starts[is_likely], hashes[is_likely]
            low, high = (np.searchsorted(ngrams.hashes, hashes, side=side) for side in ("left", "right"))
            for position in np.flatnonzero(low < high):
                start = starts[position]
                for candidate in ngrams.starts[low[position] : high[position]]:  # the first fits unless hashes collide
                    indexed = self._joined.numbers[candidate : candidate + size]
                    if np.array_equal(indexed, numbers[start : start + size]):
                        yield Match(int(text_of[start]), int(self._joined.texts[candidate]))
                        break


def words(text: str) -> list[str]:
    """The words of a text as they are compared."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


def _value(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


class _Joined(NamedTuple):
    """Several texts in a row."""

    numbers: np.ndarray
    """Numbers of the words, with a 0 after each text; int64."""
    texts: np.ndarray
    """The text that each position belongs to; int64."""


def _join(texts: Iterable[list[str]], vocabulary: dict[str, int]) -> _Joined:
    numbers: list[int] = []
    lengths: list[int] = []
    for text in texts:
        numbers.extend(vocabulary.get(word, 0) for word in text)
        numbers.append(0)
        lengths.append(len(text) + 1)
    return _Joined(np.array(numbers, dtype=np.int64), np.repeat(np.arange(len(lengths)), lengths))


class _HashedNgrams(NamedTuple):
    """All n-grams of one size."""

    size: int
    starts: np.ndarray
    hashes: np.ndarray
    """uint64."""


def _hashed_ngrams(numbers: np.ndarray, values: np.ndarray, sizes: Sequence[int]) -> Iterator[_HashedNgrams]:
    """The n-grams without a 0, for each size in ascending order.

    The hash of an n-gram is the polynomial of its words' values modulo 2**64, numpy's own overflow, made from the hash
    of the n-gram one word shorter.
    """
    num_zeros = np.concatenate(([0], np.cumsum(numbers == 0)))
    word_values = values[numbers]
    hashes = np.zeros(len(numbers) + 1, dtype=np.uint64)
    for size in range(1, min(max(sizes, default=0), len(numbers)) + 1):
        hashes = hashes[:-1] * _FACTOR + word_values[size - 1 :]
        if size in sizes:
            starts = np.flatnonzero(num_zeros[size:] == num_zeros[:-size])
            yield _HashedNgrams(size, starts, hashes[starts])


class _Ngrams(NamedTuple):
    """The indexed n-grams of one size, in the order of their hashes."""

    hashes: np.ndarray
    """uint64."""
    starts: np.ndarray
    """Where each one starts in the joined texts."""
    leading: np.ndarray
    """For every value of a hash's leading bits, whether any hash begins with it: one look instead of a search."""


def _sorted_ngrams(hashes: np.ndarray, starts: np.ndarray) -> _Ngrams:
    order = np.argsort(hashes, kind="stable")  # of equal n-grams that of the first text comes first
    leading = np.zeros(1 << (len(hashes).bit_length() + 3), dtype=bool)
    leading[hashes >> _shift(leading)] = True
    return _Ngrams(hashes[order], starts[order], leading)


def _shift(leading: np.ndarray) -> np.uint64:
    return np.uint64(65 - len(leading).bit_length())
