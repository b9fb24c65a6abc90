"""Ray Train's helper actors: which of them start."""

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.trainer import NEEDLESS_CALLBACKS, Trainer


def names(callbacks: list) -> list[str]:
    return [type(callback).__name__ for callback in callbacks]


def test_only_the_needless_callbacks_are_left_out() -> None:
    trainer = Trainer(lambda: None)
    of_ray = names(DataParallelTrainer._create_default_callbacks(trainer))
    assert set(NEEDLESS_CALLBACKS) < set(of_ray), "this Ray names them otherwise, so their actors start again"
    assert names(trainer._create_default_callbacks()) == [name for name in of_ray if name not in NEEDLESS_CALLBACKS]
