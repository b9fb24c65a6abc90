"""Ray Train's trainer without the helper actors that our worker groups have no use for.

Each of these actors imports ray.train and pandas, which takes about 2.5 s of CPU time before the first training step.
"""

from typing import Any

from ray.train import Result
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

NEEDLESS_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Callbacks that start an actor each. The first distributes Ray datasets, of which we pass none. The second releases
the workers' placement group when the controller dies while the driver lives. We do not need this, because our driver
then ends the whole session."""


class Trainer(DataParallelTrainer):
    """Runs a function in a group of workers that form their process group themselves.

    `TorchTrainer` would form the process group for the workers, but its controller would have to import torch for this.
    """

    def _create_default_callbacks(self) -> list[Any]:
        """Return Ray's callbacks without the needless ones.

        If Ray renamed this method, the needless callbacks would be used again, without an error.
        """
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in NEEDLESS_CALLBACKS]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        """Run the controller with a group of fixed size that does not ask an actor for nodes."""
        return super()._initialize_and_run_controller(
            **{**arguments, "scaling_policy": ReservedGroup(self.scaling_config)}
        )


class ReservedGroup(FixedScalingPolicy):
    """A group of fixed size for which the cluster has room already.

    Ray's own policy asks an autoscaling coordinator, an actor, for nodes. This policy asks for none, because
    `wait_for_capacity` has already waited for the nodes, and the workers' placement group reserves their resources.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Do not create a client of the coordinator, as Ray's own policy does here."""

    def _maybe_send_resource_request(self) -> None:
        """Do not ask the coordinator for nodes."""
