"""A job runs once for each identity, and only a finished output counts as its artifact."""

import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from jobs.frame.artifact import RECORD, Artifact, content_digest, open_artifact, write_record
from jobs.frame.fields import input_artifact, source_files
from jobs.frame.forgetting import FORGOTTEN
from jobs.frame.job import Job
from jobs.frame.job_run import run_job
from jobs.frame.record import InputRecord
from jobs.frame.references import marked_inputs
from jobs.frame.stage import Context, Stage


@dataclass(frozen=True, kw_only=True)
class Execution:
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    words: int = 3
    text: str | None = source_files(None)
    verifier: str | None = source_files(None)
    upstream: str | None = input_artifact("corpus", default=None)
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True, kw_only=True)
class GrownConfig(Config):
    added_later: str = "as before"


def write_words(config: Config, context: Context) -> dict[str, Any]:
    context.output.write_bytes("words.txt", b"la " * config.words)
    return {"num_words": config.words}


def fake(run: Callable[[Any, Context], Mapping[str, Any]] = write_words, version: int = 1) -> Stage:
    return Stage(name="fake", version=version, kind="corpus", config=Config, run=run)


def job(config: Config | None = None, *, stage: Stage | None = None, **needs: Job | Artifact) -> Job:
    return Job(stage or fake(), "fake", config or Config(), needs)


def run(one: Job, folder: Path) -> Artifact:
    return run_job(one, Storage(str(folder)), group="test")


# Identity


def test_what_changes_no_result_changes_no_identity():
    same = [job(Config(words=3)), job(Config(execution=Execution(workers=8))), job(GrownConfig())]
    assert {one.id for one in same} == {job().id}


def test_what_changes_the_result_changes_the_identity():
    different = [
        job(),
        job(Config(words=4)),
        job(GrownConfig(added_later="otherwise")),
        job(stage=fake(version=2)),
        job(upstream=job()),
        job(upstream=job(Config(words=4))),
    ]
    assert len({one.id for one in different}) == len(different)


def test_a_source_is_known_by_content_not_by_path(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "copy.txt").write_text("one")
    (tmp_path / "other.txt").write_text("two")
    here, copied, other = (job(Config(text=str(tmp_path / name))).id for name in ("a.txt", "copy.txt", "other.txt"))
    assert here == copied != other


