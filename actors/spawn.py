"""One reservation of resources for all actors of a graph, and the start of actors inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster import stage_monitor
from cluster.capacity import reserve_capacity, wait_for_placement_group
from cluster.heartbeat import monitored_class
from cluster.placement import Placement
from cluster.session import worker_env


@dataclass(frozen=True)
class Reservation:
    """Resources reserved for a graph, and the bundle of them that each worker of each group uses."""

    group: PlacementGroup
    bundles: Sequence[Mapping[str, float]]
    bundle_indices: Mapping[tuple[str, int], int]
    """By (group name, worker)."""
    field: str
    """The config fields that ask for it, for messages."""

    def wait(self) -> None:
        """Wait until all of it is available, also after a lost node. Raises ValueError when that takes too long."""
        wait_for_placement_group(self.group, self.bundles, self.field)

    def release(self) -> None:
        """Kill every actor that runs in it and free the resources."""
        stage_monitor.ignore_exits()
        remove_placement_group(self.group)


def plan_bundles(
    groups: Mapping[str, Placement], *, colocate: bool
) -> tuple[list[dict[str, float]], dict[tuple[str, int], int]]:
    """The bundles to reserve, and the number of each worker's bundle.

    Colocated, worker i of every group shares bundle i; otherwise each worker has its own bundle. A bundle is always on
    one node.
    """
    workers = [(name, index) for name, placement in groups.items() for index in range(placement.workers)]
    bundle_indices = {worker: worker[1] if colocate else number for number, worker in enumerate(workers)}
    bundles: list[dict[str, float]] = [{} for _ in range(max(bundle_indices.values()) + 1)]
    for (name, _), bundle in bundle_indices.items():
        needed = {"CPU": groups[name].cpus_per_worker, "GPU": groups[name].gpus_per_worker}
        for resource, amount in needed.items():
            if amount:
                # Rounded to Ray's own precision, or 0.1 + 0.2 would ask for more than there is.
                bundles[bundle][resource] = round(bundles[bundle].get(resource, 0.0) + amount, 4)
    return bundles, bundle_indices


def reserve(groups: Mapping[str, Placement], *, colocate: bool) -> Reservation:
    """Reserve the resources of all groups at once, waiting for them. Raises ValueError when they do not fit."""
    bundles, bundle_indices = plan_bundles(groups, colocate=colocate)
    field = f"execution ({', '.join(groups)})"
    return Reservation(reserve_capacity(bundles, field), bundles, bundle_indices, field)


class Spawner:
    """Starts actors of plain classes inside a reservation."""

    def __init__(self, reservation: Reservation, groups: Mapping[str, Placement]) -> None:
        self._reservation = reservation
        self._groups = groups

    def __call__(
        self,
        name: str,
        index: int,
        cls: type,
        *arguments: Any,
        env: Mapping[str, str] | None = None,
        restartable: bool = False,
    ) -> ActorHandle:
        """Start worker `index` of the group `name`: an actor of `cls(*arguments)`.

        The results of a pure actor depend on its arguments alone: when it dies, Ray starts it again and repeats the
        call, up to the placement's max_failures times. Raises ValueError when the reservation was lost with a node and
        is not available again in time.
        """
        placement = self._groups[name]
        self._reservation.wait()
        env_vars = {**worker_env(placement.threads_per_worker), **(env or {})}
        options = restart_options(placement) if restartable else {}
        handle: Any = (
            ray.remote(monitored_class(cls, stage_monitor.current_stage(), role_of(name), index, log_death=restartable))
            .options(
                num_cpus=placement.cpus_per_worker,
                num_gpus=placement.gpus_per_worker,
                runtime_env={"env_vars": env_vars},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._reservation.group, placement_group_bundle_index=self._reservation.bundle_indices[name, index]
                ),
                **options,
            )
            .remote(*arguments)
        )
        return handle


def role_of(group: str) -> str:
    """The name of one worker of a group: `generators` -> `generator`."""
    return group.removesuffix("s")


def restart_options(placement: Placement) -> dict[str, Any]:
    """Ray's options of a pure actor."""
    return {"max_restarts": placement.max_failures, "max_task_retries": placement.max_failures}
