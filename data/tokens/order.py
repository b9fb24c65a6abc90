"""The order of samples: a seeded permutation and a mixture of sources, both computed index by index.

A Feistel network is a bijection of the pairs (left, right) whatever its round function is. Over a domain at most four
times too large, walking on until the value falls inside ("cycle walking") makes it a bijection of exactly `size`.

A mixture assigns each sample to a source. Weights are shares of the tokens, so a source's share of the samples is in
proportion to its weight over the mean length of its samples. In every prefix of n samples a source of share p has
floor(p n) or ceil(p n): its k-th sample (from 0) may come from floor(k / p) on and must come before
ceil((k + 1) / p). The shares themselves, spread evenly over those spans, are a fractional solution, so a whole one
exists, and earliest deadline first finds it, as for any unit jobs with release times and deadlines (Steiner and
Yeomans 1993, Level schedules for mixed-model, just-in-time processes).
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

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
    """The finalizer of splitmix64 (Steele et al. 2014): every output bit depends on every input bit."""
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


PERIOD = 10_000
"""The most samples after which a mixture repeats itself: shares are rounded to ten-thousandths unless they are simpler
fractions."""


class SourceRow(NamedTuple):
    """A sample of one source."""

    source: str
    number: int
    """How many samples of the source came before it."""


class Mixture:
    """The source of each sample by weight, a function of the index. Within one of the source's share at every prefix.

    Weights need not sum to one; 0 leaves a source out. Shares that are no fractions with a common denominator of at
    most `PERIOD` are rounded to multiples of 1 / PERIOD.
    """

    def __init__(self, weights: Mapping[str, float], *, targets_per_row: Mapping[str, Fraction] | None = None) -> None:
        """`targets_per_row` is the mean number of targets in a sample of each source with a weight; equal for all
        unless given. Raises ValueError for weights that make no mixture."""
        check_weights(weights)
        exact = {name: _digits(weight) for name, weight in weights.items() if weight}
        if targets_per_row is not None:
            exact = {name: weight / targets_per_row[name] for name, weight in exact.items()}
            _check_rows(weights, exact)
        self.sources = tuple(exact)
        self.shares = _shares(list(exact.values()))
        """Samples of each source in one period."""
        self._schedule = _schedule(self.shares)
        self._before = np.zeros(len(self._schedule), dtype=np.int64)
        for source, share in enumerate(self.shares):
            self._before[self._schedule == source] = np.arange(share)

    def source_row(self, index: int) -> SourceRow:
        """The source of the sample at a global index, and its number among that source's samples."""
        periods, position = divmod(index, len(self._schedule))
        source = int(self._schedule[position])
        return SourceRow(self.sources[source], periods * self.shares[source] + int(self._before[position]))


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ValueError for weights that make no mixture."""
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"mixture.{name}: {weight} must be a number of at least 0; 0 leaves the source out")
    exact = {name: _digits(weight) for name, weight in weights.items()}
    total = sum(exact.values())
    if not total:
        raise ValueError("mixture: no source has a weight above 0; give one, or leave the mixture out")
    for name, weight in exact.items():
        if 0 < weight < total / PERIOD:
            raise ValueError(
                f"mixture.{name}: {weights[name]} is less than a {PERIOD:,}th of all weights together; "
                "raise it, or set it to 0 to leave the source out"
            )


def _check_rows(weights: Mapping[str, float], rows: Mapping[str, Fraction]) -> None:
    """Raise ValueError for a source whose share of the rows would be rounded to none."""
    total = sum(rows.values())
    for name, weight in rows.items():
        if weight < total / PERIOD:
            raise ValueError(
                f"mixture.{name}: {weights[name]} of the tokens is less than a {PERIOD:,}th of all rows, for the rows "
                "of other sources are far shorter; raise it, or set it to 0 to leave the source out"
            )


def _shares(weights: list[Fraction]) -> list[int]:
    """Whole numbers in proportion to the weights: exact, or with a sum of `PERIOD` by the largest remainders."""
    parts = [weight / sum(weights) for weight in weights]
    period = math.lcm(*(part.denominator for part in parts))
    if period <= PERIOD:
        return [int(part * period) for part in parts]
    shares = [int(part * PERIOD) for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda source: shares[source] - parts[source] * PERIOD)
    for source in by_remainder[: PERIOD - sum(shares)]:
        shares[source] += 1
    return shares


def _digits(weight: float) -> Fraction:
    """The decimal number as it was written: 0.1 is a tenth."""
    return Fraction(str(weight))


def _schedule(shares: list[int]) -> np.ndarray:
    """The source of each sample of a period, int32 [sum of shares]: of those that may come, the most urgent."""
    period = sum(shares)
    num_scheduled = [0] * len(shares)
    schedule = np.zeros(period, dtype=np.int32)
    for position in range(period):
        deadlines = [
            (-(-(num_scheduled[source] + 1) * period // share), source)
            for source, share in enumerate(shares)
            if num_scheduled[source] * period // share <= position
        ]
        deadline, source = min(deadlines)
        assert position < deadline, f"source {source} is too late at {position}: no schedule of {shares}"
        schedule[position] = source
        num_scheduled[source] += 1
    return schedule
