"""The mixture: which source the row at each index comes from."""

from fractions import Fraction

import numpy as np
import pytest

from data.tokens.mixture import MAX_PERIOD, Mixture, check_weights


def test_a_mixture_schedules_the_earliest_deadline_first() -> None:
    # The shares are 3/6, 2/6 and 1/6. The rows of a have the release times 0, 2, 4 and the deadlines 2, 4, 6. The rows
    # of b have the release times 0, 3 and the deadlines 3, 6. The row of c has release time 0 and deadline 6. If
    # deadlines are equal, the source that is named first comes first.
    mixture = Mixture({"a": 3, "b": 2, "none": 0, "c": 1})
    assert mixture.sources == ("a", "b", "c") and mixture.rows_per_period == [3, 2, 1]
    rows = [mixture.source_row(index) for index in range(8)]
    assert "".join(row.source for row in rows) == "ababac" + "ab"
    assert [row.index_in_source for row in rows] == [0, 0, 1, 1, 2, 0, 3, 2]


def test_shares_are_exact_for_simple_weights_and_rounded_for_others() -> None:
    assert Mixture({"a": 0.7, "b": 0.2, "c": 0.1}).rows_per_period == [7, 2, 1]
    assert Mixture({"a": 1, "b": 1 / 3}).rows_per_period == [7500, 2500]  # 1 / 3 as a float is not exactly a third
    assert Mixture({"a": 1, "b": 1, "c": 1}).rows_per_period == [1, 1, 1]


def test_weights_are_shares_of_the_tokens_so_a_source_with_short_rows_gets_more_rows() -> None:
    # The tokens of a and b are 3 : 1. A row of b has a quarter of the tokens of a row of a, so the rows are 3 : 4.
    targets_per_row = {"a": Fraction(100), "b": Fraction(25)}
    mixture = Mixture({"a": 0.75, "none": 0, "b": 0.25}, targets_per_row=targets_per_row)
    assert mixture.sources == ("a", "b") and mixture.rows_per_period == [3, 4]
    with pytest.raises(ValueError, match=r"mixture.a: a weight of 0.0003 gives this source less than 1/10,000 of all"):
        Mixture({"a": 0.0003, "b": 1}, targets_per_row=targets_per_row)


@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [0.7, 0.2, 0.1],
        [0.9, 0.05, 0.03, 0.0151, 0.0049],
        [1, 2, 3, 4, 5, 6, 7],
        [0.1234567, 0.7654321, 0.333333, 2.71828],
        [1e6, 3.3e5, 1e3],
        [9_999, 1],
    ],
)
def test_after_any_number_of_rows_each_source_is_within_one_row_of_its_share(weights: list[float]) -> None:
    mixture = Mixture({str(n): weight for n, weight in enumerate(weights)})
    period = sum(mixture.rows_per_period)
    assert np.abs(np.array(mixture.rows_per_period) / period - np.array(weights) / sum(weights)).max() < 1 / MAX_PERIOD
    counts = np.zeros(len(weights), dtype=np.int64)
    for index in range(period + 50):
        source, index_in_source = mixture.source_row(index)
        assert index_in_source == counts[int(source)]
        counts[int(source)] += 1
        lag = np.array(mixture.rows_per_period) * (index + 1) - counts * period
        assert np.abs(lag).max() < period
    far, near = mixture.source_row(10**12 * period + 7 % period), mixture.source_row(7 % period)
    assert far.source == near.source
    assert far.index_in_source - near.index_in_source == 10**12 * mixture.rows_per_period[int(far.source)]


def test_invalid_weights_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"mixture.web: -1 must be a finite number of at least 0"):
        check_weights({"web": -1})
    with pytest.raises(ValueError, match=r"mixture.web: nan must be a finite number"):
        check_weights({"web": float("nan")})
    with pytest.raises(ValueError, match=r"mixture: no source has a weight above 0"):
        check_weights({"web": 0.0})
    with pytest.raises(ValueError, match=r"mixture.rare: 1e-05 is less than 1/10,000"):
        check_weights({"web": 1.0, "rare": 1e-5})
