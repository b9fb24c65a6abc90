"""The shuffle of the training rows: a random permutation of each epoch.

An index counts the rows in the order in which they are trained on, over all epochs. The permutation computes the row at
any index directly, without computing the rows before it. So a rank can read any row, and a resumed run reads the same
rows as a run that was never interrupted.

The permutation is made with a Feistel network, which is a bijection of pairs (left, right) for any round function. A
pair is the upper and the lower half of the bits of a number, so the network permutes the numbers below a power of four.
This power is the lowest that is at least 4 and at least `size`, where `size` is the number of rows. If the network
returns a number that is not below `size`, the network is applied to this number again ("cycle walking"). The result is
a bijection of range(size).
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

_ROUNDS = 6  # of the Feistel network
_MASK_64 = (1 << 64) - 1


class Permutation:
    """A pseudo-random permutation of range(size) that depends only on `size` and the text `key`."""

    def __init__(self, size: int, key: str) -> None:
        if size < 1:
            raise ValueError(f"size: {size} must be at least 1, because an empty range cannot be permuted")
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
        self._round_keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]

    def __call__(self, index: int) -> int:
        """Return the value at a position of the permutation."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside range({self.size})")
        value = self._encrypt(index)
        while value >= self.size:
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        """Apply the Feistel network to a value."""
        half_mask = (1 << self._half_bits) - 1
        left, right = value >> self._half_bits, value & half_mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ key) & half_mask)
        return left << self._half_bits | right


def _mix(value: int) -> int:
    """Scramble 64 bits with the finalizer of splitmix64 (Steele et al. 2014).

    Every output bit depends on every input bit.
    """
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK_64
    return value ^ (value >> 31)


def epoch_order(indices: Iterable[int], size: int, *, seed: int, key: str = "") -> np.ndarray:
    """Return a number in range(size) for each index, as int64. The indices count 0, 1, 2, … over all epochs.

    Each epoch consists of `size` indices and has its own permutation. The result depends only on `size`, `seed`, `key`
    and the index, so every worker can compute it for any index. `key` names what is permuted, so that different data
    have different permutations.
    """
    permuted = [_permutation(size, f"{key}:{seed}:{index // size}")(index % size) for index in indices]
    return np.array(permuted, dtype=np.int64)


@lru_cache(maxsize=64)
def _permutation(size: int, key: str) -> Permutation:
    return Permutation(size, key)
