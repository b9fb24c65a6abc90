"""The order in which rows are trained on: permutations and mixtures."""

from fractions import Fraction

import numpy as np
import pytest

from data.tokens.order import MAX_PERIOD, Mixture, Permutation, check_weights, epoch_order


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1023, 1025])
def test_a_permutation_has_every_number_exactly_once(size: int) -> None:
    permutation = Permutation(size, "key")
    assert sorted(permutation(index) for index in range(size)) == list(range(size))


def test_a_permutation_of_a_huge_range_needs_no_table() -> None:
    permutation = Permutation(10**15, "key")
    values = [permutation(index) for index in range(10**15 - 1000, 10**15)]
    assert len(set(values)) == 1000 and max(values) < 10**15


def test_permuted_numbers_are_not_correlated_with_their_indices() -> None:
    # The correlation of a random permutation of n numbers with its index has a standard deviation of 1/sqrt(n) = 0.016.
    values = [Permutation(4000, "key")(index) for index in range(4000)]
    assert abs(np.corrcoef(values, range(4000))[0, 1]) < 0.06
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.06


def test_each_epoch_has_its_own_permutation_and_does_not_depend_on_the_other_indices() -> None:
    order = epoch_order(range(30), 10, seed=1)
    epochs = [order[:10], order[10:20], order[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(epoch_order([17, 3], 10, seed=1)) == [order[17], order[3]]
    assert list(epoch_order(range(10), 10, seed=2)) != list(order[:10])


def test_the_order_does_not_change_between_versions() -> None:
    # If this order changed, every run that is resumed from a checkpoint would train on other rows.
    assert list(epoch_order(range(8), 8, seed=0)) == [3, 0, 6, 7, 1, 4, 5, 2]


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
