"""MinHash signatures of documents (Broder 1997) and the hashes of their bands.

A shingle is a run of `ngram` consecutive words. Two documents are near-duplicates if they share most of their shingles,
that is, if the Jaccard similarity J of their sets of shingles is high. A signature has K = bands * rows values. Each
value is the minimum of a random hash function over the document's shingles. The values at the same position of two
signatures are equal with the probability J. A band is a run of `rows` consecutive values. Two documents are candidates
if at least one band of their signatures is equal, which has the probability 1 - (1 - J^rows)^bands. `links.py` compares
the signatures of candidates.

In shapes, N is the number of documents and K the number of values of a signature.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from data.cleaning.duplicates import NearDuplicates

_BLOCK_SHINGLES = 1 << 16
"""Number of shingles that are hashed at once. They fit in the processor's cache. Blocks of 4,096 shingles would take
twice the time."""
_SCRIPTS_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""The scripts that put no spaces between words, by the first word of their characters' Unicode names."""


# Words and shingles.


class _CharacterTable(dict[int, int | str]):
    """Table for `str.translate` that prepares a text for splitting at white space.

    The table removes invisible characters and replaces punctuation by spaces. It puts a space before and after each
    character of a script without spaces between words (`_SCRIPTS_WITHOUT_SPACES`). The entry of a character is computed
    when the character first occurs.
    """

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Cf":  # format characters such as soft hyphens and joiners
            self[code] = ""
        elif category[0] in "PSZC":  # punctuation, symbols, separators, control characters
            self[code] = " "
        elif unicodedata.name(character, "").startswith(_SCRIPTS_WITHOUT_SPACES):
            self[code] = f" {character} "
        else:
            self[code] = code
        return self[code]


_CHARACTER_TABLE = _CharacterTable()


def split_words(text: str) -> list[str]:
    """Split a text into words as `NearDuplicates` defines them. A text without words, such as `!!!`, is one word."""
    normalized = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return normalized.translate(_CHARACTER_TABLE).split() or [normalized]


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    """Return a hash of the word with 64 bits."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _shingle_blocks(texts: Sequence[str], ngram: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (hashes of the shingles, position of each text's first shingle) for blocks of consecutive texts.

    A block has about `_BLOCK_SHINGLES` shingles.
    """
    word_hashes: list[np.ndarray] = []  # an array for each text
    num_words = 0
    for text in texts:
        words = split_words(text)
        text_hashes = np.zeros(max(len(words), ngram), np.uint64)  # zeros pad a text that is shorter than a shingle
        text_hashes[: len(words)] = np.fromiter(map(_word_hash, words), np.uint64, len(words))
        word_hashes.append(text_hashes)
        num_words += len(text_hashes)
        if num_words >= _BLOCK_SHINGLES:
            yield _hash_shingles(word_hashes, ngram)
            word_hashes, num_words = [], 0
    if word_hashes:
        yield _hash_shingles(word_hashes, ngram)


def _hash_shingles(word_hashes: list[np.ndarray], ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash the shingles of several texts, given the hashes of the words of each text.

    Returns the hashes of all shingles (uint64) and the position of each text's first shingle. A shingle's hash is a
    polynomial of its words' hashes, whose bits are mixed at the end. The hash has 64 bits because a short text has only
    a single shingle, whose hash alone distinguishes the text from other short texts.
    """
    joined = np.concatenate(word_hashes)
    ends = np.cumsum([len(text_hashes) for text_hashes in word_hashes])
    runs = np.zeros(len(joined) - ngram + 1, np.uint64)
    for offset in range(ngram):
        runs = runs * _FACTOR + joined[offset : offset + len(runs)]
    is_within_text = np.ones(len(joined), bool)
    is_within_text[(ends[:, None] - np.arange(1, ngram)).ravel()] = False  # these runs extend into the next text
    # A text of n words has n - ngram + 1 shingles, so every text before moves a start by ngram - 1 to the left.
    starts = np.concatenate([[0], ends[:-1]]) - (ngram - 1) * np.arange(len(word_hashes))
    return mix_bits(runs[is_within_text[: len(runs)]]), starts


_FACTOR = np.uint64(0x9E3779B97F4A7C15)


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
    for shingles, starts in _shingle_blocks(texts, settings.ngram):
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
