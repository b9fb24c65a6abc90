"""The mixture of sources in training: which source the row at each index comes from.

An index counts the rows in the order in which they are trained on, over all epochs. The mixture computes the source at
any index directly, without computing the rows before it.

The weights are shares of the tokens. So the share of the rows that a source gets is proportional to its weight divided
by the mean number of targets in its rows. Among the first n indices, a source with the share p of the rows has either
floor(p n) or ceil(p n) rows, for every n.

Such a schedule exists and is found as follows (Steiner and Yeomans 1993, Level schedules for mixed-model, just-in-time
processes). The k-th row of a source, counted from 0, must have an index of at least floor(k / p) and below
ceil((k + 1) / p). Each row is then a job of unit length with a release time and a deadline. Spreading each job evenly
over the time from k / p to (k + 1) / p, without rounding, is a fractional schedule that does one job in each unit of
time and meets all deadlines. So an integral schedule exists, and the rule "earliest deadline first" finds it.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

MAX_PERIOD = 10_000
"""The sequence of sources repeats after at most this many rows. Shares that are not fractions with a common denominator
of at most this number are rounded to multiples of 1 / MAX_PERIOD."""


class SourceRow(NamedTuple):
    """A row of one source."""

    source: str
    index_in_source: int
    """Number of rows of this source at smaller indices, over all epochs of the source."""


class Mixture:
    """Assigns a source to each index, such that every source gets its share of the rows.

    Among the first n indices, the number of rows of a source differs from its share of n by less than one, for every n.
    """

    def __init__(self, weights: Mapping[str, float], *, targets_per_row: Mapping[str, Fraction] | None = None) -> None:
        """Create a mixture from the weight of each source. A weight of 0 leaves a source out.

        Weights do not need to add up to 1. `targets_per_row` is the mean number of targets in the rows of each source
        with a weight above 0. Without it, the rows of all sources count as equally long.

        Raises ValueError if a weight is negative, not finite or too small, or if all weights are 0.
        """
        check_weights(weights)
        row_weights = {name: _decimal_fraction(weight) for name, weight in weights.items() if weight}
        if targets_per_row is not None:
            row_weights = {name: weight / targets_per_row[name] for name, weight in row_weights.items()}
            _check_row_weights(weights, row_weights)
        self.sources = tuple(row_weights)
        """Names of the sources with a weight above 0."""
        self.rows_per_period = _proportional_integers(list(row_weights.values()))
        """Number of rows of each source in one period. The sequence of sources repeats after each period."""
        self._schedule = _schedule(self.rows_per_period)
        """For each row of a period, the position of its source in `sources`."""
        self._index_in_period = np.zeros(len(self._schedule), dtype=np.int64)
        """For each row of a period, the number of earlier rows of the same source in the period."""
        for source, num_rows in enumerate(self.rows_per_period):
            self._index_in_period[self._schedule == source] = np.arange(num_rows)

    def source_row(self, index: int) -> SourceRow:
        """Return the source of the row at an index, and the index of the row among the rows of its source."""
        num_periods, position = divmod(index, len(self._schedule))
        source = int(self._schedule[position])  # position of the source in `self.sources`
        index_in_source = num_periods * self.rows_per_period[source] + int(self._index_in_period[position])
        return SourceRow(self.sources[source], index_in_source)


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises ValueError if a weight is negative, not finite or too small, or if all weights are 0.

    A weight above 0 is too small if it is less than 1 / MAX_PERIOD of the sum of all weights.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"mixture.{name}: {weight} must be a finite number of at least 0; 0 leaves the source out")
    exact_weights = {name: _decimal_fraction(weight) for name, weight in weights.items()}
    total = sum(exact_weights.values())
    if not total:
        raise ValueError("mixture: no source has a weight above 0; raise at least one weight, or remove `mixture`")
    for name, weight in exact_weights.items():
        if 0 < weight < total / MAX_PERIOD:
            raise ValueError(
                f"mixture.{name}: {weights[name]} is less than 1/{MAX_PERIOD:,} of the sum of all weights; "
                "raise it, or set it to 0 to leave the source out"
            )


def _check_row_weights(weights: Mapping[str, float], row_weights: Mapping[str, Fraction]) -> None:
    """Raises ValueError if the share of a source in the rows is so small that it could be rounded to 0."""
    total = sum(row_weights.values())
    for name, row_weight in row_weights.items():
        if row_weight < total / MAX_PERIOD:
            raise ValueError(
                f"mixture.{name}: a weight of {weights[name]} gives this source less than 1/{MAX_PERIOD:,} of all "
                "training rows, because its rows are much longer than those of the other sources; raise the weight, "
                "or set it to 0 to leave the source out"
            )


def _proportional_integers(weights: list[Fraction]) -> list[int]:
    """Return integers in proportion to the weights, with a sum of at most MAX_PERIOD.

    If the sum would have to be larger for an exact proportion, the sum is MAX_PERIOD and the largest remainders are
    rounded up.
    """
    shares = [weight / sum(weights) for weight in weights]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= MAX_PERIOD:
        return [int(share * period) for share in shares]
    integers = [int(share * MAX_PERIOD) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda source: integers[source] - shares[source] * MAX_PERIOD)
    for source in by_remainder[: MAX_PERIOD - sum(integers)]:
        integers[source] += 1
    return integers


def _decimal_fraction(weight: float) -> Fraction:
    """Return the exact decimal value of a number as the user wrote it: 0.1 becomes 1/10."""
    return Fraction(str(weight))


def _schedule(rows_per_period: list[int]) -> np.ndarray:
    """Return the source of each row of a period, as its position in `rows_per_period`: int32 [sum of rows_per_period].

    Each position gets the source with the earliest deadline among the sources whose release time has come.
    """
    period = sum(rows_per_period)
    num_scheduled = [0] * len(rows_per_period)
    schedule = np.zeros(period, dtype=np.int32)
    for position in range(period):
        deadlines = [
            (-(-(num_scheduled[source] + 1) * period // num_rows), source)
            for source, num_rows in enumerate(rows_per_period)
            if num_scheduled[source] * period // num_rows <= position
        ]
        deadline, source = min(deadlines)
        assert position < deadline, f"source {source} missed its deadline {deadline} in {rows_per_period}"
        schedule[position] = source
        num_scheduled[source] += 1
    return schedule
