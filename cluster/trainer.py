"""Ray Train's trainer without the helper actors that our worker groups have no use for.

Each of these actors imports ray.train and pandas, about 2.5 s of CPU time before the first training step.
"""

from typing import Any

from ray.train import Result
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

NEEDLESS_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Callbacks that start an actor each. One distributes Ray datasets, of which we pass none. The other releases the
workers' placement group when the controller dies while the driver lives, and our driver then ends the whole session."""


class Trainer(DataParallelTrainer):
    """Runs a function in a group of workers, whose process group they form themselves.

    `TorchTrainer` would form it, for which the controller imports torch.
    """

    def _create_default_callbacks(self) -> list[Any]:
        """Return Ray's callbacks without the needless ones. Should Ray rename this method, they would start again."""
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in NEEDLESS_CALLBACKS]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        """Run the controller with a group of fixed size that does not ask an actor for nodes."""
        return super()._initialize_and_run_controller(
            **{**arguments, "scaling_policy": ReservedGroup(self.scaling_config)}
        )


class ReservedGroup(FixedScalingPolicy):
    """A group of fixed size for which the cluster has room already.

    Ray's own policy asks an autoscaling coordinator, an actor, for nodes. `wait_for_capacity` has waited for them
    before, and the placement group of the workers keeps them.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Do not create the coordinator's client."""

    def _maybe_send_resource_request(self) -> None:
        """Ask for nothing."""
