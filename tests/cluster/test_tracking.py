"""The metrics log is complete and in order, also when the run is killed and resumed."""

import json
import pickle
import uuid
from pathlib import Path

import pytest

from cluster.metrics_log import METRICS_LOG, read_lines, read_metrics
from cluster.storage import Storage
from cluster.tracking import Tracker


def tracker(storage: Storage) -> Tracker:
    return Tracker(storage=storage, run_id="run-1", name="run", group="tests")


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "folder" else f"memory://log-{uuid.uuid4().hex[:8]}")


def steps(storage: Storage) -> list[float]:
    return [line["step"] for line in read_metrics(storage)]


def test_each_step_is_one_line(storage: Storage):
    first = tracker(storage)
    first.log(1, {"train/loss": 2.5})
    first.log(2, {"train/loss": 2, "perf/tokens_per_s": 10.0})
    first.close()
    lines = read_metrics(storage)
    assert [{key: line[key] for key in line if key != "time"} for line in lines] == [
        {"step": 1, "train/loss": 2.5},
        {"step": 2, "train/loss": 2.0, "perf/tokens_per_s": 10.0},
    ]


def test_a_closed_tracker_can_continue_its_log(storage: Storage):
    first = tracker(storage)
    first.log(1, {"a": 1.0})
    first.close()
    first.log(2, {"a": 1.0})
    first.close()
    assert steps(storage) == [1, 2]


def test_resume_removes_the_steps_that_will_be_repeated(storage: Storage):
    killed = tracker(storage)
    for step in (1, 2, 3, 4):
        killed.log(step, {"train/loss": 1.0})
    killed.close()
    resumed = tracker(storage)
    resumed.resume(2)  # the last checkpoint
    resumed.log(3, {"train/loss": 0.5})
    resumed.close()
    assert steps(storage) == [1, 2, 3]
    assert read_metrics(storage)[-1]["train/loss"] == 0.5


def test_a_line_that_a_kill_cut_off_is_removed(tmp_path: Path):
    complete_line = json.dumps({"step": 1, "time": 0.0, "a": 1.0})
    (tmp_path / METRICS_LOG).write_text(f'{complete_line}\n{{"step": 2, "ti')
    storage = Storage(str(tmp_path))
    assert read_lines(storage) == [complete_line]
    resumed = tracker(storage)
    resumed.log(2, {"a": 2.0})
    resumed.close()
    assert steps(storage) == [1, 2]


def test_without_a_log_there_are_no_metrics(storage: Storage):
    assert read_metrics(storage) == []
    resumed = tracker(storage)
    resumed.resume(0)
    assert read_metrics(storage) == []


def test_a_tracker_can_be_pickled_before_it_logs(storage: Storage):
    sent = pickle.loads(pickle.dumps(tracker(storage)))
    sent.log(1, {"a": 1.0})
    sent.close()
    assert steps(storage) == [1]
