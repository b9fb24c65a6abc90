"""Held-out samples are chosen, and every rank gets the same number of held-out samples."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.frame.fine_tuning import check_fine_tuning, held_out_micro_batch_indices, split_held_out, with_rendering
from jobs.frame.workload import Workload
from jobs.sft import SftConfig


def test_fewer_than_two_samples_that_fit_are_rejected() -> None:
    config = SftConfig(chats=[], sequence_length=8)
    for number in (0, 1):
        with pytest.raises(ValueError, match=rf"only {number} of the records fit sequence_length=8, .* or add chats"):
            split_held_out(np.arange(number), config, field="chats")


def test_records_of_a_single_prompt_are_split_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    split = split_held_out(np.full(10, 3), SftConfig(chats=[], validation_fraction=0.2), field="chats")
    assert len(split.held_out) == 2 and "chats: all records have the same prompt" in caplog.text


def test_max_quarantined_is_a_share() -> None:
    for value in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"max_quarantined: {value} must be at least 0 and below 1"):
            check_fine_tuning(SftConfig(chats=[], max_quarantined=value))


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


def test_the_forecast_counts_the_rendering_of_the_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b.jsonl.gz").write_bytes(b"x" * 1_000_000)
    workload = with_rendering(Workload(steps=3), [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.gz")])
    assert (workload.python_s, workload.python_processes, workload.steps) == (7.0, 1, 3)
