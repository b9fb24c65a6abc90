"""A stage is rejected only if it clearly needs more memory or disk than is free.

The error has the needed and the free amount and a remedy.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from jobs import pretrain, serve, vocabulary
from jobs.frame import pipeline_run
from jobs.frame.forecast import Forecast
from jobs.frame.job import Job
from jobs.frame.pipeline import Pipeline
from jobs.frame.shortages import describe_shortages, find_shortages, free_local_memory_bytes
from jobs.frame.stage import Context, Stage
from jobs.frame.workload import Processes, Workload

GIB = 2**30
PENDING = {"corpus": Forecast(60.0, 1.0, 2.0, "calibration"), "pretrain": Forecast(600.0, 30.0, 5.0, "calibration")}


def shortages(
    folder: Path, memory_gib: float | None, disk_gib: float | None, written_bytes: Mapping[str, int] | None = None
) -> list[str]:
    available_memory_bytes, available_disk_bytes = (
        None if gib is None else int(gib * GIB) for gib in (memory_gib, disk_gib)
    )
    return describe_shortages(
        PENDING,
        Storage(str(folder)),
        available_memory_bytes=available_memory_bytes,
        available_disk_bytes=available_disk_bytes,
        memory_remedies=dict.fromkeys(PENDING, "the batch"),
        written_bytes=written_bytes or {},
    )


def test_the_error_for_too_little_memory_has_the_needed_and_the_free_memory_and_a_remedy(tmp_path: Path):
    (message,) = shortages(tmp_path, 16, None)
    assert message.startswith(
        "pretrain: needs about 30.0 GiB of memory, but this machine has only 16.0 GiB free; decrease the batch, stop "
    )


def test_the_error_for_too_little_disk_names_the_first_stage_that_does_not_fit(tmp_path: Path):
    (message,) = shortages(tmp_path, None, 5)
    assert message.startswith(f"pretrain: needs about 5.00 GiB of disk, but {tmp_path} has only 3.00 GiB left for it;")


@pytest.mark.parametrize(("memory", "disk"), [(None, None), (25, 8), (25, 6)])
def test_a_stage_that_may_fit_is_not_rejected(tmp_path: Path, memory: int | None, disk: int | None):
    assert not shortages(tmp_path, memory, disk)


def test_bytes_that_an_interrupted_stage_has_written_are_not_counted_again(tmp_path: Path):
    assert not shortages(tmp_path, None, 3, written_bytes={"pretrain": 4 * GIB})
    assert shortages(tmp_path, None, 3, written_bytes={"pretrain": 1 * GIB})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    gib: float = 1.0


def do_nothing(config: Config, context: Context) -> Mapping[str, Any]:
    return {}


def stage() -> Stage:
    def workload(config: Config, planned: Any) -> Workload:
        return Workload(processes=[Processes(kind="trainer", memory_gib=config.gib)], disk_gib=config.gib)

    return Stage(name="sft", version=1, kind="model", config=Config, run=do_nothing, workload=workload)


def job(gib: float) -> Job:
    return Job(stage(), "sft", Config(gib=gib), {})


@pytest.mark.parametrize(
    ("stage", "config", "remedy"),
    [
        (serve.STAGE, serve.ServeConfig(model="sft"), "execution.kv_cache_gib, the size of the model"),
        (vocabulary.STAGE, vocabulary.VocabularyConfig(), "the number of workers"),
        (
            pretrain.STAGE,
            pretrain.PretrainConfig(),
            "execution.micro_batch_size, the number of workers or the size of the model",
        ),
    ],
)
def test_the_remedy_for_too_little_memory_names_only_settings_that_the_stage_has(
    tmp_path: Path, stage: Stage, config: Any, remedy: str
):
    jobs = {stage.name: Job(stage, stage.name, config, {})}
    pipeline = Pipeline("test", Storage(str(tmp_path)), jobs, {}, {})
    (message,) = find_shortages(pipeline, {stage.name: Forecast(1.0, 1e6, None, "calibration")})
    assert f"decrease {remedy}, stop other programs" in message


def test_a_run_without_enough_memory_and_disk_is_rejected_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def start(address: str | None) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(pipeline_run, "connect", start)
    much = Pipeline("test", Storage(str(tmp_path / "runs")), {"sft": job(1e6)}, {}, {})
    with pytest.raises(ValueError, match=r"sft: needs about \d+\.\d GiB of memory, but this machine .*\nsft: .* disk"):
        pipeline_run.run_pipeline(much)


def test_the_memory_of_this_machine_does_not_limit_a_run_that_joins_a_cluster(monkeypatch: pytest.MonkeyPatch):
    assert free_local_memory_bytes(None)
    assert free_local_memory_bytes("ray://head:10001") is None
    assert free_local_memory_bytes("local")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert free_local_memory_bytes(None) is None


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a file system of its own")
def test_a_store_on_a_file_system_that_is_too_small_is_rejected(tmp_path: Path):
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from test_shortages import job, pipeline_run, Pipeline, Storage\n"
        "few = Pipeline('test', Storage(sys.argv[3]), {'sft': job(0.6)}, {}, {})\n"
        "pipeline_run.run_pipeline(few)\n"
    )
    root, here = str(Path(__file__).parents[3]), str(Path(__file__).parent)
    shell = 'mount -t tmpfs -o size=400m tmpfs "$1" && exec "$2" -c "$3" "$4" "$5" "$1"'
    inside = ["unshare", "-m", "sh", "-c", shell, "sh", str(tmp_path), sys.executable, program, root, here]
    answer = subprocess.run(inside, capture_output=True, text=True)
    if "unshare" in answer.stderr or "mount:" in answer.stderr:
        pytest.skip(f"no mounts here: {answer.stderr.strip()}")
    assert (
        "ValueError: sft: needs about 0.60 GiB of disk" in answer.stderr and " has only 0.39 GiB left" in answer.stderr
    )
