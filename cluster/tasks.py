"""One function over many independent tasks, as a Ray Data pipeline.

Stages with shuffles meet in storage, not in memory: each task writes its own files and answers with their description.
The answers are kept beside the files, so a task that was done before a kill is not done again, and what a later half
reads never depends on the workers.
"""

import hashlib
import json
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from cluster import watch
from cluster.causes import to_bring
from cluster.progress import Progress
from cluster.room import wait_for_room
from cluster.storage import Storage
from cluster.visibility import ask_new_nodes
from cluster.watched import own_place, watched


def run_tasks(
    function: Callable[[Any], dict[str, Any]],
    tasks: Sequence[Any],
    *,
    workers: int | None,
    label: str,
    answers: Storage | None = None,
) -> list[dict[str, Any]]:
    """`function(task)` for every task, in the tasks' order. Tasks and answers are JSON values.

    `workers` bounds how many run at once, each on one CPU; None leaves it to the cluster's size. With `answers` each
    answer is written there when its task is done, named by the task's content, and a task that has one is not done
    again. Whoever removes the files that answers speak of must remove the answers first.
    """
    there = set() if answers is None else set(answers.files())
    found: dict[int, dict[str, Any]] = {}
    missing: list[tuple[int, Any]] = []
    for index, task in enumerate(tasks):
        name = _answer_name(task)
        if answers is not None and name in there:
            found[index] = answers.read_json(name)
        else:
            missing.append((index, task))
    with Progress(label, len(tasks), "tasks", done=len(found)) as progress:
        for index, answer in _on_ray(partial(_answer, function, answers), missing, workers, label):
            found[index] = answer
            progress.update(len(found))
    return [found[index] for index in range(len(tasks))]


def _answer(function: Callable[[Any], dict[str, Any]], answers: Storage | None, task: Any) -> dict[str, Any]:
    answer = function(task)
    if answers is not None:
        answers.write_json(_answer_name(task), answer)
    return answer


def _answer_name(task: Any) -> str:
    return f"{hashlib.sha256(json.dumps(task).encode()).hexdigest()[:24]}.json"


def _on_ray(
    function: Callable[[Any], dict[str, Any]], tasks: Iterable[tuple[int, Any]], workers: int | None, label: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, answer) of every numbered task, in whatever order they end."""
    rows = [{"index": index, "task": json.dumps(task)} for index, task in tasks]
    if not rows:
        return

    import ray.data  # late: it brings pandas, a second and a half for all who plan

    stage = watch.current_stage()

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        # Ray Data would bring the text of an exception, without its type.
        try:
            with watched(stage, "task", row["index"], is_told=True):
                given = json.dumps(function(json.loads(row["task"])))
        except Exception as error:
            return {"index": row["index"], "answer": "", "error": pickle.dumps(to_bring(error, own_place()))}
        return {"index": row["index"], "answer": given, "error": b""}

    wait_for_room([{"CPU": 1.0}], label)
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours says the same in one line
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    size = None if workers is None else min(workers, len(rows))
    # Ray Data does a task again whose process or node was lost, however often; a mistake in a task is not tried again.
    dataset = dataset.map(answer, compute=ray.data.TaskPoolStrategy(size=size))
    for row in dataset.iter_rows():
        ask_new_nodes()  # an autoscaler adds them while tasks wait, and they take tasks at once
        if row["error"]:
            raise pickle.loads(row["error"])
        yield row["index"], json.loads(row["answer"])
