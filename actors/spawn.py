"""Reserves the resources of all actors of a graph at once, and starts actors on the reserved resources.

A reservation is a Ray placement group. Its bundles are sets of resources, each on one node.
"""

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
    """The resources reserved for a graph, and which of them each worker uses."""

    group: PlacementGroup
    """Ray's placement group, which holds the resources. All other groups in this module are groups of workers."""
    bundles: Sequence[Mapping[str, float]]
    """The resources of each bundle, such as {"CPU": 0.5}."""
    bundle_indices: Mapping[tuple[str, int], int]
    """The index of each worker's bundle in `bundles`. The keys are pairs of the name of the worker's group and the
    worker's index in that group."""
    field: str
    """The config fields that determine the resources, such as `execution (generators, learners)`. Error messages name
    these fields."""

    def wait(self) -> None:
        """Wait until all resources are available. If a node was lost, Ray first replaces its resources.

        Raises ValueError when this takes too long, or when a new node cannot access the paths that the run needs.
        """
        wait_for_placement_group(self.group, self.bundles, self.field)

    def release(self) -> None:
        """Kill all actors that run on the reserved resources, and free the resources."""
        stage_monitor.ignore_exits()
        remove_placement_group(self.group)


def plan_bundles(
    groups: Mapping[str, Placement], *, colocate: bool
) -> tuple[list[dict[str, float]], dict[tuple[str, int], int]]:
    """Return the values of `Reservation.bundles` and `Reservation.bundle_indices` for these groups of workers.

    The keys of `groups` are the names of the groups. With `colocate`, worker i of every group uses bundle i, so these
    workers run on one node. Otherwise each worker has a bundle to itself.
    """
    workers = [(name, index) for name, placement in groups.items() for index in range(placement.workers)]
    bundle_indices = {worker: worker[1] if colocate else position for position, worker in enumerate(workers)}
    bundles: list[dict[str, float]] = [{} for _ in range(max(bundle_indices.values()) + 1)]
    for (name, _), bundle in bundle_indices.items():
        needed = {"CPU": groups[name].cpus_per_worker, "GPU": groups[name].gpus_per_worker}
        for resource, amount in needed.items():
            if amount:
                # Ray counts resources in steps of 0.0001. Without rounding, 0.1 + 0.2 would request more than 0.3.
                bundles[bundle][resource] = round(bundles[bundle].get(resource, 0.0) + amount, 4)
    return bundles, bundle_indices


def reserve(groups: Mapping[str, Placement], *, colocate: bool) -> Reservation:
    """Reserve the resources of all groups at once, and wait until they are available.

    The keys of `groups` are the names of the groups. Raises ValueError when the resources do not fit into the cluster,
    and in the cases of `Reservation.wait`.
    """
    bundles, bundle_indices = plan_bundles(groups, colocate=colocate)
    field = f"execution ({', '.join(groups)})"
    return Reservation(reserve_capacity(bundles, field), bundles, bundle_indices, field)


class Spawner:
    """Starts actors on the resources of a reservation."""

    def __init__(self, reservation: Reservation, groups: Mapping[str, Placement]) -> None:
        self._reservation = reservation
        self._groups = groups

    def __call__(
        self,
        group: str,
        index: int,
        cls: type,
        *arguments: Any,
        env: Mapping[str, str] | None = None,
        restartable: bool = False,
    ) -> ActorHandle:
        """Start worker `index` of the group named `group` as the Ray actor `cls(*arguments)`.

        `env` are additional environment variables of the actor's process. When a `restartable` actor dies, Ray starts
        it again and repeats the interrupted call of its method, up to `Placement.max_failures` times. The results of
        such an actor must depend only on the arguments of its constructor and of the call.

        If the reserved resources were lost with a node, this method waits for them. Raises ValueError in the cases of
        `Reservation.wait`.
        """
        placement = self._groups[group]
        self._reservation.wait()
        env_vars = {**worker_env(placement.threads_per_worker), **(env or {})}
        options = restart_options(placement) if restartable else {}
        handle: Any = (
            ray.remote(
                monitored_class(cls, stage_monitor.current_stage(), role_of(group), index, log_death=restartable)
            )
            .options(
                num_cpus=placement.cpus_per_worker,
                num_gpus=placement.gpus_per_worker,
                runtime_env={"env_vars": env_vars},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._reservation.group, placement_group_bundle_index=self._reservation.bundle_indices[group, index]
                ),
                **options,
            )
            .remote(*arguments)
        )
        return handle


def role_of(group: str) -> str:
    """Return the role of a group's workers: the name of the group without a plural s, such as `generator`."""
    return group.removesuffix("s")


def restart_options(placement: Placement) -> dict[str, Any]:
    """Return the options with which Ray restarts an actor that dies, and repeats the call that was interrupted."""
    return {"max_restarts": placement.max_failures, "max_task_retries": placement.max_failures}
