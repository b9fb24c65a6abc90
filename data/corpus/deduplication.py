"""Duplicates: exact ones by a key of the text, near ones by MinHash (Broder 1997) with banding.

Two documents are near-duplicates when they share most of their shingles, that is runs of `ngram` words. A signature
holds the least value of K = bands * rows random orderings over a document's shingles; two documents agree in each
place with the probability of their Jaccard similarity J. Documents that agree in all rows of a band are candidates
(probability 1 - (1 - J^rows)^bands), and candidates whose signatures agree in a share of at least `threshold` are
linked. What hangs together by links is a cluster, and the document with its lowest id is kept.

This is the reference over one list in memory; `data/corpus/clusters.py` does the same over storage.

N documents, K values of a signature.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from data.cleaning.duplicates import NearDuplicates

WINDOW = 512
"""With how many of its followers a member of a band's group is compared, besides the group's first."""

_BLOCK_SHINGLES = 1 << 16  # as much as the processor's cache takes; half the time of blocks of 4,096
_BLOCK_PAIRS = 1 << 14
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


# Exact duplicates.


def text_key(text: str) -> bytes:
    """128 bits that two texts share when they are the same apart from case, white space and Unicode form."""
    normal = " ".join(unicodedata.normalize("NFC", text.casefold()).split())
    return hashlib.blake2b(normal.encode(), digest_size=16).digest()


def duplicates(keys: Sequence[bytes], ids: Sequence[str]) -> list[bool]:
    """True for every document but the one with the lowest id among those with an equal key.

    Documents that share the id too are ordered by position, so the caller's order has to be a function of content.
    """
    first: dict[bytes, int] = {}
    for position, key in enumerate(keys):
        if key not in first or ids[position] < ids[first[key]]:
            first[key] = position
    return [first[key] != position for position, key in enumerate(keys)]


# Words and shingles.


class _Spacing(dict[int, int | str]):
    """What becomes of each character before a text is cut at white space; filled as characters come up."""

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Cf":
            self[code] = ""
        elif category[0] in "PSZC":
            self[code] = " "
        elif unicodedata.name(character, "").startswith(_UNSPACED):
            self[code] = f" {character} "
        else:
            self[code] = code
        return self[code]


_SPACING = _Spacing()


def words(text: str) -> list[str]:
    """The words of a text, as `NearDuplicates` says; a text without any (`!!!`) is its only word."""
    normal = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return normal.translate(_SPACING).split() or [normal]


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _shingle_blocks(texts: Sequence[str], ngram: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shingles of consecutive texts, as (64-bit hashes, where each text's begin), blocks of some 65,536."""
    hashes: list[np.ndarray] = []
    size = 0
    for text in texts:
        own = words(text)
        hashed = np.zeros(max(len(own), ngram), np.uint64)  # zeros fill up a text that is shorter than a shingle
        hashed[: len(own)] = np.fromiter(map(_word_hash, own), np.uint64, len(own))
        hashes.append(hashed)
        size += len(hashed)
        if size >= _BLOCK_SHINGLES:
            yield _shingles(hashes, ngram)
            hashes, size = [], 0
    if hashes:
        yield _shingles(hashes, ngram)


