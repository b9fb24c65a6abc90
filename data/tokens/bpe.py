"""Byte-pair encoding (Sennrich et al. 2016, algorithm 1) on counted words: the merges behind `bpe` and `wordpiece`.

The result is that of `tokenizers.trainers.BpeTrainer` on the same words, token for token, because its rules are kept:

- Ids: special tokens, then the alphabet by code point, then new tokens in the order of their merges.
- The next pair is the most frequent one; of equals the one with the lowest ids.
- Within a word a pair is merged from left to right.

All words lie in one array of symbols with links to the neighbours, and a pair knows its places, not its words: a merge
costs what it changes, so that one word of a million letters is no slower than a million letters in words.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_GONE = -2  # a symbol that went into the one before it; -1 is what stands beyond a word's ends
_LOW = (1 << 32) - 1


class Subwords(NamedTuple):
    """What was learnt."""

    tokens: list[str]
    """By id."""
    merges: list[tuple[str, str]]
    """In the order in which they apply."""


def learn_subwords(
    words: Sequence[str],
    counts: Sequence[int] | np.ndarray,
    *,
    size: int,
    special_tokens: Sequence[str] = (),
    alphabet: Iterable[str] = (),
    prefix: str = "",
) -> Subwords:
    """Up to `size` tokens; fewer when every word has become one. Words are distinct and `counts` is theirs.

    `alphabet` has tokens whether or not it occurs. With a `prefix` (WordPiece's ##) a character that does not begin its
    word is another symbol than one that does; these follow the alphabet, by code point.
    """
    tokens, symbols = _spell(words, special_tokens, alphabet, prefix)
    chain = _Chain(symbols, np.fromiter(map(len, words), np.int64, len(words)), np.asarray(counts, dtype=np.int64))
    queue = _Queue(chain.windows())
    ids = {token: number for number, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    while len(tokens) < size and (found := queue.pop()) is not None:
        left, right, places = found
        merges.append((tokens[left], tokens[right]))
        token = tokens[left] + tokens[right].removeprefix(prefix)
        new = ids.setdefault(token, len(tokens))  # there is one already where a special token is spelt so
        if new == len(tokens):
            tokens.append(token)
        queue.update(*chain.merge(left, right, new, places))
    return Subwords(tokens, merges)


def _spell(
    words: Sequence[str], special_tokens: Sequence[str], alphabet: Iterable[str], prefix: str
) -> tuple[list[str], np.ndarray]:
    """The tokens before any merge, and all words' symbols one after another (int32)."""
    codes = np.frombuffer("".join(words).encode("utf-32-le"), dtype="<u4").astype(np.int64)
    characters = np.unique(np.concatenate([codes, np.array([ord(character) for character in alphabet], np.int64)]))
    tokens = list(dict.fromkeys(special_tokens))
    ids = {token: number for number, token in enumerate(tokens)}

    def number(spelt: Iterable[str]) -> np.ndarray:
        for token in (spelt := list(spelt)):
            if ids.setdefault(token, len(tokens)) == len(tokens):
                tokens.append(token)
        return np.array([ids[token] for token in spelt], dtype=np.int32)

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


class _Windows(NamedTuple):
    """Neighbouring symbols: left id << 32 | right id, how often their word occurs, and where the left one stands."""

    keys: np.ndarray
    counts: np.ndarray
    places: np.ndarray


class _Chain:
    """All words' symbols, linked. Place N, behind the last one, stands for both ends of every word."""

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

    def windows(self) -> _Windows:
        """All pairs, by place."""
        places = np.flatnonzero(self.after[:-1] != self.end).astype(self.after.dtype)
        keys = _keys(self.symbols[places], self.symbols[self.after[places]])
        return _Windows(keys, self.counts[self.words[places]], places)

    def merge(self, left: int, right: int, new: int, places: np.ndarray) -> tuple[_Windows, _Windows]:
        """Put `new` for the pairs that still stand at the places; the windows that went and those that came."""
        symbols, after, before = self.symbols, self.after, self.before
        places = places[symbols[places] == left]
        places = places[symbols[after[places]] == right]
        if left == right:
            places = self._apart(places)
        seconds = after[places]
        nexts, lasts = after[seconds], before[places]
        counts = self.counts[self.words[places]]
        followers = symbols[nexts]
        symbols[places], symbols[seconds] = new, _GONE
        after[places], before[nexts] = nexts, places
        now = symbols[nexts]
        preceders = symbols[lasts]
        has_next, has_last = followers >= 0, preceders >= 0  # one that is gone was merged too, and has told of it
        went = _joined(
            _Windows(_keys(right, followers[has_next]), counts[has_next], places[has_next]),
            _Windows(_keys(preceders[has_last], left), counts[has_last], places[has_last]),
        )
        came = _joined(
            _Windows(_keys(new, now[has_next]), counts[has_next], places[has_next]),
            _Windows(_keys(preceders[has_last], new), counts[has_last], lasts[has_last]),
        )
        return went, came

    def _apart(self, places: np.ndarray) -> np.ndarray:
        """Of a pair of equals, every other one in a run: a a a a holds two."""
        places = np.sort(places)
        begins = np.ones(len(places), dtype=np.bool_)
        begins[1:] = self.after[places[:-1]] != places[1:]
        numbers = np.arange(len(places))
        return places[(numbers - np.maximum.accumulate(numbers * begins)) % 2 == 0]


class _Queue:
    """Pairs by count. An entry's count may be too high by now, never too low; it is put right when its turn comes."""

    def __init__(self, windows: _Windows) -> None:
        self.heap: list[tuple[int, int]] = []  # (-count, key)
        self.counts: dict[int, int] = {}
        self.places: dict[int, np.ndarray] = {}
        self.update(_Windows(*(column[:0] for column in windows)), windows)

    def pop(self) -> tuple[int, int, np.ndarray] | None:
        """Left id, right id and the places where that pair may stand; None when no pair is left."""
        while self.heap:
            negative, key = self.heap[0]
            count = self.counts.get(key, 0)
            if 0 < count < -negative:
                heapq.heapreplace(self.heap, (-count, key))
                continue
            heapq.heappop(self.heap)
            if count > 0:
                del self.counts[key]
                return key >> 32, key & _LOW, self.places.pop(key)
        return None

    def update(self, went: _Windows, came: _Windows) -> None:
        """Count windows that went and that came, and queue the pairs of the latter."""
        counts = self.counts
        for key, count, _ in _grouped(went):
            if key in counts:  # it is not where the pair itself was merged
                counts[key] -= count
        for key, count, places in _grouped(came):
            if key in counts:
                places = np.concatenate([self.places[key], places])
            counts[key] = counts.get(key, 0) + count
            self.places[key] = places
            heapq.heappush(self.heap, (-counts[key], key))


def _keys(left: np.ndarray | int, right: np.ndarray | int) -> np.ndarray:
    return (np.asarray(left, dtype=np.int64) << 32) | np.asarray(right, dtype=np.int64)


def _joined(*parts: _Windows) -> _Windows:
    return _Windows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _grouped(windows: _Windows) -> Iterable[tuple[int, int, np.ndarray]]:
    """(key, count, places) of each pair."""
    if not len(windows.keys):
        return
    order = np.argsort(windows.keys, kind="stable")
    keys, places = windows.keys[order], windows.places[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    totals = np.add.reduceat(windows.counts[order], starts)
    stops = [*starts[1:].tolist(), len(keys)]
    for key, total, start, stop in zip(keys[starts].tolist(), totals.tolist(), starts.tolist(), stops, strict=True):
        yield key, total, places[start:stop]
