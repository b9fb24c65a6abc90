"""Tasks: typed there and back, each done once, their answers in the order of the tasks."""

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
class Answer:
    powers: list[int]
    task: Task


TASKS = [Task(base, [2, 3]) for base in (5, 2, 4)]
EXPECTED = [Answer([25, 125], TASKS[0]), Answer([4, 8], TASKS[1]), Answer([16, 64], TASKS[2])]


def power(task: Task) -> Answer:
    return Answer([task.base**exponent for exponent in task.exponents], task)


def refuse(task: Task) -> Answer:
    raise ValueError(f"base {task.base}: done already")


@pytest.mark.usefixtures("without_ray")
def test_a_task_that_has_an_answer_is_not_done_again(tmp_path: Path) -> None:
    answers = Storage(str(tmp_path))
    assert run_tasks(power, TASKS, returns=Answer, workers=None, label="powers", answers=answers) == EXPECTED
    assert run_tasks(refuse, TASKS, returns=Answer, workers=None, label="powers", answers=answers) == EXPECTED
    with pytest.raises(ValueError, match="base 7: done already"):
        run_tasks(refuse, [*TASKS, Task(7, [])], returns=Answer, workers=None, label="powers", answers=answers)


@pytest.mark.usefixtures("without_ray")
def test_a_task_whose_answer_has_another_form_is_done_again(tmp_path: Path) -> None:
    answers = Storage(str(tmp_path))
    run_tasks(power, TASKS, returns=Answer, workers=None, label="powers", answers=answers)
    answers.write_json(answers.files()[0], {"result": 25})
    assert run_tasks(power, TASKS, returns=Answer, workers=None, label="powers", answers=answers) == EXPECTED


def test_without_workers_tasks_run_in_this_process_for_a_debugger() -> None:
    seen: list[int] = []

    def remember(task: Task) -> Answer:
        seen.append(task.base)
        return power(task)

    assert run_tasks(remember, TASKS, returns=Answer, workers=0, label="powers") == EXPECTED
    assert seen == [5, 2, 4]
    with pytest.raises(ValueError, match="base 5: done already") as raised:
        run_tasks(refuse, TASKS, returns=Answer, workers=0, label="powers")
    assert raised.traceback[-1].name == "refuse"


@pytest.mark.usefixtures("without_ray")
def test_no_task_gives_no_answer() -> None:
    assert run_tasks(power, [], returns=Answer, workers=None, label="powers") == []


@pytest.mark.slow
def test_on_ray_a_mistake_in_a_task_keeps_its_type(ray_session: None) -> None:
    assert run_tasks(power, TASKS, returns=Answer, workers=2, label="powers") == EXPECTED
    with pytest.raises(WorkerError, match="base 5: done already") as caught:
        run_tasks(refuse, TASKS[:1], returns=Answer, workers=2, label="powers")
    assert isinstance(original_error(caught.value), ValueError)
