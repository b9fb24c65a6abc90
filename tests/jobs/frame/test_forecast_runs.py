"""The forecast against runs of the demo that were measured, on machines whose calibration is beside them."""

import json
from pathlib import Path

import pytest

from cluster.plain import from_plain
from jobs.frame.calibration import Machine
from jobs.frame.cost_model import predict
from jobs.frame.work import Work

RUNS = [json.loads(line) for line in (Path(__file__).parent / "forecast_runs.jsonl").read_text().splitlines()]
"""`artifact.json` of each stage says its work, seconds and memory; the machine's figures are those of `calibrate`."""


@pytest.mark.parametrize("run", RUNS, ids=[f"{run['name']} on {run['on']}" for run in RUNS])
def test_time_is_within_30_percent_and_memory_within_20(run: dict) -> None:
    told = predict(from_plain(Work, run["work"]), Machine(**run["machine"]))
    assert told.seconds == pytest.approx(run["seconds"], rel=0.3)
    assert told.memory_gib == pytest.approx(run["memory_gib"], rel=0.2)