def _shingles(hashes: list[np.ndarray], ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Every run of `ngram` words inside one text as a mixed polynomial of its words' hashes, uint64.

    A short text is a single shingle, so these bits alone tell it from the corpus's other short ones.
    """
    joined = np.concatenate(hashes)
    ends = np.cumsum([len(own) for own in hashes])
    runs = np.zeros(len(joined) - ngram + 1, np.uint64)
    for place in range(ngram):
        runs = runs * _FACTOR + joined[place : place + len(runs)]
    inside = np.ones(len(joined), bool)
    inside[(ends[:, None] - np.arange(1, ngram)).ravel()] = False  # these runs would go on into the next text
    starts = np.concatenate([[0], ends[:-1]]) - (ngram - 1) * np.arange(len(hashes))
    return mixed(runs[inside[: len(runs)]]), starts


_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 under which every bit depends on all: the finaliser of MurmurHash3 (Appleby)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


# Signatures and bands.


@lru_cache(maxsize=8)
def _orderings(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers and offsets, uint64 [number] each, the same everywhere and always."""
    bits = np.frombuffer(hashlib.shake_256(b"raymill minhash").digest(16 * number), "<u8").astype(np.uint64)
    return bits[::2] | np.uint64(1), bits[1::2]


def signatures(texts: Sequence[str], rule: NearDuplicates) -> np.ndarray:
    """MinHash signatures, uint32 [N, bands * rows].

    An ordering is h -> a h + b mod 2^64 with an odd a: a linear permutation (Broder et al. 2000) of hashes whose bits
    are mixed already. Of the least value the upper 32 bits are kept; they decide the order as good as alone.
    """
    multipliers, offsets = _orderings(rule.bands * rule.rows)
    made = np.empty((len(texts), rule.bands * rule.rows), np.uint32)
    begin = 0
    for shingles, starts in _shingle_blocks(texts, rule.ngram):
        values = np.empty_like(shingles)
        rows = made[begin : begin + len(starts)]
        for place, (multiplier, offset) in enumerate(zip(multipliers, offsets, strict=True)):
            np.multiply(shingles, multiplier, out=values)
            np.add(values, offset, out=values)
            rows[:, place] = np.minimum.reduceat(values, starts) >> np.uint64(32)
        begin += len(starts)
    return made


def band_hashes(signatures: np.ndarray, rule: NearDuplicates) -> np.ndarray:
    """One number for each band of each signature, uint64 [N, bands]; equal where a band and all its rows are."""
    values = signatures.reshape(len(signatures), rule.bands, rule.rows)
    return _folded(values, np.arange(1, rule.bands + 1, dtype=np.uint64))


def digests(signatures: np.ndarray) -> np.ndarray:
    """One number for each whole signature, uint64 [N]."""
    return _folded(signatures, np.uint64(0))


def _folded(values: np.ndarray, seed: np.ndarray | np.uint64) -> np.ndarray:
    """A hash of the last axis, uint64."""
    folded = mixed(np.zeros(values.shape[:-1], np.uint64) + seed * _FACTOR)
    for place in range(values.shape[-1]):
        folded = mixed(folded * _FACTOR + values[..., place])
    return folded


# Links and clusters.


def links(keys: np.ndarray, members: np.ndarray, signatures: np.ndarray, rule: NearDuplicates) -> np.ndarray:
    """Pairs of signatures, int64 [M, 2] of their rows, that share a key and agree in at least `threshold` of values.

    Entry e says that signature `members[e]` (int64 [E]) has key `keys[e]` (uint64 [E]); the signatures, uint32 [N, K],
    differ. Those with one key form a group, taken in the order of their digests, so that nothing depends on how the
    documents are spread. Each is compared with the group's first and with its next `WINDOW`, but for pairs that the
    first connects already: links enough to tell what hangs together, in a time linear in E.
    """
    order = np.lexsort((digests(signatures)[members], keys))
    members = members[order]
    starts, ends = _group_bounds(keys[order])
    position = np.arange(len(order))
    later = np.flatnonzero(position > starts)
    with_first = np.ones(len(order), bool)
    with_first[later] = _agree(signatures, members[starts[later]], members[later], rule)
    linked = later[with_first[later]]
    found = [np.stack([starts[linked], linked], axis=1)]
    followed = later
    for step in range(1, WINDOW + 1):
        followed = followed[followed + step < ends[followed]]
        left = followed[~(with_first[followed] & with_first[followed + step])]
        left = left[_agree(signatures, members[left], members[left + step], rule)]
        found.append(np.stack([left, left + step], axis=1))
    return members[np.concatenate(found)]


def _group_bounds(sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the run of equal keys begins and ends, for every position."""
    new = np.ones(len(sorted_keys), bool)
    new[1:] = sorted_keys[1:] != sorted_keys[:-1]
    begins = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    return begins[group], np.append(begins[1:], len(sorted_keys))[group]


def _agree(signatures: np.ndarray, left: np.ndarray, right: np.ndarray, rule: NearDuplicates) -> np.ndarray:
    """Whether each pair of rows is equal in at least `threshold` of the values."""
    made = np.empty(len(left), bool)
    for begin in range(0, len(left), _BLOCK_PAIRS):
        block = slice(begin, begin + _BLOCK_PAIRS)
        equal = (signatures[left[block]] == signatures[right[block]]).mean(axis=1)
        made[block] = equal >= rule.threshold
    return made


def components(number: int, pairs: np.ndarray) -> np.ndarray:
    """The lowest member of each node's connected component, int64 [number], for `pairs` int64 [M, 2] of nodes."""
    lowest = np.arange(number)
    while True:
        left, right = lowest[pairs[:, 0]], lowest[pairs[:, 1]]
        apart = left != right
        if not apart.any():
            return lowest
        left, right = left[apart], right[apart]
        np.minimum.at(lowest, np.maximum(left, right), np.minimum(left, right))
        while not np.array_equal(lowest, shorter := lowest[lowest]):
            lowest = shorter


def representatives(ids: Sequence[str], texts: Sequence[str], rule: NearDuplicates) -> list[int]:
    """The position of the document that is kept of each document's cluster; of equal ids the first one counts."""
    every = signatures(texts, rule)
    _, first, which = np.unique(digests(every), return_index=True, return_inverse=True)
    distinct = every[first]
    members = np.repeat(np.arange(len(distinct)), rule.bands)
    pairs = links(band_hashes(distinct, rule).ravel(), members, distinct, rule)
    cluster = components(len(distinct), pairs)[which]
    kept: dict[int, int] = {}
    for position in sorted(range(len(ids)), key=lambda position: (ids[position], position)):
        kept.setdefault(int(cluster[position]), position)
    return [kept[int(own)] for own in cluster]
