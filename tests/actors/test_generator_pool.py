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

    def __init__(self, deaths: Path, fixed_version: int | None = None) -> None:
        self._deaths, self._fixed_version, self._version = deaths, fixed_version, -1

    def load(self, snapshot: WeightSnapshot) -> LoadReport:
        if (self._deaths / "owner").exists():
            raise OwnerDiedError("00" * 28, b"", "")
        self._version = snapshot.version if self._fixed_version is None else self._fixed_version
        return LoadReport(self._version, {})

    def generate(self, batch: GenerationBatch) -> list[RolloutGroup]:
        death_file = self._deaths / str(batch.requests[0].index)
        try:
            if death_file.read_text() == "once":
                death_file.unlink()
        except FileNotFoundError:
            pass  # this batch kills no generator, or it has already killed another one
        else:
            os._exit(1)
        return [
            RolloutGroup(t.index, (Rollout(t.prompt_ids, (t.index,), (0.0,), self._version, True),))
            for t in batch.requests
        ]


def make_pool(deaths: Path, num_generators: int, *, max_restarts: int = 3) -> GeneratorPool:
    generator_class = ray.remote(FakeGenerator).options(num_cpus=0.1)
    generator_pool = GeneratorPool(
        lambda index: generator_class.remote(deaths), num_generators, max_restarts=max_restarts
    )
    generator_pool.load(SNAPSHOT)
    return generator_pool


def make_batches(count: int) -> list[GenerationBatch]:
    return [
        GenerationBatch(0, 7, tuple(PromptRequest(2 * i + j, (1,), 1) for j in range(2)), SAMPLING)
        for i in range(count)
    ]


def prompt_indices(groups: list[RolloutGroup]) -> list[int]:
    return [group.index for group in groups]


@pytest.mark.parametrize("num_generators", [1, 3])
def test_groups_are_in_the_order_of_the_batches(ray_session: None, tmp_path: Path, num_generators: int) -> None:
    groups = make_pool(tmp_path, num_generators).generate(make_batches(5))
    assert prompt_indices(groups) == list(range(10))
    assert {rollout.weight_version for group in groups for rollout in group.rollouts} == {7}


def test_the_batch_of_a_dead_generator_is_repeated_with_the_same_weights(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "2").write_text("once")
    (tmp_path / "8").write_text("once")
    generators = make_pool(tmp_path, 2)
    groups = generators.generate(make_batches(5))
    assert prompt_indices(groups) == list(range(10))
    assert {rollout.weight_version for group in groups for rollout in group.rollouts} == {7}
    assert generators.restarts == 2
    assert prompt_indices(generators.generate(make_batches(2))) == [0, 1, 2, 3]


def test_a_batch_that_kills_every_generator_ends_the_run(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "0").write_text("always")
    with pytest.raises(RuntimeError, match=r"no restart is left \(execution.generators.max_failures"):
        make_pool(tmp_path, 1, max_restarts=1).generate(make_batches(1))


def test_every_generator_completes_the_check_batch_even_after_a_death(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "0").write_text("once")
    assert [prompt_indices(groups) for groups in make_pool(tmp_path, 2).generate_on_each(make_batches(1)[0])] == [
        [0, 1],
        [0, 1],
    ]


def test_an_engine_that_keeps_its_old_weights_is_rejected(ray_session: None, tmp_path: Path) -> None:
    generator_class = ray.remote(FakeGenerator).options(num_cpus=0.1)
    stale_pool = GeneratorPool(lambda index: generator_class.remote(tmp_path, 6), 1, max_restarts=0)
    with pytest.raises(StaleWeightsError, match="has weight version 6 after version 7 was sent"):
        stale_pool.load(SNAPSHOT)


def test_a_snapshot_lost_with_the_learner_counts_as_a_death_of_ranks(ray_session: None, tmp_path: Path) -> None:
    generators = make_pool(tmp_path, 1)
    (tmp_path / "0").write_text("once")
    (tmp_path / "owner").touch()
    with pytest.raises(RanksDied, match="the learner died, and its weight snapshot was lost"):
        generators.generate(make_batches(2))
    (tmp_path / "owner").unlink()
    generators.load(SNAPSHOT)
    assert prompt_indices(generators.generate(make_batches(2))) == [0, 1, 2, 3]


class FailingGenerator:
    def __init__(self) -> None:
        raise RuntimeError("no kernels for heads of 16 channels")

    def load(self, snapshot: WeightSnapshot) -> LoadReport:
        raise AssertionError("unreachable, because the constructor fails")


def test_a_generator_that_fails_in_its_constructor_is_not_restarted(ray_session: None) -> None:
    generator_class = ray.remote(FailingGenerator).options(num_cpus=0.1)
    failing_pool = GeneratorPool(lambda index: generator_class.remote(), 1, max_restarts=3)
    message = "generator 0 .*raised RuntimeError: no kernels for heads of 16 channels, at .*, in its constructor"
    with pytest.raises(RuntimeError, match=message):
        failing_pool.load(SNAPSHOT)
    assert failing_pool.restarts == 0
