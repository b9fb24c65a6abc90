"""The last samples are held out, and every rank gets the same number of held-out samples."""

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.frame.fine_tuning import held_out_micro_batch_indices, split_held_out
from jobs.sft import SftConfig


def test_fewer_than_two_samples_that_fit_are_rejected() -> None:
    config = SftConfig(chats=[], sequence_length=8)
    for samples in ([], ["one"]):
        with pytest.raises(
            ValueError, match=rf"chats: only {len(samples)} of the records fit sequence_length=8, .* or add chats"
        ):
            split_held_out(samples, config, field="chats")


@pytest.mark.parametrize(("fraction", "num_held_out"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.99, 3)])
def test_the_last_samples_are_held_out_and_both_parts_have_at_least_one_sample(
    fraction: float, num_held_out: int
) -> None:
    samples = list("abcd")
    train, held_out = split_held_out(samples, SftConfig(chats=[], validation_fraction=fraction), field="chats")
    assert [*train, *held_out] == samples and len(held_out) == num_held_out


@pytest.mark.parametrize(
    ("num_samples", "world_size", "by_rank"),
    [
        (5, 2, [[[0, 1]], [[2, 3]]]),  # 4 is left out
        (7, 2, [[[0, 1], [2]], [[3, 4], [5]]]),
        (1, 3, [[[0]], [[0]], [[0]]]),  # fewer samples than ranks
    ],
)
def test_every_rank_has_the_same_number_of_micro_batches(num_samples: int, world_size: int, by_rank: list[Any]) -> None:
    config = SimpleNamespace(execution=SimpleNamespace(micro_batch_size=2))
    for rank, expected in enumerate(by_rank):
        training: Any = SimpleNamespace(rank_context=SimpleNamespace(rank=rank, world_size=world_size), config=config)
        assert [list(indices) for indices in held_out_micro_batch_indices(training, num_samples)] == expected
