"""The order of samples: a seeded permutation computed index by index, without a table in memory.

A Feistel network is a bijection of the pairs (left, right) whatever its round function is. Over a domain at most four
times too large, walking on until the value falls inside ("cycle walking") makes it a bijection of exactly `size`.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

_ROUNDS = 6
_MASK = (1 << 64) - 1


class Permutation:
    """A pseudo-random bijection of range(size), a function of (size, key) alone."""

    def __init__(self, size: int, key: str) -> None:
        if size < 1:
            raise ValueError(f"size: {size} must be at least 1; there is nothing to order")
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]

    def __call__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside range({self.size})")
        value = self._encrypt(index)
        while value >= self.size:
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        half = (1 << self._half_bits) - 1
        left, right = value >> self._half_bits, value & half
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & half)
        return left << self._half_bits | right


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit moves every output bit."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def epoch_order(indices: Iterable[int], size: int, *, seed: int, key: str = "") -> np.ndarray:
    """int64 rows in range(size) for global sample indices 0, 1, 2, …: each epoch of `size` is a permutation of its own.

    A function of (size, seed, key, index) alone, so that any worker finds any sample without having seen another.
    """
    return np.array([_epoch(size, f"{key}:{seed}:{index // size}")(index % size) for index in indices], dtype=np.int64)


@lru_cache(maxsize=64)
def _epoch(size: int, key: str) -> Permutation:
    return Permutation(size, key)
