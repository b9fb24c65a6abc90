"""One function over many independent tasks, as a Ray Data pipeline.

The two data stages with shuffles meet in storage, not in memory: each task writes its own files and answers with their
description, so a task that was done before a kill is recognised by its files and a plan never depends on the workers.
"""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray.data

from cluster.tracking import Progress


def run_tasks(
    function: Callable[[Any], dict[str, Any]], tasks: Sequence[Any], *, workers: int | None, label: str
) -> list[dict[str, Any]]:
    """`function(task)` for every task, in the tasks' order. Tasks and answers are JSON values.

    `workers` bounds how many run at once, each on one CPU; None leaves it to the cluster's size.
    """
    rows = [{"index": index, "task": json.dumps(task)} for index, task in enumerate(tasks)]

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        return {"index": row["index"], "answer": json.dumps(function(json.loads(row["task"])))}

    ray.data.DataContext.get_current().enable_progress_bars = False  # ours says the same in one line
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset = dataset.map(answer, compute=ray.data.TaskPoolStrategy(size=workers))
    answers: dict[int, dict[str, Any]] = {}
    progress = Progress(label, len(tasks), "tasks")
    for row in dataset.iter_rows():  # in whatever order the tasks end
        answers[row["index"]] = json.loads(row["answer"])
        progress.update(len(answers))
    progress.close()
    return [answers[index] for index in range(len(tasks))]
