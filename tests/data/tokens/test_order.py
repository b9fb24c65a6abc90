"""The seeded order of samples."""

from fractions import Fraction

import numpy as np
import pytest

from data.tokens.order import PERIOD, Mixture, Permutation, check_weights, epoch_order


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1023, 1025])
def test_every_index_comes_exactly_once(size: int) -> None:
    permutation = Permutation(size, "key")
    assert sorted(permutation(index) for index in range(size)) == list(range(size))


def test_an_index_far_out_in_a_huge_range_is_computed_without_a_table() -> None:
    permutation = Permutation(10**15, "key")
    values = [permutation(index) for index in range(10**15 - 1000, 10**15)]
    assert len(set(values)) == 1000 and max(values) < 10**15


def test_the_order_has_no_trace_of_the_index() -> None:
    # Correlation of a random permutation of n with its index has standard deviation 1/sqrt(n) = 0.016.
    values = [Permutation(4000, "key")(index) for index in range(4000)]
    assert abs(np.corrcoef(values, range(4000))[0, 1]) < 0.06
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.06


def test_each_epoch_is_its_own_permutation_and_only_the_index_matters() -> None:
    order = epoch_order(range(30), 10, seed=1)
    epochs = [order[:10], order[10:20], order[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(epoch_order([17, 3], 10, seed=1)) == [order[17], order[3]]
    assert list(epoch_order(range(10), 10, seed=2)) != list(order[:10])


def test_the_order_is_pinned() -> None:
    # A change here would silently change what every stored run goes on to train on.
    assert list(epoch_order(range(8), 8, seed=0)) == [3, 0, 6, 7, 1, 4, 5, 2]


def test_a_mixture_gives_turns_by_the_earliest_deadline() -> None:
    # Shares 3/6, 2/6, 1/6. The units of a may stand from 0, 2, 4 on and before 2, 4, 6; those of b from 0, 3 and
    # before 3, 6; that of c from 0 and before 6. Of equal deadlines the source named first.
    mixture = Mixture({"a": 3, "b": 2, "none": 0, "c": 1})
    assert mixture.sources == ("a", "b", "c") and mixture.shares == [3, 2, 1]
    turns = [mixture.source_row(index) for index in range(8)]
    assert "".join(turn.source for turn in turns) == "ababac" + "ab"
    assert [turn.number for turn in turns] == [0, 0, 1, 1, 2, 0, 3, 2]


def test_shares_are_exact_where_the_weights_are_simple_and_rounded_where_not() -> None:
    assert Mixture({"a": 0.7, "b": 0.2, "c": 0.1}).shares == [7, 2, 1]
    assert Mixture({"a": 1, "b": 1 / 3}).shares == [7500, 2500]  # a third in sixteen digits is no third
    assert Mixture({"a": 1, "b": 1, "c": 1}).shares == [1, 1, 1]


def test_weights_are_parts_of_the_tokens_so_a_source_of_short_rows_gives_more_of_them() -> None:
    # Per token 3 : 1, and a row of b has a quarter of the tokens: 3 rows of a to 4 of b.
    targets_per_row = {"a": Fraction(100), "b": Fraction(25)}
    mixture = Mixture({"a": 0.75, "none": 0, "b": 0.25}, targets_per_row=targets_per_row)
    assert mixture.sources == ("a", "b") and mixture.shares == [3, 4]
    with pytest.raises(ValueError, match=r"mixture.a: 0.0003 of the tokens is less than a 10,000th of all rows"):
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
def test_every_prefix_of_a_mixture_is_within_one_of_the_weights(weights: list[float]) -> None:
    mixture = Mixture({str(n): weight for n, weight in enumerate(weights)})
    period = sum(mixture.shares)
    assert np.abs(np.array(mixture.shares) / period - np.array(weights) / sum(weights)).max() < 1 / PERIOD
    counts = np.zeros(len(weights), dtype=np.int64)
    for index in range(period + 50):
        source, number = mixture.source_row(index)
        assert number == counts[int(source)]
        counts[int(source)] += 1
        lag = np.array(mixture.shares) * (index + 1) - counts * period
        assert np.abs(lag).max() < period
    far, near = mixture.source_row(10**12 * period + 7 % period), mixture.source_row(7 % period)
    assert far.source == near.source and far.number - near.number == 10**12 * mixture.shares[int(far.source)]


def test_weights_that_make_no_mixture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mixture.web: -1 must be a number of at least 0"):
        check_weights({"web": -1})
    with pytest.raises(ValueError, match=r"mixture.web: nan must be a number"):
        check_weights({"web": float("nan")})
    with pytest.raises(ValueError, match=r"mixture: no source has a weight above 0"):
        check_weights({"web": 0.0})
    with pytest.raises(ValueError, match=r"mixture.rare: 1e-05 is less than a 10,000th"):
        check_weights({"web": 1.0, "rare": 1e-5})
