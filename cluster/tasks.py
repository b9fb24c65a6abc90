"""One function over many independent tasks, as a Ray Data pipeline.

Stages with shuffles meet in storage, not in memory: each task writes its own files and answers with their description.
The answers are kept beside the files, so a task that was done before a kill is not done again, and what a later task
reads never depends on the workers.
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
Answer = TypeVar("Answer")


class _Numbered(NamedTuple):
    """A task or its answer, as JSON, with the task's number in the list."""

    number: int
    json: str


def run_tasks(
    function: Callable[[Task], Answer],
    tasks: Sequence[Task],
    *,
    returns: type[Answer],
    workers: int | None,
    label: str,
    answers: Storage | None = None,
) -> list[Answer]:
    """`function(task)` for every task, in the tasks' order.

    Tasks are of one type, answers of the type `returns`; both travel as JSON (`cluster.plain`). `workers` bounds how
    many tasks run at once, each on one CPU; None leaves it to the cluster's size, and 0 runs them one after another in
    this process, where a debugger stops at their breakpoints. With `answers` each answer is written there when its task
    is done, named by the task's content, and a task that has one is not done again. Whoever removes the files that
    answers describe must remove the answers first.
    """
    done: dict[int, Answer] = {}
    pending: list[_Numbered] = []
    stored = set() if answers is None else set(answers.files())
    for number, task in enumerate(tasks):
        content = json.dumps(to_plain(task))
        if answers is not None and _answer_name(content) in stored:
            with suppress(ValueError):  # another version of the code may have written it in another form
                done[number] = from_plain(returns, answers.read_json(_answer_name(content)))
        if number not in done:
            pending.append(_Numbered(number, content))
    with Progress(label, len(tasks), "tasks", done=len(done)) as progress:
        kind = type(tasks[0]) if tasks else object
        call = partial(_call, function, kind, answers)
        finished = _in_this_process(call, pending) if workers == 0 else _on_ray(call, pending, workers, label)
        for number, answer in finished:
            done[number] = from_plain(returns, json.loads(answer))
            progress.update(len(done))
    return [done[number] for number in range(len(tasks))]


def _call(function: Callable[[Any], Any], kind: type, answers: Storage | None, content: str) -> str:
    """The answer, as JSON, to a task of this type, given as JSON."""
    answer = to_plain(function(from_plain(kind, json.loads(content))))
    if answers is not None:
        answers.write_json(_answer_name(content), answer)
    return json.dumps(answer)


def _answer_name(content: str) -> str:
    return f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"


def _in_this_process(call: Callable[[str], str], tasks: Sequence[_Numbered]) -> Iterator[_Numbered]:
    """The numbered answer to every task, one after another. What a task raises comes out as it was raised."""
    sys.breakpointhook = pdb.set_trace  # Ray has put one in its place that opens no prompt in this terminal
    for number, content in tasks:
        yield _Numbered(number, call(content))


def _on_ray(
    call: Callable[[str], str], tasks: Sequence[_Numbered], workers: int | None, label: str
) -> Iterator[_Numbered]:
    """The numbered answer to every task, in the order in which they finish."""
    if not tasks:
        return

    import ray.data  # late: it imports pandas, a second and a half for all who plan

    stage = stage_monitor.current_stage()

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        # Ray Data would bring the text of an exception, without its type.
        try:
            with monitored(stage, "task", row["number"], log_death=True):
                return {"number": row["number"], "json": call(row["json"]), "error": b""}
        except Exception as error:
            return {
                "number": row["number"],
                "json": "",
                "error": pickle.dumps(wrap_error(error, current_process_info())),
            }

    wait_for_capacity([{"CPU": 1.0}], label)
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours says the same in one line
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    dataset = ray.data.from_items([task._asdict() for task in tasks], override_num_blocks=len(tasks))
    size = None if workers is None else min(workers, len(tasks))
    # Ray Data does a task again whose process or node was lost, however often; a mistake in a task is not tried again.
    dataset = dataset.map(answer, compute=ray.data.TaskPoolStrategy(size=size))
    for row in dataset.iter_rows():
        check_new_nodes()  # an autoscaler adds them while tasks wait, and they take tasks at once
        if row["error"]:
            raise pickle.loads(row["error"])
        yield _Numbered(row["number"], row["json"])
