"""Runs one function over many independent tasks, as a Ray Data pipeline.

Where a stage shuffles data, its tasks exchange the data through storage, not through memory. Each task writes files of
its own and returns a description of them as its result. Results are also written to storage, so that a task that
finished before the process was killed does not run again. The number of workers never changes what a task reads.
"""

import hashlib
import json
import logging
import pdb
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from cluster import stage_monitor
from cluster.capacity import wait_for_capacity
from cluster.heartbeat import current_process_info, monitored
from cluster.plain import from_plain, to_plain
from cluster.progress import Progress
from cluster.shared_paths import check_new_nodes
from cluster.storage import Storage
from cluster.worker_errors import wrap_error

Task = TypeVar("Task")
Result = TypeVar("Result")


class _NumberedJson(NamedTuple):
    """A task, or the result of a task, as JSON. `number` is the index of the task in the list of tasks."""

    number: int
    json: str


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    result_type: type[Result],
    workers: int | None,
    label: str,
    result_folder: Storage | None = None,
) -> list[Result]:
    """Return `function(task)` for every task, in the order of `tasks`.

    All tasks have the same type. Tasks and results are sent between processes as JSON (`cluster.plain`).

    result_type: the type of the results.
    workers: how many tasks run at once, each on one CPU. None uses all CPUs of the cluster. 0 runs the tasks one after
        another in this process, where a debugger stops at their breakpoints.
    label: what the tasks do, for the progress line and for messages.
    result_folder: where the result of each task is written when the task is done, under a hash of the task's content.
        With None no results are written. A task whose result is already in this folder does not run again. Code that
        removes files which results describe must remove the results first.
    """
    done: dict[int, Result] = {}
    pending: list[_NumberedJson] = []
    stored_names = set() if result_folder is None else set(result_folder.files())
    for number, task in enumerate(tasks):
        task_json = json.dumps(to_plain(task))
        if result_folder is not None and _result_name(task_json) in stored_names:
            with suppress(ValueError):  # a result that another version of the code wrote may have another form
                done[number] = from_plain(result_type, result_folder.read_json(_result_name(task_json)))
        if number not in done:
            pending.append(_NumberedJson(number, task_json))
    with Progress(label, len(tasks), "tasks", done=len(done)) as progress:
        task_type = type(tasks[0]) if tasks else object
        run_task = partial(_run_task, function, task_type, result_folder)
        results = _run_in_process(run_task, pending) if workers == 0 else _run_on_ray(run_task, pending, workers, label)
        for number, result_json in results:
            done[number] = from_plain(result_type, json.loads(result_json))
            progress.update(len(done))
    return [done[number] for number in range(len(tasks))]


def _run_task(function: Callable[[Any], Any], task_type: type, result_folder: Storage | None, task_json: str) -> str:
    """Run a task that is given as JSON and return its result as JSON."""
    result = to_plain(function(from_plain(task_type, json.loads(task_json))))
    if result_folder is not None:
        result_folder.write_json(_result_name(task_json), result)
    return json.dumps(result)


def task_key(task: Any) -> str:
    """Return a hash of a task's content, with which the task makes the names of its files unique."""
    return hashlib.sha256(json.dumps(to_plain(task)).encode()).hexdigest()[:16]


def _result_name(task_json: str) -> str:
    """Return the file name of a task's result in the result folder."""
    return f"{hashlib.sha256(task_json.encode()).hexdigest()[:24]}.json"


def _run_in_process(run_task: Callable[[str], str], tasks: Sequence[_NumberedJson]) -> Iterator[_NumberedJson]:
    """Run the tasks one after another in this process and yield each result.

    An exception of a task reaches the caller unchanged.
    """
    # Ray replaces this hook by one that opens no prompt in this terminal.
    sys.breakpointhook = pdb.set_trace
    for number, task_json in tasks:
        yield _NumberedJson(number, run_task(task_json))


def _run_on_ray(
    run_task: Callable[[str], str], tasks: Sequence[_NumberedJson], workers: int | None, label: str
) -> Iterator[_NumberedJson]:
    """Run the tasks on the cluster and yield each result when its task finishes."""
    if not tasks:
        return

    import ray.data  # imported here so that `raymill plan` does not import pandas with it, which takes 1.5 s

    stage = stage_monitor.current_stage()

    def run_row(row: dict[str, Any]) -> dict[str, Any]:
        # The exception is returned, because Ray Data would only pass on its text and lose its type.
        try:
            with monitored(stage, "task", row["number"], log_death=True):
                return {"number": row["number"], "json": run_task(row["json"]), "error": b""}
        except Exception as error:
            return {
                "number": row["number"],
                "json": "",
                "error": pickle.dumps(wrap_error(error, current_process_info())),
            }

    wait_for_capacity([{"CPU": 1.0}], label)
    ray.data.DataContext.get_current().enable_progress_bars = False  # `run_tasks` shows its own progress line
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    dataset = ray.data.from_items([task._asdict() for task in tasks], override_num_blocks=len(tasks))
    pool_size = None if workers is None else min(workers, len(tasks))
    # Ray Data repeats a task whose process or node was lost, without a limit. A task that raised is not repeated.
    dataset = dataset.map(run_row, compute=ray.data.TaskPoolStrategy(size=pool_size))
    for row in dataset.iter_rows():
        check_new_nodes()  # an autoscaler may have added nodes, and Ray Data uses a new node at once
        if row["error"]:
            raise pickle.loads(row["error"])
        yield _NumberedJson(row["number"], row["json"])
