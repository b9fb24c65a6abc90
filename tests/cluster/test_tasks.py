"""Tasks are passed as typed values, each runs once, and the results come in the order of the tasks."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.storage import Storage
from cluster.tasks import run_tasks
from cluster.worker_errors import WorkerError, original_error


@dataclass(frozen=True)
class Task:
    base: int
    exponents: list[int]


@dataclass(frozen=True)
class Powers:
    powers: list[int]
    task: Task


TASKS = [Task(base, [2, 3]) for base in (5, 2, 4)]
EXPECTED = [Powers([25, 125], TASKS[0]), Powers([4, 8], TASKS[1]), Powers([16, 64], TASKS[2])]


def power(task: Task) -> Powers:
    return Powers([task.base**exponent for exponent in task.exponents], task)


def refuse(task: Task) -> Powers:
    raise ValueError(f"base {task.base}: done already")


@pytest.mark.usefixtures("without_ray")
def test_a_task_that_has_a_result_does_not_run_again(tmp_path: Path) -> None:
    results = Storage(str(tmp_path))
    assert run_tasks(power, TASKS, result_type=Powers, workers=None, label="powers", result_folder=results) == EXPECTED
    assert run_tasks(refuse, TASKS, result_type=Powers, workers=None, label="powers", result_folder=results) == EXPECTED
    with pytest.raises(ValueError, match="base 7: done already"):
        run_tasks(
            refuse, [*TASKS, Task(7, [])], result_type=Powers, workers=None, label="powers", result_folder=results
        )


@pytest.mark.usefixtures("without_ray")
def test_a_task_whose_result_has_another_form_runs_again(tmp_path: Path) -> None:
    results = Storage(str(tmp_path))
    run_tasks(power, TASKS, result_type=Powers, workers=None, label="powers", result_folder=results)
    results.write_json(results.files()[0], {"result": 25})
    assert run_tasks(power, TASKS, result_type=Powers, workers=None, label="powers", result_folder=results) == EXPECTED


def test_without_workers_tasks_run_in_this_process_for_a_debugger() -> None:
    seen: list[int] = []

    def remember(task: Task) -> Powers:
        seen.append(task.base)
        return power(task)

    assert run_tasks(remember, TASKS, result_type=Powers, workers=0, label="powers") == EXPECTED
    assert seen == [5, 2, 4]
    with pytest.raises(ValueError, match="base 5: done already") as raised:
        run_tasks(refuse, TASKS, result_type=Powers, workers=0, label="powers")
    assert raised.traceback[-1].name == "refuse"


@pytest.mark.usefixtures("without_ray")
def test_no_task_gives_no_result() -> None:
    assert run_tasks(power, [], result_type=Powers, workers=None, label="powers") == []


@pytest.mark.slow
def test_on_ray_an_exception_in_a_task_keeps_its_type(ray_session: None) -> None:
    assert run_tasks(power, TASKS, result_type=Powers, workers=2, label="powers") == EXPECTED
    with pytest.raises(WorkerError, match="base 5: done already") as caught:
        run_tasks(refuse, TASKS[:1], result_type=Powers, workers=2, label="powers")
    assert isinstance(original_error(caught.value), ValueError)
