"""An exact index of the n-grams of words of some texts. The index tells which of these n-grams another text contains.

Case, punctuation and line breaks are ignored. Every word of the indexed texts has a number, and all other words have
the number 0. The n-grams of a text are looked up by a polynomial hash of their words. Because different n-grams can
have the same hash, the numbers of the words are then compared as well.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[^\W_{_IDEOGRAPHS}]+|[{_IDEOGRAPHS}]")
"""A word is a sequence of letters and digits, or one ideograph or kana, because these are written without spaces."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""The number at which the polynomial of an n-gram's hash is evaluated, an arbitrary odd constant."""


class Match(NamedTuple):
    """An n-gram that is in a queried text and in an indexed text."""

    queried_text: int
    """Index of the queried text."""
    indexed_text: int
    """Index of the first indexed text that contains the n-gram."""


class NgramIndex:
    """An index of all n-grams of `ngram` words in some texts.

    A text with fewer words has a single n-gram, which consists of all its words. All texts are passed as lists of
    words, which the function `words` returns.
    """

    def __init__(self, texts: Sequence[list[str]], ngram: int) -> None:
        self._vocabulary: dict[str, int] = {}
        for text in texts:
            for word in text:
                self._vocabulary.setdefault(word, len(self._vocabulary) + 1)
        self._hash_values = np.array([0, *map(_hash_value, self._vocabulary)], dtype=np.uint64)
        """For each word number the value that the word contributes to the hash of an n-gram."""
        self._joined = _join(texts, self._vocabulary)
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._ngrams: dict[int, _IndexedNgrams] = {}
        """The indexed n-grams by their number of words."""
        sizes = sorted({min(int(length), ngram) for length in lengths})
        for size, starts, hashes in _hashed_ngrams(self._joined.numbers, self._hash_values, sizes):
            if size < ngram:  # An n-gram of this size counts only if it is a complete text.
                is_complete = lengths[self._joined.texts[starts]] == size
                starts, hashes = starts[is_complete], hashes[is_complete]
            self._ngrams[size] = _sorted_ngrams(hashes, starts)

    def matches(self, texts: Iterable[list[str]]) -> Iterator[Match]:
        """Yield a match for every n-gram of the queried texts that is in the index."""
        numbers, text_at = _join(texts, self._vocabulary)
        for size, starts, hashes in _hashed_ngrams(numbers, self._hash_values, list(self._ngrams)):
            ngrams = self._ngrams[size]
            may_be_indexed = ngrams.has_prefix[hashes >> _prefix_shift(ngrams.has_prefix)]
            starts, hashes = starts[may_be_indexed], hashes[may_be_indexed]
            low, high = (np.searchsorted(ngrams.hashes, hashes, side=side) for side in ("left", "right"))
            for position in np.flatnonzero(low < high):
                start = starts[position]
                # Candidates have the same hash. Unless different n-grams collide, the first candidate matches.
                for candidate in ngrams.starts[low[position] : high[position]]:
                    candidate_numbers = self._joined.numbers[candidate : candidate + size]
                    if np.array_equal(candidate_numbers, numbers[start : start + size]):
                        yield Match(int(text_at[start]), int(self._joined.texts[candidate]))
                        break


def words(text: str) -> list[str]:
    """Return the words of a text, in the Unicode form NFKC and case folded, so that `The` and `the` are equal."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


def _hash_value(word: str) -> int:
    """Return the value that a word contributes to the hash of an n-gram."""
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


class _JoinedTexts(NamedTuple):
    """Several texts, one after the other. A position is an index into both arrays."""

    numbers: np.ndarray
    """The number of each word, with a 0 after each text (int64)."""
    texts: np.ndarray
    """For each position the index of its text (int64)."""


def _join(texts: Iterable[list[str]], vocabulary: dict[str, int]) -> _JoinedTexts:
    """Join the texts. `vocabulary` has the number of each indexed word, and all other words have the number 0."""
    numbers: list[int] = []
    lengths: list[int] = []
    for text in texts:
        numbers.extend(vocabulary.get(word, 0) for word in text)
        numbers.append(0)
        lengths.append(len(text) + 1)
    return _JoinedTexts(np.array(numbers, dtype=np.int64), np.repeat(np.arange(len(lengths)), lengths))


class _HashedNgrams(NamedTuple):
    """The n-grams of one size in joined texts, without those that contain the number 0."""

    size: int
    """Number of words of each n-gram."""
    starts: np.ndarray
    """Position of each n-gram's first word."""
    hashes: np.ndarray
    """Hash of each n-gram (uint64)."""


def _hashed_ngrams(numbers: np.ndarray, hash_values: np.ndarray, sizes: Sequence[int]) -> Iterator[_HashedNgrams]:
    """Yield the n-grams of each size, in ascending order of the sizes. N-grams that contain the number 0 are left out.

    `numbers` are the numbers of words in joined texts (`_JoinedTexts.numbers`). `hash_values` has the hash value of the
    word with the number i at index i.

    The hash of an n-gram is a polynomial of the hash values of its words, modulo 2**64 (numpy's integer overflow). The
    hash of n words is computed from the hash of the first n - 1 words.
    """
    num_zeros = np.concatenate(([0], np.cumsum(numbers == 0)))
    word_values = hash_values[numbers]
    hashes = np.zeros(len(numbers) + 1, dtype=np.uint64)
    for size in range(1, min(max(sizes, default=0), len(numbers)) + 1):
        hashes = hashes[:-1] * _FACTOR + word_values[size - 1 :]
        if size in sizes:
            starts = np.flatnonzero(num_zeros[size:] == num_zeros[:-size])
            yield _HashedNgrams(size, starts, hashes[starts])


class _IndexedNgrams(NamedTuple):
    """The indexed n-grams of one size, in ascending order of their hashes."""

    hashes: np.ndarray
    """Hash of each n-gram (uint64)."""
    starts: np.ndarray
    """Position of each n-gram's first word in the joined texts."""
    has_prefix: np.ndarray
    """For every value of a hash's highest bits whether an indexed hash starts with these bits. A lookup in this array
    avoids the binary search for most hashes that are not indexed."""


def _sorted_ngrams(hashes: np.ndarray, starts: np.ndarray) -> _IndexedNgrams:
    order = np.argsort(hashes, kind="stable")  # Stable, so that among equal n-grams that of the first text is first.
    has_prefix = np.zeros(1 << (len(hashes).bit_length() + 3), dtype=bool)
    has_prefix[hashes >> _prefix_shift(has_prefix)] = True
    return _IndexedNgrams(hashes[order], starts[order], has_prefix)


def _prefix_shift(has_prefix: np.ndarray) -> np.uint64:
    """Return by how many bits a hash must be shifted to the right to be an index into `has_prefix`."""
    # The length is 2**b, so its `bit_length` is b + 1. The shift keeps the highest b of 64 bits.
    return np.uint64(65 - len(has_prefix).bit_length())
