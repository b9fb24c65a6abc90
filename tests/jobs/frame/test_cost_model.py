"""More work is predicted to take longer, and measured runs of the demo are predicted within the promised bounds."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.plain import from_plain
from jobs.frame.calibration import Machine
from jobs.frame.cost_model import predict
from jobs.frame.stages import STAGES, find_stage
from jobs.frame.workload import Processes, Workload

MACHINE = Machine(processor="a", cores=2, python_s=0.02, step_flops=2e10, product_flops=3e10, bfloat16_speed=0.05)
TRAINING = Workload(processes=[Processes(kind="trainer", number=2, memory_gib=0.2)], flop=1e13, steps=400, disk_gib=0.1)
RUNS = [json.loads(line) for line in (Path(__file__).parent / "forecast_runs.jsonl").read_text().splitlines()]
"""Runs of the demo: workload, seconds and memory of each stage, and the calibration of the machine."""


@pytest.mark.parametrize(
    "larger",
    [
        {"flop": 2e13},
        {"steps": 800},
        {"python_s": 100.0},
        {"engine_steps": 10_000},
        {"precision": "bfloat16"},
        {"width": 64},
        {"processes": [Processes(kind="trainer", number=2), Processes(kind="engine")]},
    ],
    ids=lambda larger: next(iter(larger)),
)
def test_more_work_takes_longer(larger: Mapping[str, Any]):
    assert predict(dataclasses.replace(TRAINING, **larger), MACHINE).seconds > predict(TRAINING, MACHINE).seconds


def test_a_machine_of_half_the_speed_takes_twice_as_long_except_for_waiting():
    slow = dataclasses.replace(
        MACHINE, python_s=2 * MACHINE.python_s, step_flops=MACHINE.step_flops / 2, product_flops=1.5e10
    )
    assert 1.9 < predict(TRAINING, slow).seconds / predict(TRAINING, MACHINE).seconds < 2.0


@pytest.mark.parametrize("run", RUNS, ids=[f"{run['name']} on {run['on']}" for run in RUNS])
def test_predicted_time_is_within_30_percent_and_memory_within_20_percent(run: dict) -> None:
    cost = predict(from_plain(Workload, run["workload"]), Machine(**run["machine"]))
    assert cost.seconds == pytest.approx(run["seconds"], rel=0.3)
    assert cost.memory_gib == pytest.approx(run["memory_gib"], rel=0.2)


def test_every_stage_declares_its_workload():
    assert all(find_stage(name).workload is not None for name in STAGES)
