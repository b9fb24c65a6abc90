"""An exact index of the n-grams of words of some texts. The index tells which of these n-grams another text contains.

An n-gram is a run of words that holds the amount of `ngram` words (`data/cleaning/word_runs.py`). Every word of the
indexed texts has a number, and all other words have the number 0. The n-grams of a text are looked up by their hashes.
Because different n-grams can have the same hash, the numbers of the words are then compared as well.

An indexed text that is too short for an n-gram must occur as a whole. Its first words, with the amount of `min_words`
words, are its anchor. Only where a queried text has an anchor, the short texts with this anchor are looked up.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.cleaning.word_runs import WORD_AMOUNT, RunHasher, UnitsPerWord, run_ends, word_hash


class Match(NamedTuple):
    """An n-gram, or a complete short text, that is in a queried text and in an indexed text."""

    queried_text: int
    """Index of the queried text."""
    indexed_text: int
    """Index of the first indexed text that contains the n-gram."""


class NgramIndex:
    """An index of all n-grams of some texts. All texts are passed as lists of the words of `plain_words`."""

    def __init__(self, texts: Sequence[list[str]], *, ngram: int, min_words: int, units: UnitsPerWord) -> None:
        """Every text must hold at least the amount of `min_words` words."""
        self._ngram, self._min_words = ngram, min_words
        self._vocabulary: dict[str, int] = {}
        for text in texts:
            for word in text:
                self._vocabulary.setdefault(word, len(self._vocabulary) + 1)
        # Both by word number. No n-gram has a word with the number 0.
        self._hash_values = np.array([0, *map(word_hash, self._vocabulary)], dtype=np.uint64)
        self._amounts = np.array([WORD_AMOUNT, *map(units.amount_of, self._vocabulary)], dtype=np.int64)
        self._indexed = self._join(texts)
        self._ngrams = _sorted_runs(self._indexed.known_runs(ngram))
        self._short_lengths: dict[int, set[int]] = {}
        """The lengths of the short texts with an anchor, by the hash of the anchor."""
        self._short_starts: dict[int, list[int]] = {}
        """The positions at which short texts start in the joined texts, by the hash of the whole text."""
        self._anchors = _sorted_runs(self._index_short_texts(np.array([len(text) for text in texts], dtype=np.int64)))

    def _index_short_texts(self, lengths: np.ndarray) -> "_Runs":
        """Index the texts without an n-gram, given the length of every text. Returns the anchors of these texts."""
        is_short = np.ones(len(lengths), dtype=bool)
        is_short[self._indexed.texts[self._ngrams.runs.starts]] = False
        starts = (np.cumsum(lengths + 1) - lengths - 1)[is_short]
        ends = starts + lengths[is_short]
        runs = self._indexed.known_runs(self._min_words)
        anchors = _Runs(*(array[np.isin(runs.starts, starts)] for array in runs))
        assert len(anchors.starts) == len(starts), f"a text holds less than {self._min_words} words"
        hashes = self._indexed.hasher.hashes(starts, ends)
        for anchor, text_hash, start, end in zip(anchors.hashes, hashes, starts, ends, strict=True):
            self._short_lengths.setdefault(int(anchor), set()).add(int(end - start))
            self._short_starts.setdefault(int(text_hash), []).append(int(start))
        return anchors

    def matches(self, texts: Iterable[list[str]]) -> Iterator[Match]:
        """Yield a match for every n-gram of the queried texts that is in the index."""
        queried = self._join(texts)
        for start, end, low, high in self._ngrams.find(queried.known_runs(self._ngram)):
            yield from self._first_match(queried, start, end, self._ngrams.runs.starts[low:high].tolist())
        for start, anchor_end, low, _ in self._anchors.find(queried.known_runs(self._min_words)):
            for length in self._short_lengths[int(self._anchors.runs.hashes[low])]:
                end = start + length
                if anchor_end <= end < len(queried.numbers):
                    (text_hash,) = queried.hasher.hashes(np.array([start]), np.array([end]))
                    yield from self._first_match(queried, start, end, self._short_starts.get(int(text_hash), []))

    def _first_match(self, queried: "_JoinedTexts", start: int, end: int, candidates: Sequence[int]) -> Iterator[Match]:
        """Yield the match of a queried run with the first of the indexed runs that start at the candidates, if any.

        Candidates have the same hash. Unless different runs collide, the first candidate matches.
        """
        words = queried.numbers[start:end]
        for candidate in candidates:
            if np.array_equal(self._indexed.numbers[candidate : candidate + end - start], words):
                yield Match(int(queried.texts[start]), int(self._indexed.texts[candidate]))
                return

    def _join(self, texts: Iterable[list[str]]) -> "_JoinedTexts":
        numbers: list[int] = []
        lengths: list[int] = []
        for text in texts:
            numbers.extend(self._vocabulary.get(word, 0) for word in text)
            numbers.append(0)
            lengths.append(len(text) + 1)
        array = np.array(numbers, dtype=np.int64)
        text_indexes = np.repeat(np.arange(len(lengths)), lengths)
        return _JoinedTexts(array, text_indexes, self._amounts[array], RunHasher(self._hash_values[array]))


class _Runs(NamedTuple):
    """Runs of words in joined texts."""

    starts: np.ndarray
    """Position of each run's first word."""
    ends: np.ndarray
    """Position after each run's last word."""
    hashes: np.ndarray
    """Hash of each run (uint64)."""


