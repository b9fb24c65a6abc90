"""Ray Train's trainer without the helper actors that our workers have no use for."""

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

NEEDLESS_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Callbacks that start an actor each, 2.5 s of CPU time for its imports: one hands out Ray datasets, of which we pass
none; the other frees the workers' places when the controller dies but the driver lives on, and ours ends with it."""


class Trainer(DataParallelTrainer):
    """Runs a function in a group of workers, whose process group they form themselves.

    `TorchTrainer` would form it, for which the controller imports torch.
    """

    def _create_default_callbacks(self) -> list[Any]:
        """Ray's callbacks without the needless ones, which a Ray that names this method otherwise would start again."""
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in NEEDLESS_CALLBACKS]
