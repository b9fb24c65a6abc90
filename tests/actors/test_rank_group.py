"""A rank group tells a rank's exception from a rank's death. The ranks here are fakes without a process group."""

from __future__ import annotations

import os
import time

import pytest
import ray

from actors import rank_group
from actors.rank_group import RankGroup, RanksDied


class FakeRank:
    """In `update`, rank 0 raises an error. Rank 1 dies, or waits for a long time, as it would in a collective."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def update(self, dies: bool) -> None:
        if self._rank == 0:
            time.sleep(0.5)
            raise ValueError("no token to learn from")
        if dies:
            os._exit(1)
        time.sleep(20)


@pytest.fixture
def group(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> RankGroup:
    monkeypatch.setattr(rank_group, "_DEATH_NOTICE_S", 3.0)
    fake = ray.remote(FakeRank).options(num_cpus=0.1)
    return RankGroup(lambda rank: fake.remote(rank), 2)


@pytest.mark.slow
def test_an_error_is_not_a_death_while_another_rank_waits_in_a_collective(group: RankGroup) -> None:
    with pytest.raises(ValueError, match="no token to learn from"):
        group.call(lambda rank: rank.update.remote(False), list).wait()


@pytest.mark.slow
def test_an_error_of_a_rank_counts_as_a_death_if_another_rank_died(group: RankGroup) -> None:
    with pytest.raises(RanksDied):
        group.call(lambda rank: rank.update.remote(True), list).wait()
