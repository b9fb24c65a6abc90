"""Ray Train's helper actors: which of them start."""

import pytest
from ray.train import ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.trainer import NEEDLESS_CALLBACKS, ReservedGroup, Trainer


def names(callbacks: list) -> list[str]:
    return [type(callback).__name__ for callback in callbacks]


def test_only_the_needless_callbacks_are_left_out() -> None:
    trainer = Trainer(lambda: None)
    of_ray = names(DataParallelTrainer._create_default_callbacks(trainer))
    assert set(NEEDLESS_CALLBACKS) < set(of_ray), "this Ray names them otherwise, so their actors start again"
    assert names(trainer._create_default_callbacks()) == [name for name in of_ray if name not in NEEDLESS_CALLBACKS]


def test_a_group_gets_its_workers_without_asking_the_coordinator() -> None:
    policy = ReservedGroup(ScalingConfig(num_workers=3))
    policy.after_controller_start(None)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 3
    policy.before_controller_abort()
    assert policy._coordinator_client is None, "this Ray creates the coordinator's client elsewhere"


def test_the_controller_is_given_that_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict = {}
    monkeypatch.setattr(
        DataParallelTrainer, "_initialize_and_run_controller", lambda self, **given: arguments.update(given)
    )
    Trainer(lambda: None)._initialize_and_run_controller(scaling_policy=None, callbacks=[])
    assert isinstance(arguments["scaling_policy"], ReservedGroup) and arguments["callbacks"] == []
