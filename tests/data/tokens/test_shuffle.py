"""The shuffle: a permutation of the rows in each epoch."""

import numpy as np
import pytest

from data.tokens.shuffle import Permutation, epoch_order


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
