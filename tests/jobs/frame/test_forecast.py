"""Forecasts use earlier runs, and the forecast of a finished stage has the measured values."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster import resource_usage
from cluster.failures import JobFailed
from cluster.storage import Storage
from jobs.frame.artifact import open_artifact, write_record
from jobs.frame.calibration import Machine
from jobs.frame.cost_model import predict
from jobs.frame.earlier_runs import EarlierRun
from jobs.frame.forecast import forecast_jobs, forecast_stage, measured_forecast
from jobs.frame.forecast_table import forecast_table
from jobs.frame.job import Job
from jobs.frame.job_run import run_job
from jobs.frame.stage import Context, Stage
from jobs.frame.workload import Processes, Workload

MACHINE = Machine(processor="a", cores=2, python_s=0.02, step_flops=2e10, product_flops=3e10, bfloat16_speed=0.05)
TRAINING = Workload(processes=[Processes(kind="trainer", number=2, memory_gib=0.2)], flop=1e13, steps=400, disk_gib=0.1)
GIB = 2**30


def test_an_earlier_run_of_the_stage_corrects_the_calibration():
    model = predict(TRAINING, MACHINE)
    run = EarlierRun("sft-1", "sft", 3 * model.seconds, model.memory_gib + 1.0, TRAINING)
    half = dataclasses.replace(TRAINING, flop=TRAINING.flop / 2, steps=200)
    plain, corrected = forecast_stage("sft", half, MACHINE), forecast_stage("sft", half, MACHINE, [run])
    assert plain.seconds is not None and plain.memory_gib is not None
    assert corrected.seconds == pytest.approx(3 * plain.seconds)
    assert corrected.memory_gib == pytest.approx(plain.memory_gib + 1.0)
    assert (plain.basis, corrected.basis) == ("calibration", "like sft-1")


@pytest.mark.parametrize("stage", ["reward", "sft"])
def test_earlier_runs_of_other_stages_or_of_very_different_workloads_are_ignored(stage: str):
    much = dataclasses.replace(TRAINING, flop=100 * TRAINING.flop) if stage == "sft" else TRAINING
    run = EarlierRun(f"{stage}-1", stage, 1.0, 1.0, much)
    assert forecast_stage("sft", TRAINING, MACHINE, [run]) == forecast_stage("sft", TRAINING, MACHINE)


def test_time_and_memory_on_gpus_are_not_forecast():
    forecast = forecast_stage("sft", dataclasses.replace(TRAINING, on_gpu=True), MACHINE)
    assert (forecast.seconds, forecast.memory_gib, forecast.disk_gib) == (None, None, 0.1)
    assert "?" in forecast_table({"sft": forecast})[1]


def write_file(config: Any, context: Context) -> Mapping[str, Any]:
    context.output.write_bytes("made", b"x" * 1000)
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    gib: float = 1.0


def stage(name: str = "sft") -> Stage:
    def workload(config: Config, planned: Any) -> Workload:
        return Workload(processes=[Processes(kind="trainer", memory_gib=config.gib)], disk_gib=config.gib)

    return Stage(name=name, version=1, kind="model", config=Config, run=write_file, workload=workload)


def job(gib: float = 1.0, name: str = "sft") -> Job:
    return Job(stage(name), name, Config(gib=gib), {})


def test_a_finished_stage_shows_its_measurements_and_other_stages_are_forecast_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = Storage(str(tmp_path))
    # No memory is measured if this process has not started Ray.
    monkeypatch.setattr(resource_usage, "sample_usage", lambda root_pid: None)
    artifact = run_job(job(), store, wandb_group="test")
    measured = artifact.record.measured
    assert measured.disk_gib is not None and measured.machine is not None
    assert measured.disk_gib * GIB >= 1000 and measured.machine.cores >= 1 and not measured.resumed
    assert measured_forecast(artifact).seconds == artifact.record.wall_s
    # An earlier run is used only if its memory was measured.
    assert measured.peak_memory_gib is None
    assert forecast_jobs({"sft": job(2.0)}, store)["sft"].basis == "calibration"
    measured = dataclasses.replace(measured, peak_memory_gib=1.5)
    write_record(artifact.storage, dataclasses.replace(artifact.record, measured=measured))
    forecasts = forecast_jobs({"sft": job(), "other": job(2.0)}, store)
    assert forecasts["sft"].basis == "measured" and forecasts["other"].basis == f"like {artifact.id}"
    assert forecast_table(forecasts)[-1].startswith("still to do")


def test_the_time_of_a_resumed_run_is_unknown(tmp_path: Path):
    one, store = job(), Storage(str(tmp_path))
    failing = dataclasses.replace(one, stage=dataclasses.replace(one.stage, run=lambda config, context: 1 / 0))
    with pytest.raises(JobFailed, match="ZeroDivisionError"):
        run_job(failing, store, wandb_group="test")
    run_job(one, store, wandb_group="test")
    artifact = open_artifact(store / one.id)
    assert artifact is not None and artifact.record.measured.resumed and measured_forecast(artifact).seconds is None
