"""Waiting for tasks: results in order, and the first error without waiting for the other tasks."""

import time

import pytest
import ray

from cluster.ray_task import RunningTasks


def work(seconds: float) -> float:
    time.sleep(seconds)
    if seconds == 0:
        raise ValueError("this task fails at once")
    return seconds


@pytest.mark.slow
def test_results_are_in_the_order_of_the_tasks_and_an_error_does_not_wait_for_slower_tasks(ray_session: None) -> None:
    task = ray.remote(work).options(num_cpus=0)
    running = RunningTasks()
    assert running.wait(running.add([task.remote(0.5), task.remote(0.1)]), "two tasks") == [0.5, 0.1]
    slow = task.remote(60)
    started = time.monotonic()
    with pytest.raises(ValueError, match="fails at once"):
        running.wait(running.add([slow, task.remote(0)]), "a slow and a failing task")
    assert time.monotonic() - started < 30
    ray.cancel(slow, force=True)
