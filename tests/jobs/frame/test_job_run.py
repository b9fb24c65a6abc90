"""A job runs once, a killed run is resumed, and a folder is an artifact only when it is finished."""

import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from jobs.frame.artifact import Artifact, open_artifact, write_record
from jobs.frame.fields import input_artifact, source_files
from jobs.frame.forgetting import FORGOTTEN
from jobs.frame.job import Job
from jobs.frame.job_run import run_job
from jobs.frame.record import InputRecord
from jobs.frame.stage import Context, Stage


@dataclass(frozen=True, kw_only=True)
class Config:
    words: int = 3
    text: str | None = source_files(None)
    upstream: str | None = input_artifact("corpus", default=None)


def write_words(config: Config, context: Context) -> dict[str, Any]:
    context.output.write_bytes("words.txt", b"la " * config.words)
    return {"num_words": config.words}


def fake(run: Callable[[Any, Context], Mapping[str, Any]] = write_words) -> Stage:
    return Stage(name="fake", version=1, kind="corpus", config=Config, run=run)


def job(config: Config | None = None, *, stage: Stage | None = None, **planned: Job | Artifact) -> Job:
    return Job(stage or fake(), "fake", config or Config(), planned)


def run(this_job: Job, folder: Path) -> Artifact:
    return run_job(this_job, Storage(str(folder)), wandb_group="test")


def test_a_job_runs_once_and_is_recorded(tmp_path: Path):
    calls: list[int] = []

    def counted(config: Config, context: Context) -> dict[str, Any]:
        calls.append(1)
        return write_words(config, context)

    first = run(job(stage=fake(counted)), tmp_path)
    second = run(job(stage=fake(counted)), tmp_path)
    assert len(calls) == 1
    assert first.record == second.record
    assert second.summary == {"num_words": 3}
    assert second.record.config == {"words": 3, "text": None, "upstream": None}
    assert sorted(os.listdir(tmp_path / first.id)) == ["artifact.json", "words.txt"]


def test_a_failed_run_leaves_no_artifact_and_the_next_run_finds_its_files(tmp_path: Path):
    def broken(config: Config, context: Context) -> dict[str, Any]:
        if context.output.exists("half.txt"):
            return {"resumed": True}
        context.output.write_bytes("half.txt", b"half")
        raise RuntimeError("killed here")

    this_job = job(stage=fake(broken))
    with pytest.raises(RuntimeError, match="killed here"):
        run(this_job, tmp_path)
    assert (tmp_path / this_job.id / "half.txt").exists()
    assert open_artifact(str(tmp_path / this_job.id)) is None
    assert run(this_job, tmp_path).summary == {"resumed": True}


def test_the_error_for_an_unfinished_input_contains_the_command_that_makes_it(tmp_path: Path):
    with pytest.raises(ValueError, match="is not in .*make it first with `raymill run fake"):
        run(job(upstream=job(Config(words=9))), tmp_path)


def test_inputs_are_checked_before_anything_is_written(tmp_path: Path):
    def refuse(config: Config, inputs: Mapping[str, Artifact]) -> None:
        raise ValueError("sizes do not fit")

    stage = Stage(
        name="fake",
        version=1,
        kind="corpus",
        config=Config,
        run=write_words,
        check_inputs=refuse,
    )
    with pytest.raises(ValueError, match="sizes do not fit"):
        run(job(stage=stage), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_record_contains_the_fingerprints_of_sources_and_the_digests_of_inputs(tmp_path: Path):
    (tmp_path / "a.txt").write_text("abc")
    upstream = job(Config(text=str(tmp_path / "a.txt")))
    made = run(upstream, tmp_path / "store")
    below = run(job(Config(words=1), upstream=upstream), tmp_path / "store")
    abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert made.record.sources == {"text": {str(tmp_path / "a.txt"): abc}}
    assert below.record.inputs["upstream"] == InputRecord(id=made.id, digest=made.digest, url=made.storage.url)


def test_a_run_that_lost_its_lease_finishes_no_artifact_and_keeps_the_new_lease(tmp_path: Path):
    def overtaken(config: Config, context: Context) -> dict[str, Any]:
        context.output.remove("lease.json")
        context.output.write_json("lease.json", {"holder": "other", "host": "elsewhere", "pid": 1, "time": time.time()})
        return write_words(config, context)

    this_job = job(stage=fake(overtaken))
    with pytest.raises(RuntimeError, match="did not renew its lease"):
        run(this_job, tmp_path)
    assert open_artifact(str(tmp_path / this_job.id)) is None
    assert Storage(str(tmp_path / this_job.id)).read_json("lease.json")["holder"] == "other"


def test_of_several_simultaneous_runs_of_a_job_only_one_does_the_work(tmp_path: Path):
    calls: list[int] = []

    def slow(config: Config, context: Context) -> dict[str, Any]:
        calls.append(1)
        time.sleep(0.2)
        return write_words(config, context)

    threads = [threading.Thread(target=run, args=(job(stage=fake(slow)), tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(calls) == 1


def run_and_interrupt(this_job: Job, store: Path) -> None:
    """Run a job that is interrupted after it has written the file half.txt."""

    def leave(config: Config, context: Context) -> dict[str, Any]:
        context.output.write_bytes("half.txt", b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(this_job, stage=fake(leave)), store)


def report_leftovers(config: Config, context: Context) -> dict[str, Any]:
    return {"resumed": context.output.exists("half.txt")}


def test_a_killed_run_is_resumed_in_a_store_that_was_moved(tmp_path: Path):
    upstream = job(Config(words=4))
    run(upstream, tmp_path / "store")
    run_and_interrupt(job(upstream=upstream), tmp_path / "store")
    shutil.move(tmp_path / "store", tmp_path / "moved")
    assert run(job(stage=fake(report_leftovers), upstream=upstream), tmp_path / "moved").summary == {"resumed": True}


def test_a_killed_run_is_not_resumed_if_an_input_has_changed(tmp_path: Path):
    upstream = job(Config(words=4))
    made = run(upstream, tmp_path)
    run_and_interrupt(job(upstream=upstream), tmp_path)
    write_record(made.storage, replace(made.record, digest="rebuilt"))
    assert run(job(stage=fake(report_leftovers), upstream=upstream), tmp_path).summary == {"resumed": False}


def test_a_stage_without_forget_finishes_if_documents_are_forgotten_during_its_run(tmp_path: Path):
    def forgetting(config: Config, context: Context) -> dict[str, Any]:
        Storage(str(tmp_path)).write_jsonl(FORGOTTEN, ["s/1"])
        return write_words(config, context)

    assert run(job(stage=fake(forgetting)), tmp_path).summary == {"num_words": 3}
