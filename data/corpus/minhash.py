"""MinHash signatures of documents (Broder 1997) and the hashes of their bands.

A shingle is a run of consecutive words with the amount of `ngram` words (`data/cleaning/word_runs.py`). Two documents
are near-duplicates if they share most of their shingles, that is, if the Jaccard similarity J of their sets of shingles
is high. A signature has K = bands * rows values. Each value is the minimum of a random hash function over the
document's shingles. The values at the same position of two signatures are equal with the probability J. A band is a run
of `rows` consecutive values. Two documents are candidates if at least one band of their signatures is equal, which has
the probability 1 - (1 - J^rows)^bands. `links.py` compares the signatures of candidates.

In shapes, N is the number of documents and K the number of values of a signature.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data.cleaning.duplicates import NearDuplicates
from data.cleaning.word_runs import WORD_AMOUNT, RunHasher, UnitsPerWord, run_ends, word_hash
from data.words import StringCache, may_have_units, plain_words

_BLOCK_SHINGLES = 1 << 16
"""Number of shingles that are hashed at once. They fit in the processor's cache. Blocks of 4,096 shingles would take
twice the time."""


# Words and shingles.


def shingle_words(text: str) -> list[str]:
    """Return the words of a text (`plain_words`). A text without words, such as `!!!`, is one word."""
    return plain_words(text) or [unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())]


_word_hash = lru_cache(maxsize=1 << 17)(word_hash)


@lru_cache(maxsize=2)
def _amounts_by_word(units: UnitsPerWord) -> StringCache[int]:
    return StringCache(units.amount_of)


class _WordArrays(NamedTuple):
    """The words of a text. If there are fewer than `ngram`, words with the hash 0 are added."""

    hashes: np.ndarray
    """Hash of each word (uint64)."""
    amounts: np.ndarray
    """Amount of each word (int64)."""
    is_short: bool
    """Whether the words hold less than the amount of `ngram` words, so that all of them are a single shingle."""


def _word_arrays(text: str, settings: NearDuplicates) -> _WordArrays:
    words = shingle_words(text)
    size = max(len(words), settings.ngram)
    hashes = np.zeros(size, np.uint64)
    hashes[: len(words)] = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    amounts = np.full(size, WORD_AMOUNT, np.int64)
    is_short = len(words) < settings.ngram
    if may_have_units(text):
        amounts_by_word = _amounts_by_word(settings.units_per_word)
        amounts[: len(words)] = np.fromiter(map(amounts_by_word.__getitem__, words), np.int64, len(words))
        is_short = int(amounts[: len(words)].sum()) < settings.ngram * WORD_AMOUNT
    return _WordArrays(hashes, amounts, is_short)


def _shingle_blocks(texts: Sequence[str], settings: NearDuplicates) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (hashes of the shingles, position of each text's first shingle) for blocks of consecutive texts.

    A block has about `_BLOCK_SHINGLES` shingles.
    """
    block: list[_WordArrays] = []
    num_words = 0
    for text in texts:
        block.append(_word_arrays(text, settings))
        num_words += len(block[-1].hashes)
        if num_words >= _BLOCK_SHINGLES:
            yield _hash_shingles(block, settings.ngram)
            block, num_words = [], 0
    if block:
        yield _hash_shingles(block, settings.ngram)


def _hash_shingles(texts: list[_WordArrays], ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all shingles of several texts (uint64) and the position of each text's first shingle.

    A shingle's hash is a polynomial of its words' hashes, whose bits are mixed at the end. The hash has 64 bits because
    a short text has only a single shingle, whose hash alone distinguishes the text from other short texts.
    """
    hashes = np.concatenate([text.hashes for text in texts])
    lengths = np.array([len(text.hashes) for text in texts])
    is_short = np.array([text.is_short for text in texts])
    text_ends = np.cumsum(lengths)
    text_starts = text_ends - lengths
    ends = run_ends(np.concatenate([text.amounts for text in texts]), ngram)
    is_shingle = np.zeros(len(hashes), bool)
    is_shingle[: len(ends)] = ends <= np.repeat(text_ends, lengths)[: len(ends)]  # others extend into the next text
    is_shingle &= ~np.repeat(is_short, lengths)
    is_shingle[text_starts[is_short]] = True
    all_ends = np.zeros(len(hashes), np.int64)
    all_ends[: len(ends)] = ends
    all_ends[text_starts[is_short]] = text_ends[is_short]
    starts = np.flatnonzero(is_shingle)
    first_shingles = np.searchsorted(starts, text_starts)
    return mix_bits(RunHasher(hashes).hashes(starts, all_ends[starts])), first_shingles


_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""A number that differs from band to band is multiplied by this arbitrary odd constant."""


def mix_bits(values: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 values, so that every bit of a result depends on all bits of the value.

    This bijection is the finalizer of MurmurHash3 (Appleby).
    """
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


# Signatures and bands.


@lru_cache(maxsize=8)
def _hash_functions(num_functions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the multipliers and the offsets of the hash functions, uint64 [num_functions] each.

    The functions must never change, because stored signatures are compared with later ones.
    """
    bits = np.frombuffer(hashlib.shake_256(b"raymill minhash").digest(16 * num_functions), "<u8").astype(np.uint64)
    return bits[::2] | np.uint64(1), bits[1::2]


def minhash_signatures(texts: Sequence[str], settings: NearDuplicates) -> np.ndarray:
    """Return the MinHash signatures of texts, uint32 [N, K].

    A hash function is h -> a h + b mod 2^64 with an odd a, a linear permutation (Broder et al. 2000). It is applied to
    the hashes of shingles, whose bits are already mixed. Only the upper 32 bits of the minimum are stored. Two
    different minima almost never have equal upper bits.
    """
    multipliers, offsets = _hash_functions(settings.bands * settings.rows)
    signatures = np.empty((len(texts), settings.bands * settings.rows), np.uint32)
    begin = 0  # position of the block's first text
    for shingles, starts in _shingle_blocks(texts, settings):
        values = np.empty_like(shingles)
        block_signatures = signatures[begin : begin + len(starts)]
        for column, (multiplier, offset) in enumerate(zip(multipliers, offsets, strict=True)):
            np.multiply(shingles, multiplier, out=values)
            np.add(values, offset, out=values)
            block_signatures[:, column] = np.minimum.reduceat(values, starts) >> np.uint64(32)
        begin += len(starts)
    return signatures


def band_hashes(signatures: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """Return a hash of each band of each signature, uint64 [N, bands].

    The hash also depends on the position of the band in the signature, so equal values in two different bands have
    different hashes.
    """
    values = signatures.reshape(len(signatures), settings.bands, settings.rows)
    return _hash_last_axis(values, np.arange(1, settings.bands + 1, dtype=np.uint64))


def signature_digests(signatures: np.ndarray) -> np.ndarray:
    """Return a hash of each signature, uint64 [N]."""
    return _hash_last_axis(signatures, np.uint64(0))


def _hash_last_axis(values: np.ndarray, seed: np.ndarray | np.uint64) -> np.ndarray:
    """Hash the values along the last axis to uint64. Different seeds give different hashes."""
    hashes = mix_bits(np.zeros(values.shape[:-1], np.uint64) + seed * _FACTOR)
    for position in range(values.shape[-1]):
        hashes = mix_bits(hashes * _FACTOR + values[..., position])
    return hashes
