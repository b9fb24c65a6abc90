"""The pool returns all rollout groups in order, even if generators die. The generators here are fakes without vLLM."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray
from ray.exceptions import OwnerDiedError

from actors.generator_pool import GeneratorPool
from actors.rank_group import RanksDied
from actors.rollout import GenerationBatch, PromptRequest, Rollout, RolloutGroup, SamplingParams
from actors.weight_sync import LoadReport, StaleWeightsError, WeightSnapshot

pytestmark = pytest.mark.slow

SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=1, stop_ids=(), seed=0)
SNAPSHOT = WeightSnapshot(7, [], {})


class FakeGenerator:
    """Completes each prompt with one token, the index of the prompt.

    It dies in `generate` if the folder `deaths` has a file whose name is the index of the batch's first prompt. If the
    folder has a file named `owner`, `load` fails as it does when the learner that owns the snapshot is dead.
    """

    def __init__(self, deaths: Path, version_held: int | None = None) -> None:
        self._deaths, self._held, self._version = deaths, version_held, -1

    def load(self, snapshot: WeightSnapshot) -> LoadReport:
        if (self._deaths / "owner").exists():
            raise OwnerDiedError("00" * 28, b"", "")
        self._version = snapshot.version if self._held is None else self._held
        return LoadReport(self._version, {})

    def generate(self, batch: GenerationBatch) -> list[RolloutGroup]:
        first = self._deaths / str(batch.requests[0].index)
        try:
            if first.read_text() == "once":
                first.unlink()
        except FileNotFoundError:
            pass  # this batch kills no generator, or it has already killed another one
        else:
            os._exit(1)
        return [
            RolloutGroup(t.index, (Rollout(t.prompt_ids, (t.index,), (0.0,), self._version, True),))
            for t in batch.requests
        ]


def pool(deaths: Path, num_generators: int, *, max_failures: int = 3) -> GeneratorPool:
    engine = ray.remote(FakeGenerator).options(num_cpus=0.1)
    generator_pool = GeneratorPool(lambda index: engine.remote(deaths), num_generators, max_restarts=max_failures)
    generator_pool.load(SNAPSHOT)
    return generator_pool


def batches(count: int) -> list[GenerationBatch]:
    return [
        GenerationBatch(0, 7, tuple(PromptRequest(2 * i + j, (1,), 1) for j in range(2)), SAMPLING)
        for i in range(count)
    ]


def indices(groups: list[RolloutGroup]) -> list[int]:
    return [group.index for group in groups]


@pytest.mark.parametrize("num_generators", [1, 3])
def test_groups_are_in_the_order_of_the_batches(ray_session: None, tmp_path: Path, num_generators: int) -> None:
    groups = pool(tmp_path, num_generators).generate(batches(5))
    assert indices(groups) == list(range(10))
    assert {rollout.weight_version for group in groups for rollout in group.rollouts} == {7}


def test_the_batch_of_a_dead_generator_is_repeated_with_the_same_weights(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "2").write_text("once")
    (tmp_path / "8").write_text("once")
    engines = pool(tmp_path, 2)
    groups = engines.generate(batches(5))
    assert indices(groups) == list(range(10))
    assert {rollout.weight_version for group in groups for rollout in group.rollouts} == {7}
    assert engines.restarts == 2
    assert indices(engines.generate(batches(2))) == [0, 1, 2, 3]


def test_a_batch_that_kills_every_generator_ends_the_run(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "0").write_text("always")
    with pytest.raises(RuntimeError, match=r"no restart is left \(execution.generators.max_failures"):
        pool(tmp_path, 1, max_failures=1).generate(batches(1))


def test_every_generator_completes_the_check_batch_even_after_a_death(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "0").write_text("once")
    assert [indices(groups) for groups in pool(tmp_path, 2).generate_on_each(batches(1)[0])] == [[0, 1], [0, 1]]


def test_an_engine_that_keeps_its_old_weights_is_rejected(ray_session: None, tmp_path: Path) -> None:
    engine = ray.remote(FakeGenerator).options(num_cpus=0.1)
    stale = GeneratorPool(lambda index: engine.remote(tmp_path, 6), 1, max_restarts=0)
    with pytest.raises(StaleWeightsError, match="has weight version 6 after the learner sent version 7"):
        stale.load(SNAPSHOT)


def test_a_snapshot_lost_with_the_learner_counts_as_a_death_of_ranks(ray_session: None, tmp_path: Path) -> None:
    engines = pool(tmp_path, 1)
    (tmp_path / "0").write_text("once")
    (tmp_path / "owner").touch()
    with pytest.raises(RanksDied, match="the learner died, and its weight snapshot was lost"):
        engines.generate(batches(2))
    (tmp_path / "owner").unlink()
    engines.load(SNAPSHOT)
    assert indices(engines.generate(batches(2))) == [0, 1, 2, 3]


class FailingGenerator:
    def __init__(self) -> None:
        raise RuntimeError("no kernels for heads of 16 channels")

    def load(self, snapshot: WeightSnapshot) -> LoadReport:
        raise AssertionError("unreachable, because the constructor fails")


def test_a_generator_that_fails_in_its_constructor_is_not_restarted(ray_session: None) -> None:
    engine = ray.remote(FailingGenerator).options(num_cpus=0.1)
    impossible = GeneratorPool(lambda index: engine.remote(), 1, max_restarts=3)
    message = "generator 0 .*raised RuntimeError: no kernels for heads of 16 channels, at .*, in its constructor"
    with pytest.raises(RuntimeError, match=message):
        impossible.load(SNAPSHOT)
    assert impossible.restarts == 0