class _JoinedTexts(NamedTuple):
    """Several texts, one after the other. A position is an index into the arrays."""

    numbers: np.ndarray
    """The number of each word, with a 0 after each text (int64)."""
    texts: np.ndarray
    """For each position the index of its text (int64)."""
    amounts: np.ndarray
    """The amount of each word (int64)."""
    hasher: RunHasher

    def known_runs(self, num_words: int) -> _Runs:
        """Return the runs that hold the amount of `num_words` words and do not contain the number 0."""
        ends = run_ends(self.amounts, num_words)
        num_zeros = np.concatenate(([0], np.cumsum(self.numbers == 0)))
        starts = np.flatnonzero(num_zeros[ends] == num_zeros[: len(ends)])
        return _Runs(starts, ends[starts], self.hasher.hashes(starts, ends[starts]))


class _SortedRuns(NamedTuple):
    """The indexed runs of one amount, in ascending order of their hashes."""

    runs: _Runs
    has_prefix: np.ndarray
    """For every value of a hash's highest bits whether an indexed hash starts with these bits. A lookup in this array
    avoids the binary search for most hashes that are not indexed."""

    def find(self, queried: _Runs) -> Iterator[tuple[int, int, int, int]]:
        """Yield (start, end, low, high) for each queried run whose hash is indexed, from position low to high - 1."""
        may_be_indexed = self.has_prefix[queried.hashes >> _prefix_shift(self.has_prefix)]
        starts, ends, hashes = (array[may_be_indexed] for array in queried)
        low, high = (np.searchsorted(self.runs.hashes, hashes, side=side) for side in ("left", "right"))
        found = low < high
        yield from zip(*(array[found].tolist() for array in (starts, ends, low, high)), strict=True)


def _sorted_runs(runs: _Runs) -> _SortedRuns:
    # Stable, so that among equal n-grams that of the first text is first.
    order = np.argsort(runs.hashes, kind="stable")
    has_prefix = np.zeros(1 << (len(order).bit_length() + 3), dtype=bool)
    has_prefix[runs.hashes >> _prefix_shift(has_prefix)] = True
    return _SortedRuns(_Runs(*(array[order] for array in runs)), has_prefix)


def _prefix_shift(has_prefix: np.ndarray) -> np.uint64:
    """Return by how many bits a hash must be shifted to the right to be an index into `has_prefix`."""
    # The length is 2**b, so its `bit_length` is b + 1. The shift keeps the highest b of 64 bits.
    return np.uint64(65 - len(has_prefix).bit_length())
