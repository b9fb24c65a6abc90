"""Byte-pair encoding (Sennrich et al. 2016, algorithm 1) on counted words: the merges behind `bpe` and `wordpiece`.

The result is that of `tokenizers.trainers.BpeTrainer` on the same words, token for token, because its rules are kept:

- Ids: special tokens, then the alphabet by code point, then new tokens in the order of their merges.
- The most frequent pair is merged next; of equally frequent ones that with the lowest ids.
- Within a word a pair is merged from left to right.

All words are in one array of symbols with links to the neighbors, and a pair keeps its positions, not its words: the
time of a merge is in proportion to what it changes, so one word of a million letters is no slower than many words.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_MERGED = -2  # a symbol that is merged into the one before it; -1 is beyond a word's ends
_LOW = (1 << 32) - 1


class Subwords(NamedTuple):
    """What was learned."""

    tokens: list[str]
    """By id."""
    merges: list[tuple[str, str]]
    """In the order in which they apply."""


def train_bpe(
    words: Sequence[str],
    counts: Sequence[int] | np.ndarray,
    *,
    size: int,
    special_tokens: Sequence[str] = (),
    alphabet: Iterable[str] = (),
    prefix: str = "",
) -> Subwords:
    """Up to `size` tokens; fewer when every word has become one token. Words are distinct, with their `counts`.

    Every character of `alphabet` has a token, whether it occurs or not. With a `prefix` (WordPiece's ##) a character
    inside of a word is another symbol than the same one at its beginning; these follow the alphabet, by code point.
    """
    tokens, symbols = _spell(words, special_tokens, alphabet, prefix)
    chain = _Chain(symbols, np.fromiter(map(len, words), np.int64, len(words)), np.asarray(counts, dtype=np.int64))
    queue = _Queue(chain.pairs())
    ids = {token: number for number, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    while len(tokens) < size and (pair := queue.pop()) is not None:
        left, right, positions = pair
        merges.append((tokens[left], tokens[right]))
        token = tokens[left] + tokens[right].removeprefix(prefix)
        new = ids.setdefault(token, len(tokens))  # a special token may be spelled like it
        if new == len(tokens):
            tokens.append(token)
        queue.update(*chain.merge(left, right, new, positions))
    return Subwords(tokens, merges)


def _spell(
    words: Sequence[str], special_tokens: Sequence[str], alphabet: Iterable[str], prefix: str
) -> tuple[list[str], np.ndarray]:
    """The tokens before any merge, and all words' symbols one after another (int32)."""
    codes = np.frombuffer("".join(words).encode("utf-32-le"), dtype="<u4").astype(np.int64)
    characters = np.unique(np.concatenate([codes, np.array([ord(character) for character in alphabet], np.int64)]))
    tokens = list(dict.fromkeys(special_tokens))
    ids = {token: number for number, token in enumerate(tokens)}

    def number(spelled: Iterable[str]) -> np.ndarray:
        for token in (spelled := list(spelled)):
            if ids.setdefault(token, len(tokens)) == len(tokens):
                tokens.append(token)
        return np.array([ids[token] for token in spelled], dtype=np.int32)

    plain = number(map(chr, characters.tolist()))
    symbols = plain[np.searchsorted(characters, codes)]
    if not prefix:
        return tokens, symbols
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    inner = np.ones(len(codes), dtype=np.bool_)
    inner[(np.cumsum(lengths) - lengths)[lengths > 0]] = False
    later = np.unique(codes[inner])
    symbols[inner] = number(prefix + chr(code) for code in later.tolist())[np.searchsorted(later, codes[inner])]
    return tokens, symbols


class _Pairs(NamedTuple):
    """Pairs of neighboring symbols."""

    keys: np.ndarray
    """Left id << 32 | right id."""
    counts: np.ndarray
    """How often the word occurs that the pair is in."""
    positions: np.ndarray
    """Of the left symbol."""


class _Chain:
    """All words' symbols, linked. Position N, after the last one, is both ends of every word."""

    def __init__(self, symbols: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> None:
        end = len(symbols)
        kind = np.int32 if end < 2**31 - 1 else np.int64
        self.end = end
        self.symbols = np.append(symbols, np.int32(-1))
        self.words = np.repeat(np.arange(len(lengths), dtype=kind), lengths)
        self.counts = counts
        self.after = np.arange(1, end + 2, dtype=kind)
        self.before = np.arange(-1, end, dtype=kind)
        stops = np.cumsum(lengths)[lengths > 0]
        self.after[stops - 1] = end
        self.before[stops - lengths[lengths > 0]] = end

    def pairs(self) -> _Pairs:
        """All pairs, by position."""
        positions = np.flatnonzero(self.after[:-1] != self.end).astype(self.after.dtype)
        keys = _keys(self.symbols[positions], self.symbols[self.after[positions]])
        return _Pairs(keys, self.counts[self.words[positions]], positions)

    def merge(self, left: int, right: int, new: int, positions: np.ndarray) -> tuple[_Pairs, _Pairs]:
        """Replace by `new` the pairs that are still at the positions; return the pairs that were removed and added."""
        symbols, after, before = self.symbols, self.after, self.before
        positions = positions[symbols[positions] == left]
        positions = positions[symbols[after[positions]] == right]
        if left == right:
            positions = self._apart(positions)
        seconds = after[positions]
        nexts, lasts = after[seconds], before[positions]
        counts = self.counts[self.words[positions]]
        followers = symbols[nexts]
        symbols[positions], symbols[seconds] = new, _MERGED
        after[positions], before[nexts] = nexts, positions
        now = symbols[nexts]
        preceders = symbols[lasts]
        has_next, has_last = followers >= 0, preceders >= 0  # a merged neighbor has reported this pair already
        removed = _joined(
            _Pairs(_keys(right, followers[has_next]), counts[has_next], positions[has_next]),
            _Pairs(_keys(preceders[has_last], left), counts[has_last], positions[has_last]),
        )
        added = _joined(
            _Pairs(_keys(new, now[has_next]), counts[has_next], positions[has_next]),
            _Pairs(_keys(preceders[has_last], new), counts[has_last], lasts[has_last]),
        )
        return removed, added

    def _apart(self, positions: np.ndarray) -> np.ndarray:
        """The positions of a pair of equal symbols without overlap: a a a a holds two."""
        positions = np.sort(positions)
        begins = np.ones(len(positions), dtype=np.bool_)
        begins[1:] = self.after[positions[:-1]] != positions[1:]
        numbers = np.arange(len(positions))
        return positions[(numbers - np.maximum.accumulate(numbers * begins)) % 2 == 0]


class _Queue:
    """Pairs by count. An entry with an outdated count, which is too high, is corrected before it is used."""

    def __init__(self, pairs: _Pairs) -> None:
        self.heap: list[tuple[int, int]] = []  # (-count, key)
        self.counts: dict[int, int] = {}
        self.positions: dict[int, np.ndarray] = {}
        self.update(_Pairs(*(column[:0] for column in pairs)), pairs)

    def pop(self) -> tuple[int, int, np.ndarray] | None:
        """Left id, right id and the possible positions of the most frequent pair; None without a pair."""
        while self.heap:
            negative, key = self.heap[0]
            count = self.counts.get(key, 0)
            if 0 < count < -negative:
                heapq.heapreplace(self.heap, (-count, key))
                continue
            heapq.heappop(self.heap)
            if count > 0:
                del self.counts[key]
                return key >> 32, key & _LOW, self.positions.pop(key)
        return None

    def update(self, removed: _Pairs, added: _Pairs) -> None:
        """Subtract the removed pairs, add the added ones and queue these."""
        counts = self.counts
        for key, count, _ in _grouped(removed):
            if key in counts:  # the merged pair itself is not
                counts[key] -= count
        for key, count, positions in _grouped(added):
            if key in counts:
                positions = np.concatenate([self.positions[key], positions])
            counts[key] = counts.get(key, 0) + count
            self.positions[key] = positions
            heapq.heappush(self.heap, (-counts[key], key))


def _keys(left: np.ndarray | int, right: np.ndarray | int) -> np.ndarray:
    return (np.asarray(left, dtype=np.int64) << 32) | np.asarray(right, dtype=np.int64)


def _joined(*parts: _Pairs) -> _Pairs:
    return _Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _grouped(pairs: _Pairs) -> Iterable[tuple[int, int, np.ndarray]]:
    """(key, count, positions) of each distinct pair."""
    if not len(pairs.keys):
        return
    order = np.argsort(pairs.keys, kind="stable")
    keys, positions = pairs.keys[order], pairs.positions[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    totals = np.add.reduceat(pairs.counts[order], starts)
    stops = [*starts[1:].tolist(), len(keys)]
    for key, total, start, stop in zip(keys[starts].tolist(), totals.tolist(), starts.tolist(), stops, strict=True):
        yield key, total, positions[start:stop]
