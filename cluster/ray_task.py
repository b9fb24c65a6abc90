"""A function as Ray tasks on one placement, and the wait for many of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from cluster import stage_monitor
from cluster.heartbeat import monitored
from cluster.placement import Placement
from cluster.progress import working
from cluster.session import worker_env


def ray_task(
    function: Callable[..., Any], placement: Placement, environment: Mapping[str, str] | None = None
) -> Callable[..., ray.ObjectRef]:
    """`function` as a Ray task with one worker's share of the placement.

    The function must be pure: it is repeated when its process dies, up to the placement's max_failures times.
    """
    environment = {**worker_env(placement.threads_per_worker), **(environment or {})}
    stage, numbers = stage_monitor.current_stage(), itertools.count()

    def call(number: int, *arguments: Any, **named: Any) -> Any:
        with monitored(stage, function.__name__, number, log_death=True):
            return function(*arguments, **named)

    task = (
        ray.remote(call)
        .options(
            num_cpus=placement.cpus_per_worker,
            num_gpus=placement.gpus_per_worker,
            max_retries=placement.max_failures,
            runtime_env={"env_vars": environment},
        )
        .remote
    )
    return lambda *arguments, **named: task(next(numbers), *arguments, **named)


class RunningTasks:
    """Ray tasks that run at the same time; waiting for some of them shows how many of all are done."""

    def __init__(self) -> None:
        self._num_started = self._num_done = 0

    def add(self, futures: Sequence[ray.ObjectRef]) -> Sequence[ray.ObjectRef]:
        """The same futures, counted."""
        self._num_started += len(futures)
        return futures

    def wait(self, futures: Sequence[ray.ObjectRef], what: str) -> list[Any]:
        """The results, in order."""
        pending = list(futures)
        with working(lambda: f"{what}: {self._num_done} of {self._num_started} tasks done"):
            while pending:
                _, pending = ray.wait(pending)
                self._num_done += 1
            return ray.get(list(futures))
