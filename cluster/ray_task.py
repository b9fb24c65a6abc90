"""Runs a function as Ray tasks with the resources of a placement, and waits for such tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster import stage_monitor
from cluster.heartbeat import monitored
from cluster.placement import Placement
from cluster.progress import show_activity
from cluster.session import worker_env

if TYPE_CHECKING:
    import ray


def ray_task(
    task_function: Callable[..., Any], placement: Placement, environment: Mapping[str, str] | None = None
) -> Callable[..., ray.ObjectRef]:
    """Return a function that starts `task_function` as a Ray task and returns the task's future.

    Each task gets the resources of one worker of the placement. `task_function` must be pure, because Ray calls it
    again when its process dies, up to `placement.max_failures` times. `environment` contains further environment
    variables of the task's process.
    """
    import ray

    environment = {**worker_env(placement.threads_per_worker), **(environment or {})}
    stage, task_indices = stage_monitor.current_stage(), itertools.count()

    def run_monitored(index: int, *arguments: Any, **keyword_arguments: Any) -> Any:
        with monitored(stage, task_function.__name__, index, log_death=True):
            return task_function(*arguments, **keyword_arguments)

    start = (
        ray.remote(run_monitored)
        .options(
            num_cpus=placement.cpus_per_worker,
            num_gpus=placement.gpus_per_worker,
            max_retries=placement.max_failures,
            runtime_env={"env_vars": environment},
        )
        .remote
    )
    return lambda *arguments, **keyword_arguments: start(next(task_indices), *arguments, **keyword_arguments)


class RunningTasks:
    """Counts the Ray tasks that were started and those that are done, and shows both counts while `wait` waits."""

    def __init__(self) -> None:
        self._num_started = self._num_done = 0

    def add(self, futures: Sequence[ray.ObjectRef]) -> Sequence[ray.ObjectRef]:
        """Count the tasks of these futures as started. Returns the futures."""
        self._num_started += len(futures)
        return futures

    def wait(self, futures: Sequence[ray.ObjectRef], activity: str) -> list[Any]:
        """Wait for tasks that `add` counted, while showing `activity`. Returns their results in order.

        Raises the error of the first task that fails, without waiting for the others.
        """
        import ray

        pending, results = list(futures), dict[ray.ObjectRef, Any]()
        with show_activity(lambda: f"{activity}: {self._num_done} of {self._num_started} tasks done"):
            while pending:
                done, pending = ray.wait(pending)
                results.update(zip(done, ray.get(done), strict=True))
                self._num_done += 1
        return [results[future] for future in futures]
