"""Forecasts grow with the work, learn from earlier runs, and refuse only what clearly cannot be held."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster import machine, resource_usage
from cluster.failures import WorkFailed
from cluster.storage import Storage
from jobs.frame import calibration, pipeline_run
from jobs.frame.artifact import open_artifact, write_record
from jobs.frame.calibration import Machine, calibrate
from jobs.frame.cost_model import predict
from jobs.frame.earlier_runs import EarlierRun
from jobs.frame.forecast import Forecast, forecast_jobs, forecast_stage, measured_forecast
from jobs.frame.forecast_table import forecast_table
from jobs.frame.job import Job
from jobs.frame.job_run import run_job
from jobs.frame.pipeline import Pipeline
from jobs.frame.shortages import describe_shortages, free_local_memory
from jobs.frame.stage import Context, Stage
from jobs.frame.stages import STAGES, stage_named
from jobs.frame.work import Processes, Work

MACHINE = Machine(processor="a", cores=2, python_s=0.02, step_flops=2e10, product_flops=3e10, bfloat16_speed=0.05)
TRAINING = Work(processes=[Processes(kind="trainer", number=2, own_gib=0.2)], flop=1e13, steps=400, disk_gib=0.1)


@pytest.mark.parametrize(
    "more",
    [
        {"flop": 2e13},
        {"steps": 800},
        {"python_s": 100.0},
        {"engine_steps": 10_000},
        {"precision": "bfloat16"},
        {"width": 64},
        {"processes": [Processes(kind="trainer", number=2), Processes(kind="engine")]},
    ],
    ids=lambda more: next(iter(more)),
)
def test_more_work_takes_longer(more: Mapping[str, Any]):
    before, after = predict(TRAINING, MACHINE), predict(dataclasses.replace(TRAINING, **more), MACHINE)
    assert before.seconds is not None and after.seconds is not None and after.seconds > before.seconds


def test_a_machine_of_half_the_speed_takes_twice_as_long_but_for_waits():
    slow = dataclasses.replace(
        MACHINE, python_s=2 * MACHINE.python_s, step_flops=MACHINE.step_flops / 2, product_flops=1.5e10
    )
    at_once, later = predict(TRAINING, MACHINE).seconds, predict(TRAINING, slow).seconds
    assert at_once is not None and later is not None and 1.9 < later / at_once < 2.0


def test_an_earlier_run_of_the_stage_corrects_what_the_calibration_says():
    model = predict(TRAINING, MACHINE)
    assert model.seconds is not None and model.memory_gib is not None
    run = EarlierRun("sft-1", "sft", 3 * model.seconds, model.memory_gib + 1.0, TRAINING)
    half = dataclasses.replace(TRAINING, flop=TRAINING.flop / 2, steps=200)
    plain, corrected = forecast_stage("sft", half, MACHINE), forecast_stage("sft", half, MACHINE, [run])
    assert plain.seconds is not None and plain.memory_gib is not None
    assert corrected.seconds == pytest.approx(3 * plain.seconds)
    assert corrected.memory_gib == pytest.approx(plain.memory_gib + 1.0)
    assert (plain.basis, corrected.basis) == ("calibration", "like sft-1")


@pytest.mark.parametrize("stage", ["reward", "sft"])
def test_runs_of_other_stages_and_of_quite_other_sizes_tell_nothing(stage: str):
    much = dataclasses.replace(TRAINING, flop=100 * TRAINING.flop) if stage == "sft" else TRAINING
    run = EarlierRun(f"{stage}-1", stage, 1.0, 1.0, much)
    assert forecast_stage("sft", TRAINING, MACHINE, [run]) == forecast_stage("sft", TRAINING, MACHINE)


def test_nothing_is_told_of_gpus_before_a_first_run():
    told = forecast_stage("sft", dataclasses.replace(TRAINING, on_gpu=True), MACHINE)
    assert (told.seconds, told.memory_gib, told.disk_gib) == (None, None, 0.1)
    assert "?" in forecast_table({"sft": told})[1]


GIB = 2**30
PENDING = {"corpus": Forecast(60.0, 1.0, 2.0, "calibration"), "pretrain": Forecast(600.0, 30.0, 5.0, "calibration")}


def short(
    folder: Path, memory_gib: float | None, disk_gib: float | None, written: Mapping[str, int] | None = None
) -> list[str]:
    free_memory, free_disk = (None if gib is None else int(gib * GIB) for gib in (memory_gib, disk_gib))
    return describe_shortages(
        PENDING,
        Storage(str(folder)),
        free_memory=free_memory,
        free_disk=free_disk,
        remedies=dict.fromkeys(PENDING, "the batch"),
        written=written or {},
    )


def test_too_little_memory_names_stage_need_rest_and_remedy(tmp_path: Path):
    (message,) = short(tmp_path, 16, None)
    assert message.startswith(
        "pretrain: needs about 30.0 GiB of memory, this machine has 16.0 GiB free; lower the batch, free "
    )


def test_too_little_disk_names_the_stage_at_which_it_ends(tmp_path: Path):
    (message,) = short(tmp_path, None, 5)
    assert message.startswith(f"pretrain: needs about 5.00 GiB of disk, {tmp_path} has 3.00 GiB left for it; free ")


@pytest.mark.parametrize(("memory", "disk"), [(None, None), (25, 8), (25, 6)])
def test_what_may_fit_or_is_not_known_is_not_refused(tmp_path: Path, memory: int | None, disk: int | None):
    assert not short(tmp_path, memory, disk)


def test_what_an_unfinished_stage_has_written_is_not_asked_for_again(tmp_path: Path):
    assert not short(tmp_path, None, 3, written={"pretrain": 4 * GIB})
    assert short(tmp_path, None, 3, written={"pretrain": 1 * GIB})


def write_file(config: Any, context: Context) -> Mapping[str, Any]:
    context.output.write_bytes("made", b"x" * 1000)
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    gib: float = 1.0


def stage(name: str = "sft") -> Stage:
    def work(config: Config, needs: Any) -> Work:
        return Work(processes=[Processes(kind="trainer", own_gib=config.gib)], disk_gib=config.gib)

    return Stage(name=name, version=1, kind="model", config=Config, run=write_file, work=work)


def job(gib: float = 1.0, name: str = "sft") -> Job:
    return Job(stage(name), name, Config(gib=gib), {})


def test_a_run_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def start(address: str | None) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(pipeline_run, "connect", start)
    much = Pipeline("test", Storage(str(tmp_path / "runs")), {"sft": job(1e6)}, {}, {})
    with pytest.raises(ValueError, match=r"sft: needs about \d+\.\d GiB of memory, this machine has .*\nsft: .* disk"):
        pipeline_run.run_pipeline(much)


def test_a_cluster_that_is_joined_is_not_judged_by_this_machine(monkeypatch: pytest.MonkeyPatch):
    assert free_local_memory(None)
    assert free_local_memory("ray://head:10001") is None
    assert free_local_memory("local")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert free_local_memory(None) is None


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a file system of its own")
def test_a_store_on_a_small_file_system_is_refused(tmp_path: Path):
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from test_forecast import job, pipeline_run, Pipeline, Storage\n"
        "few = Pipeline('test', Storage(sys.argv[3]), {'sft': job(0.6)}, {}, {})\n"
        "pipeline_run.run_pipeline(few)\n"
    )
    root, here = str(Path(__file__).parents[3]), str(Path(__file__).parent)
    shell = 'mount -t tmpfs -o size=400m tmpfs "$1" && exec "$2" -c "$3" "$4" "$5" "$1"'
    inside = ["unshare", "-m", "sh", "-c", shell, "sh", str(tmp_path), sys.executable, program, root, here]
    answer = subprocess.run(inside, capture_output=True, text=True)
    if "unshare" in answer.stderr or "mount:" in answer.stderr:
        pytest.skip(f"no mounts here: {answer.stderr.strip()}")
    assert "ValueError: sft: needs about 0.60 GiB of disk" in answer.stderr and " has 0.39 GiB left" in answer.stderr


def test_what_is_done_shows_what_it_took_and_tells_of_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Storage(str(tmp_path))
    monkeypatch.setattr(resource_usage, "sample_usage", lambda root: None)  # as where no raylet is below this process
    artifact = run_job(job(), store, group="test")
    took = artifact.record.measured
    assert took.disk_gib * GIB >= 1000 and took.machine.cores >= 1 and not took.resumed
    assert measured_forecast(artifact).seconds == artifact.record.wall_s
    # Without its memory the run tells nothing; with it, it does.
    assert took.peak_memory_gib is None
    assert forecast_jobs({"sft": job(2.0)}, store)["sft"].basis == "calibration"
    took = dataclasses.replace(took, peak_memory_gib=1.5)
    write_record(artifact.storage, dataclasses.replace(artifact.record, measured=took))
    told = forecast_jobs({"sft": job(), "other": job(2.0)}, store)
    assert told["sft"].basis == "measured" and told["other"].basis == f"like {artifact.id}"
    assert forecast_table(told)[-1].startswith("still to do")


def test_a_run_that_went_on_after_a_kill_has_no_time_of_its_own(tmp_path: Path):
    one, store = job(), Storage(str(tmp_path))
    failing = dataclasses.replace(one, stage=dataclasses.replace(one.stage, run=lambda config, context: 1 / 0))
    with pytest.raises(WorkFailed, match="ZeroDivisionError"):
        run_job(failing, store, group="test")
    run_job(one, store, group="test")
    artifact = open_artifact(store / one.id)
    assert artifact is not None and artifact.record.measured.resumed and measured_forecast(artifact).seconds is None


def test_a_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = calibrate()
    assert first.step_flops > 1e8 and first.product_flops > 1e8 and 0 < first.python_s < 5
    monkeypatch.setattr(calibration, "_measure", lambda: pytest.fail("measured again"))
    assert calibrate() == first
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 24 * 3600)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        calibrate()


def test_the_memory_of_a_session_is_that_of_all_its_processes(tmp_path: Path):
    raylet = tmp_path / "raylet"  # a session's workers are children of a process of this name
    shutil.copy(os.path.realpath(sys.executable), raylet)
    program = "import subprocess, sys, time; held = b'x' * (200 << 20); print(len(held), flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
    child = subprocess.Popen([str(raylet), "-c", program], stdout=subprocess.PIPE, env=environment)
    try:
        assert child.stdout is not None and child.stdout.readline()
        with resource_usage.ResourceUsage() as during:
            time.sleep(1.5)
    finally:
        child.kill()
        child.wait()
    assert resource_usage.sample_usage(child.pid) is None  # it has ended, and there is no raylet below it
    assert during.peak_bytes is not None and during.peak_bytes > 200 << 20
    assert during.cpu_s is not None and 0 <= during.cpu_s < 60


@pytest.mark.parametrize(
    ("limit_name", "use_name", "kills_name", "droppable"),
    [
        ("memory.max", "memory.current", "memory.events", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "total_inactive_file"),
    ],
    ids=["v2", "v1"],
)
def test_a_control_group_bounds_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_name: str, use_name: str, kills_name: str, droppable: str
):
    (tmp_path / limit_name).write_text(f"{300 << 20}\n")
    (tmp_path / use_name).write_text(f"{200 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"{droppable} {50 << 20}\n")
    (tmp_path / kills_name).write_text("oom_kill 0\n")
    monkeypatch.setattr(machine, "cgroup_of", lambda pid: tmp_path)
    assert machine.free_memory_bytes() == 150 << 20
    (tmp_path / limit_name).write_text("max\n" if limit_name == "memory.max" else "9223372036854771712\n")
    free = machine.free_memory_bytes()
    assert free is not None and free > 150 << 20


def test_every_stage_tells_its_work():
    assert all(stage_named(name).work is not None for name in STAGES)
