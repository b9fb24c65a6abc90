"""A job's id changes with everything that changes its result, and with nothing else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data.document import Source
from jobs.corpus import STAGE as CORPUS
from jobs.corpus import CorpusConfig
from jobs.frame.fields import input_artifact, source_files
from jobs.frame.job import Job
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


def fake(version: int = 1) -> Stage:
    return Stage(name="fake", version=version, kind="corpus", config=Config, run=write_words)


def job(config: Config | None = None, *, stage: Stage | None = None, **planned: Job) -> Job:
    return Job(stage or fake(), "fake", config or Config(), planned)


def test_settings_that_do_not_change_the_result_do_not_change_the_id():
    same = [job(Config(words=3)), job(Config(execution=Execution(workers=8))), job(GrownConfig())]
    assert {one.id for one in same} == {job().id}


def test_everything_that_changes_the_result_changes_the_id():
    different = [
        job(),
        job(Config(words=4)),
        job(GrownConfig(added_later="otherwise")),
        job(stage=fake(version=2)),
        job(upstream=job()),
        job(upstream=job(Config(words=4))),
    ]
    assert len({one.id for one in different}) == len(different)


def test_the_content_of_a_source_file_changes_the_id_and_its_path_does_not(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "copy.txt").write_text("one")
    (tmp_path / "other.txt").write_text("two")
    here, copied, other = (job(Config(text=str(tmp_path / name))).id for name in ("a.txt", "copy.txt", "other.txt"))
    assert here == copied != other


def test_what_a_stage_reads_from_paths_changes_the_id_and_nothing_else_of_them_does(tmp_path: Path):
    def id_of(folder: str, column: str) -> str:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "a.jsonl").write_text('{"text": "x"}')
        source = Source(name="s", path=[f"{tmp_path}/{folder}/*.jsonl"], format="jsonl", metadata=[column])
        return Job(CORPUS, "corpus", CorpusConfig(sources=[source]), {}).id

    assert len({id_of(f"year={year}", "year") for year in (1, 2, 3)}) == 3
    assert len({id_of(folder, "title") for folder in ("year=1", "year=2", "else")}) == 1
    assert id_of("year=1", "year") == id_of("other/year=1", "year")


def test_every_file_that_a_glob_matches_changes_the_id(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    before = job(Config(text=str(tmp_path / "*.txt"))).id
    (tmp_path / "b.txt").write_text("two")
    assert job(Config(text=str(tmp_path / "*.txt"))).id != before


def test_the_name_of_a_function_in_a_source_file_changes_the_id(tmp_path: Path):
    file = tmp_path / "verifiers.py"
    file.write_text("def right(): ...\ndef wrong(): ...\n")
    right, wrong = (job(Config(verifier=f"{file}:{name}")) for name in ("right", "wrong"))
    assert right.id != wrong.id
    assert right.source_fingerprints == wrong.source_fingerprints


def test_the_error_for_a_source_without_files_names_the_field():
    with pytest.raises(ValueError, match=r"fake: text: 'nowhere/\*.txt' matches no file"):
        job(Config(text="nowhere/*.txt")).id  # noqa: B018 - computing the id reads the source files


def test_the_spelling_of_an_input_does_not_change_the_id():
    @dataclass(frozen=True, kw_only=True)
    class Defaulted:
        upstream: str = input_artifact("corpus", default="fake")

    stage = Stage(name="late", version=1, kind="corpus", config=Defaulted, run=write_words)
    need = {"upstream": job()}
    by_name, by_location = (Job(stage, "late", Defaulted(upstream=value), need) for value in ("fake", "s3://b/fake-1"))
    assert by_name.id == by_location.id
