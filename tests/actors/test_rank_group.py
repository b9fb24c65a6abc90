"""A group of ranks tells a death from an error. The ranks are fakes without a process group."""

from __future__ import annotations

import os
import time

import pytest
import ray

from actors import rank_group
from actors.rank_group import RankGroup, RanksDied


class FakeRank:
    """Rank 1 waits in `update` for another, as in a collective, or dies."""

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
def test_an_error_is_no_death_though_another_rank_waits_in_a_collective(group: RankGroup) -> None:
    with pytest.raises(ValueError, match="no token to learn from"):
        group.start(lambda rank: rank.update.remote(False), list).wait()


@pytest.mark.slow
def test_an_error_beside_a_dead_rank_is_a_death(group: RankGroup) -> None:
    with pytest.raises(RanksDied):
        group.start(lambda rank: rank.update.remote(True), list).wait()
