"""The seeded order of samples."""

import numpy as np
import pytest

from data.order import Permutation, epoch_order


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