def test_a_glob_is_known_by_all_that_it_matches(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    before = job(Config(text=str(tmp_path / "*.txt"))).id
    (tmp_path / "b.txt").write_text("two")
    assert job(Config(text=str(tmp_path / "*.txt"))).id != before


def test_which_function_of_a_file_is_called_is_part_of_the_identity(tmp_path: Path):
    file = tmp_path / "verifiers.py"
    file.write_text("def right(): ...\ndef wrong(): ...\n")
    right, wrong = (job(Config(verifier=f"{file}:{name}")) for name in ("right", "wrong"))
    assert right.id != wrong.id
    assert right.sources == wrong.sources


def test_a_path_that_matches_nothing_names_its_field():
    with pytest.raises(ValueError, match=r"fake: text: 'nowhere/\*.txt' matches no file"):
        job(Config(text="nowhere/*.txt")).id  # noqa: B018 - the identity reads the sources


def test_an_input_given_by_default_and_one_written_out_are_the_same():
    @dataclass(frozen=True, kw_only=True)
    class Defaulted:
        upstream: str = input_artifact("corpus", default="fake")

    stage = Stage(name="late", version=1, kind="corpus", config=Defaulted, run=write_words)
    need = {"upstream": job()}
    by_name, by_location = (Job(stage, "late", Defaulted(upstream=value), need) for value in ("fake", "s3://b/fake-1"))
    assert by_name.id == by_location.id


def test_inputs_in_lists_and_mappings_are_found_under_their_keys():
    @dataclass(frozen=True, kw_only=True)
    class Many:
        models: dict[str, str] = input_artifact("model", "reward_model")
        more: list[str] = input_artifact("corpus")

    inputs = marked_inputs(Many(models={"before": "sft", "after": "rlhf"}, more=["a", "b"]))
    assert [(path, value) for path, value, _ in inputs] == [
        ("models.before", "sft"),
        ("models.after", "rlhf"),
        ("more.0", "a"),
        ("more.1", "b"),
    ]


# Artifacts


def test_a_job_is_done_once_and_recorded(tmp_path: Path):
    calls: list[int] = []

    def counted(config: Config, context: Context) -> dict[str, Any]:
        calls.append(1)
        return write_words(config, context)

    first = run(job(stage=fake(counted)), tmp_path)
    second = run(job(stage=fake(counted)), tmp_path)
    assert len(calls) == 1
    assert first.record == second.record
    assert second.summary == {"num_words": 3}
    assert second.record.config["execution"] == {"workers": 1}
    assert sorted(os.listdir(tmp_path / first.id)) == ["artifact.json", "words.txt"]


def test_a_failed_run_leaves_no_artifact_and_the_next_run_finds_its_files(tmp_path: Path):
    def broken(config: Config, context: Context) -> dict[str, Any]:
        if context.output.exists("half.txt"):
            return {"resumed": True}
        context.output.write_bytes("half.txt", b"half")
        raise RuntimeError("killed here")

    one = job(stage=fake(broken))
    with pytest.raises(RuntimeError, match="killed here"):
        run(one, tmp_path)
    assert (tmp_path / one.id / "half.txt").exists()
    assert open_artifact(str(tmp_path / one.id)) is None
    assert run(one, tmp_path).summary == {"resumed": True}


def test_an_input_that_is_not_finished_is_refused_with_the_command_that_makes_it(tmp_path: Path):
    with pytest.raises(ValueError, match="is not in .*run it first: raymill run fake"):
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


def test_a_record_names_sources_and_inputs_down_to_their_bytes(tmp_path: Path):
    (tmp_path / "a.txt").write_text("abc")
    upstream = job(Config(text=str(tmp_path / "a.txt")))
    made = run(upstream, tmp_path / "store")
    below = run(job(Config(words=1), upstream=upstream), tmp_path / "store")
    abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert made.record.sources == {"text": {str(tmp_path / "a.txt"): abc}}
    assert below.record.inputs["upstream"] == InputRecord(id=made.id, digest=made.digest, url=made.storage.url)


def test_the_content_digest_is_of_results_only(tmp_path: Path):
    storage = Storage(str(tmp_path))
    storage.write_bytes("words.txt", b"la")
    before = content_digest(storage)
    for name in (RECORD, "lease.json", "metrics.jsonl", "checkpoints/step-1/a", "logs/worker.log"):
        storage.write_bytes(name, b"noise")
    assert content_digest(storage) == before
    storage.write_bytes("more.txt", b"la")
    assert content_digest(storage) != before


def test_a_foreign_model_folder_is_an_artifact_known_by_content(tmp_path: Path):
    for name in ("one", "two"):
        storage = Storage(str(tmp_path / name))
        storage.write_json("config.json", {"model_type": "llama"})
        storage.write_bytes("model.safetensors", b"weights")
    one, two = (open_artifact(str(tmp_path / name)) for name in ("one", "two"))
    assert one and two and one.id == two.id and one.model.url == str(tmp_path / "one")
    Storage(str(tmp_path / "two")).write_bytes("model.safetensors", b"others!")
    changed = open_artifact(str(tmp_path / "two"))
    assert changed and changed.id != one.id


def test_a_model_folder_without_weights_is_no_artifact(tmp_path: Path):
    Storage(str(tmp_path)).write_json("config.json", {"model_type": "llama"})
    assert open_artifact(str(tmp_path)) is None


# Leases


def test_a_run_that_lost_its_lease_declares_no_artifact_and_leaves_the_new_holders_lease(tmp_path: Path):
    def overtaken(config: Config, context: Context) -> dict[str, Any]:
        context.output.remove("lease.json")
        context.output.write_json("lease.json", {"holder": "other", "host": "elsewhere", "pid": 1, "time": time.time()})
        return write_words(config, context)

    one = job(stage=fake(overtaken))
    with pytest.raises(RuntimeError, match="another one has taken"):
        run(one, tmp_path)
    assert open_artifact(str(tmp_path / one.id)) is None
    assert Storage(str(tmp_path / one.id)).read_json("lease.json")["holder"] == "other"


def test_of_two_runs_at_once_one_does_the_work(tmp_path: Path):
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


# What changes between two attempts


def interrupted(one: Job, store: Path) -> None:
    """Run a job that is killed after it has written a file."""

    def leave(config: Config, context: Context) -> dict[str, Any]:
        context.output.write_bytes("half.txt", b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(one, stage=fake(leave)), store)


def report_leftovers(config: Config, context: Context) -> dict[str, Any]:
    return {"resumed": context.output.exists("half.txt")}


def test_a_killed_run_is_resumed_in_a_store_that_was_moved(tmp_path: Path):
    upstream = job(Config(words=4))
    run(upstream, tmp_path / "store")
    interrupted(job(upstream=upstream), tmp_path / "store")
    shutil.move(tmp_path / "store", tmp_path / "moved")
    assert run(job(stage=fake(report_leftovers), upstream=upstream), tmp_path / "moved").summary == {"resumed": True}


def test_a_killed_run_with_another_input_is_not_resumed(tmp_path: Path):
    upstream = job(Config(words=4))
    made = run(upstream, tmp_path)
    interrupted(job(upstream=upstream), tmp_path)
    write_record(made.storage, replace(made.record, digest="rebuilt"))
    assert run(job(stage=fake(report_leftovers), upstream=upstream), tmp_path).summary == {"resumed": False}


def test_a_stage_that_cannot_forget_finishes_when_something_is_forgotten_meanwhile(tmp_path: Path):
    def forgetting(config: Config, context: Context) -> dict[str, Any]:
        Storage(str(tmp_path)).write_jsonl(FORGOTTEN, ["s/1"])
        return write_words(config, context)

    assert run(job(stage=fake(forgetting)), tmp_path).summary == {"num_words": 3}
