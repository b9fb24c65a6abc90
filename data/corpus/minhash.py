"""MinHash signatures (Broder 1997) with banding, which find documents that share most of their text.

Two documents are near-duplicates when they share most of their shingles, that is runs of `ngram` words. A signature
holds the least value of K = bands * rows random orderings over a document's shingles; two documents agree in each
value with the probability of their Jaccard similarity J. Documents that agree in all rows of a band are candidates
(probability 1 - (1 - J^rows)^bands); `links.py` compares them.

N documents, K values of a signature.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from data.cleaning.duplicates import NearDuplicates

_BLOCK_SHINGLES = 1 << 16  # as much as the processor's cache takes; half the time of blocks of 4,096
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


# Words and shingles.


class _CharacterTable(dict[int, int | str]):
    """What replaces each character before a text is split at white space; filled when a character first occurs."""

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


_CHARACTER_TABLE = _CharacterTable()


def split_words(text: str) -> list[str]:
    """The words of a text, as `NearDuplicates` defines them; a text without words (`!!!`) is one word."""
    normal = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return normal.translate(_CHARACTER_TABLE).split() or [normal]


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _shingle_blocks(texts: Sequence[str], ngram: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(64-bit hashes, first position of each text) of the shingles of consecutive texts, in blocks of about 65,536."""
    hashes: list[np.ndarray] = []
    size = 0
    for text in texts:
        text_words = split_words(text)
        hashed = np.zeros(max(len(text_words), ngram), np.uint64)  # zeros fill up a text shorter than a shingle
        hashed[: len(text_words)] = np.fromiter(map(_word_hash, text_words), np.uint64, len(text_words))
        hashes.append(hashed)
        size += len(hashed)
        if size >= _BLOCK_SHINGLES:
            yield _hash_shingles(hashes, ngram)
            hashes, size = [], 0
    if hashes:
        yield _hash_shingles(hashes, ngram)


def _hash_shingles(hashes: list[np.ndarray], ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Every run of `ngram` words inside one text as a mixed polynomial of its words' hashes, uint64.

    A short text is a single shingle, so these bits alone distinguish it from other short texts.
    """
    joined = np.concatenate(hashes)
    ends = np.cumsum([len(text_hashes) for text_hashes in hashes])
    runs = np.zeros(len(joined) - ngram + 1, np.uint64)
    for offset in range(ngram):
        runs = runs * _FACTOR + joined[offset : offset + len(runs)]
    inside = np.ones(len(joined), bool)
    inside[(ends[:, None] - np.arange(1, ngram)).ravel()] = False  # these runs reach into the next text
    starts = np.concatenate([[0], ends[:-1]]) - (ngram - 1) * np.arange(len(hashes))
    return mix_bits(runs[inside[: len(runs)]]), starts


_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def mix_bits(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 under which every bit depends on all: the finalizer of MurmurHash3 (Appleby)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


# Signatures and bands.


@lru_cache(maxsize=8)
def _orderings(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers and offsets, uint64 [number] each, the same everywhere and always."""
    bits = np.frombuffer(hashlib.shake_256(b"raymill minhash").digest(16 * number), "<u8").astype(np.uint64)
    return bits[::2] | np.uint64(1), bits[1::2]


def minhash_signatures(texts: Sequence[str], rule: NearDuplicates) -> np.ndarray:
    """MinHash signatures, uint32 [N, bands * rows].

    An ordering is h -> a h + b mod 2^64 with an odd a: a linear permutation (Broder et al. 2000) of hashes whose bits
    are mixed already. Only the upper 32 bits of the least value are kept; they decide the order almost alone.
    """
    multipliers, offsets = _orderings(rule.bands * rule.rows)
    signature = np.empty((len(texts), rule.bands * rule.rows), np.uint32)
    begin = 0
    for shingles, starts in _shingle_blocks(texts, rule.ngram):
        values = np.empty_like(shingles)
        rows = signature[begin : begin + len(starts)]
        for column, (multiplier, offset) in enumerate(zip(multipliers, offsets, strict=True)):
            np.multiply(shingles, multiplier, out=values)
            np.add(values, offset, out=values)
            rows[:, column] = np.minimum.reduceat(values, starts) >> np.uint64(32)
        begin += len(starts)
    return signature


def band_hashes(signatures: np.ndarray, rule: NearDuplicates) -> np.ndarray:
    """One number for each band of each signature, uint64 [N, bands]; equal where a band and all its rows are."""
    values = signatures.reshape(len(signatures), rule.bands, rule.rows)
    return _hash_last_axis(values, np.arange(1, rule.bands + 1, dtype=np.uint64))


def signature_digests(signatures: np.ndarray) -> np.ndarray:
    """One number for each whole signature, uint64 [N]."""
    return _hash_last_axis(signatures, np.uint64(0))


def _hash_last_axis(values: np.ndarray, seed: np.ndarray | np.uint64) -> np.ndarray:
    """A hash of the last axis, uint64."""
    folded = mix_bits(np.zeros(values.shape[:-1], np.uint64) + seed * _FACTOR)
    for position in range(values.shape[-1]):
        folded = mix_bits(folded * _FACTOR + values[..., position])
    return folded
