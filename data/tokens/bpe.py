"""Byte-pair encoding (Sennrich et al. 2016, algorithm 1) on counted words. `bpe` and `wordpiece` tokenizers use it.

The result is the same as that of `tokenizers.trainers.BpeTrainer` on the same words, because the rules are the same:

- Ids: special tokens come first, then the alphabet by code point, then new tokens in the order of their merges.
- The most frequent pair is merged next. Of equally frequent pairs, the pair with the lowest ids is merged next.
- Within a word, a pair is merged from left to right.

A symbol is a token id at a position of a word. The symbols of all words are in one array. Each symbol has links to the
symbols before and after it. For each pair, the positions in this array are stored, not the words. So the time of a
merge is proportional to the number of changed symbols, and one word of a million letters is no slower than many short
words.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_OUTSIDE = -1  # symbol before the beginning and after the end of every word
_MERGED = -2  # symbol that was merged into the symbol before it
_LOW_32_BITS = (1 << 32) - 1


class Subwords(NamedTuple):
    """The vocabulary that training returns."""

    tokens: list[str]
    """The tokens in the order of their ids."""
    merges: list[tuple[str, str]]
    """The merges in the order in which encoding applies them."""


def train_bpe(
    words: Sequence[str],
    counts: Sequence[int] | np.ndarray,
    *,
    size: int,
    special_tokens: Sequence[str] = (),
    alphabet: Iterable[str] = (),
    prefix: str = "",
) -> Subwords:
    """Train on distinct words and their counts until there are `size` tokens, or until every word is one token.

    If the special tokens and the characters need more than `size` tokens, all of these tokens are returned, and nothing
    is merged.

    Every character of `alphabet` gets a token, even if no word contains it. With a `prefix` (## for WordPiece),
    characters inside a word get tokens that begin with the prefix. These follow the alphabet, by code point.
    """
    tokens, symbols = _initial_tokens(words, special_tokens, alphabet, prefix)
    linked = _LinkedSymbols(
        symbols, np.fromiter(map(len, words), np.int64, len(words)), np.asarray(counts, dtype=np.int64)
    )
    queue = _PairQueue(linked.pairs())
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    while len(tokens) < size and (pair := queue.pop()) is not None:
        left, right, positions = pair
        merges.append((tokens[left], tokens[right]))
        token = tokens[left] + tokens[right].removeprefix(prefix)
        new_id = ids.setdefault(token, len(tokens))  # The token exists already if a special token has the same text.
        if new_id == len(tokens):
            tokens.append(token)
        queue.update(*linked.merge(left, right, new_id, positions))
    return Subwords(tokens, merges)


def _initial_tokens(
    words: Sequence[str], special_tokens: Sequence[str], alphabet: Iterable[str], prefix: str
) -> tuple[list[str], np.ndarray]:
    """Return the tokens before any merge, and the symbols of all words one after another, as int32."""
    codes = np.frombuffer("".join(words).encode("utf-32-le"), dtype="<u4").astype(np.int64)
    characters = np.unique(np.concatenate([codes, np.array([ord(character) for character in alphabet], np.int64)]))
    tokens = list(dict.fromkeys(special_tokens))
    ids = {token: token_id for token_id, token in enumerate(tokens)}

    def add_tokens(new_tokens: Iterable[str]) -> np.ndarray:
        """Add the tokens that do not exist yet, and return the ids of all of them."""
        for token in (new_tokens := list(new_tokens)):
            if ids.setdefault(token, len(tokens)) == len(tokens):
                tokens.append(token)
        return np.array([ids[token] for token in new_tokens], dtype=np.int32)

    character_ids = add_tokens(map(chr, characters.tolist()))
    symbols = character_ids[np.searchsorted(characters, codes)]
    if not prefix:
        return tokens, symbols
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    is_inside = np.ones(len(codes), dtype=np.bool_)
    is_inside[(np.cumsum(lengths) - lengths)[lengths > 0]] = False
    inside_codes = np.unique(codes[is_inside])
    inside_ids = add_tokens(prefix + chr(code) for code in inside_codes.tolist())
    symbols[is_inside] = inside_ids[np.searchsorted(inside_codes, codes[is_inside])]
    return tokens, symbols


class _Pairs(NamedTuple):
    """Occurrences of pairs of neighboring symbols. All arrays have one element for each occurrence."""

    keys: np.ndarray
    """Identity of the pair: left token id << 32 | right token id."""
    counts: np.ndarray
    """Count of the word in which the pair occurs."""
    positions: np.ndarray
    """Position of the left symbol in `_LinkedSymbols.symbols`. Pairs that a merge removes have the position of the
    merge instead, which is not used."""


class _LinkedSymbols:
    """The symbols of all words as a linked list in arrays.

    One more position, after all symbols, stands for the outside of every word (`end`). The first symbol of each word is
    linked to this position as the one before it, and the last symbol of each word as the one after it.
    """

    def __init__(self, symbols: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> None:
        """Link the symbols of the words, given the length and the count of each word."""
        end = len(symbols)
        dtype = np.int32 if end < 2**31 - 1 else np.int64
        self.end = end
        """The position outside of every word."""
        self.symbols = np.append(symbols, np.int32(_OUTSIDE))
        """Token id at each position."""
        self.word_indices = np.repeat(np.arange(len(lengths), dtype=dtype), lengths)
        """Index of the word at each position."""
        self.counts = counts
        """Count of each word."""
        self.after = np.arange(1, end + 2, dtype=dtype)
        """For each position, the position of the next symbol."""
        self.before = np.arange(-1, end, dtype=dtype)
        """For each position, the position of the previous symbol."""
        stops = np.cumsum(lengths)[lengths > 0]
        self.after[stops - 1] = end
        self.before[stops - lengths[lengths > 0]] = end

    def pairs(self) -> _Pairs:
        """Return all pairs of neighboring symbols, in the order of their positions."""
        positions = np.flatnonzero(self.after[:-1] != self.end).astype(self.after.dtype)
        keys = _keys(self.symbols[positions], self.symbols[self.after[positions]])
        return _Pairs(keys, self.counts[self.word_indices[positions]], positions)

    def merge(self, left: int, right: int, new_id: int, positions: np.ndarray) -> tuple[_Pairs, _Pairs]:
        """Replace the pair (left, right) by `new_id` at those of the positions where the pair still is.

        This removes the pairs of `left` and `right` with the symbols beside them, and adds pairs with `new_id`. Returns
        the removed pairs and the added pairs.
        """
        symbols, after, before = self.symbols, self.after, self.before
        positions = positions[symbols[positions] == left]
        positions = positions[symbols[after[positions]] == right]
        if left == right:
            positions = self._without_overlaps(positions)
        seconds = after[positions]
        next_positions, previous_positions = after[seconds], before[positions]
        counts = self.counts[self.word_indices[positions]]
        next_before_merge = symbols[next_positions]
        symbols[positions], symbols[seconds] = new_id, _MERGED
        after[positions], before[next_positions] = next_positions, positions
        next_after_merge = symbols[next_positions]
        previous = symbols[previous_positions]
        # Negative symbols are outside of the word, or were merged just now. In the second case, the merge on the left
        # reports the pair between both merges, so the merge on the right must not report it again.
        has_next, has_previous = next_before_merge >= 0, previous >= 0
        removed = _concatenate(
            _Pairs(_keys(right, next_before_merge[has_next]), counts[has_next], positions[has_next]),
            _Pairs(_keys(previous[has_previous], left), counts[has_previous], positions[has_previous]),
        )
        added = _concatenate(
            _Pairs(_keys(new_id, next_after_merge[has_next]), counts[has_next], positions[has_next]),
            _Pairs(_keys(previous[has_previous], new_id), counts[has_previous], previous_positions[has_previous]),
        )
        return removed, added

    def _without_overlaps(self, positions: np.ndarray) -> np.ndarray:
        """Return the positions at which a pair of two equal symbols is merged.

        Overlapping pairs are left out: of the three pairs in "a a a a", the first and the third are merged.
        """
        positions = np.sort(positions)
        begins_run = np.ones(len(positions), dtype=np.bool_)
        begins_run[1:] = self.after[positions[:-1]] != positions[1:]
        indices = np.arange(len(positions))
        return positions[(indices - np.maximum.accumulate(indices * begins_run)) % 2 == 0]


class _PairQueue:
    """A priority queue of the distinct pairs: highest count first, and of equal counts the lowest key first.

    When the count of a pair decreases, its entry in the heap is not changed. The entry is corrected when it comes to
    the top of the heap.
    """

    def __init__(self, pairs: _Pairs) -> None:
        """Create a queue of these pairs."""
        self.heap: list[tuple[int, int]] = []  # (-count, key)
        self.counts: dict[int, int] = {}  # by key
        self.positions: dict[int, np.ndarray] = {}  # by key
        self.update(_Pairs(*(column[:0] for column in pairs)), pairs)

    def pop(self) -> tuple[int, int, np.ndarray] | None:
        """Remove the most frequent pair and return its left id, right id and positions. Returns None without pairs.

        The pair may have been removed from some of the positions by an earlier merge.
        """
        while self.heap:
            negative_count, key = self.heap[0]
            count = self.counts.get(key, 0)
            if 0 < count < -negative_count:
                heapq.heapreplace(self.heap, (-count, key))
                continue
            heapq.heappop(self.heap)
            if count > 0:
                del self.counts[key]
                return key >> 32, key & _LOW_32_BITS, self.positions.pop(key)
        return None

    def update(self, removed: _Pairs, added: _Pairs) -> None:
        """Subtract the counts of removed pairs, add the counts of added pairs, and queue the added pairs."""
        counts = self.counts
        for key, count, _ in _distinct_pairs(removed):
            if key in counts:  # The pair that is being merged was removed from `counts` before.
                counts[key] -= count
        for key, count, positions in _distinct_pairs(added):
            if key in counts:
                positions = np.concatenate([self.positions[key], positions])
            counts[key] = counts.get(key, 0) + count
            self.positions[key] = positions
            heapq.heappush(self.heap, (-counts[key], key))


def _keys(left: np.ndarray | int, right: np.ndarray | int) -> np.ndarray:
    """Return the keys of pairs, given the token ids of their left and right symbols (`_Pairs.keys`)."""
    return (np.asarray(left, dtype=np.int64) << 32) | np.asarray(right, dtype=np.int64)


def _concatenate(*pairs: _Pairs) -> _Pairs:
    return _Pairs(*(np.concatenate(column) for column in zip(*pairs, strict=True)))


def _distinct_pairs(pairs: _Pairs) -> Iterable[tuple[int, int, np.ndarray]]:
    """Yield (key, total count, positions) of each distinct pair."""
    if not len(pairs.keys):
        return
    order = np.argsort(pairs.keys, kind="stable")
    keys, positions = pairs.keys[order], pairs.positions[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    totals = np.add.reduceat(pairs.counts[order], starts)
    stops = [*starts[1:].tolist(), len(keys)]
    for key, total, start, stop in zip(keys[starts].tolist(), totals.tolist(), starts.tolist(), stops, strict=True):
        yield key, total, positions[start:stop]
