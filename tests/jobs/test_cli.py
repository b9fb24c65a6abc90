"""The command line reports results and mistakes, with exit codes that scripts can read."""

import argparse
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from cluster.submission_status import SUBMISSION_VARIABLE, read_status, record_submission
from jobs import cli
from jobs.cli import main, parse
from jobs.frame import job_binder, pipeline_run
from jobs.frame.artifact import Artifact
from jobs.frame.fields import input_artifact, source_files
from jobs.frame.job import Job
from jobs.frame.pipeline import Pipeline
from jobs.frame.record import Record
from jobs.frame.stage import Context, Stage
from jobs.vocabulary import STAGE as VOCABULARY
from jobs.vocabulary import VocabularyConfig


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    text: str = source_files()


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    corpus: str = input_artifact("corpus", default="corpus")
    steps: int = 10


def write_model(config: Any, context: Context) -> Mapping[str, Any]:
    context.output.write_json("model/config.json", {"model_type": "llama"})
    context.output.write_bytes("model/model.safetensors", b"weights")
    return {"loss": 2.5}


def fail(config: Any, context: Context) -> Mapping[str, Any]:
    raise RuntimeError("a worker died for good")


STAGES = {
    "corpus": Stage(
        name="corpus",
        version=1,
        kind="corpus",
        config=CorpusConfig,
        run=lambda config, context: {"documents": 3},
    ),
    "pretrain": Stage(name="pretrain", version=1, kind="model", config=PretrainConfig, run=write_model),
    "sft": Stage(name="sft", version=1, kind="model", config=PretrainConfig, run=fail),
}


@contextmanager
def no_ray(address: str | None, environment: object) -> Iterator[None]:
    yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with configs of small stages; nothing that runs needs Ray."""
    monkeypatch.setattr(job_binder, "find_stage", STAGES.__getitem__)
    monkeypatch.setattr(pipeline_run, "connect", no_ray)
    monkeypatch.setattr(pipeline_run, "max_cluster_resources", lambda: None)
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("text.txt", "words"),
        ("pipeline.yaml", "store: runs\nstages: [corpus, pretrain]\n"),
        ("corpus.yaml", "text: text.txt\n"),
        ("pretrain.yaml", "steps: 20\n"),
        ("sft.yaml", "steps: 20\n"),
    ):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["run", "pretrain", "a.yaml", "steps=5", "seed=1", "--store", "runs"],
        ["run", "pretrain", "a.yaml", "--store", "runs", "steps=5", "seed=1"],
        ["run", "pretrain", "a.yaml", "steps=5", "--store", "runs", "seed=1"],
    ],
)
def test_overrides_may_come_before_and_after_options(words: list[str]):
    options = parse(words)
    assert (options.overrides, options.store) == (["steps=5", "seed=1"], "runs")


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(["run", "pretrain", "a.yaml", "--stroe", "runs"])
    assert "unrecognized arguments: --stroe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["ls", "runs", "more"])


def test_artifacts_are_listed_shown_and_exported(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", "corpus", "corpus.yaml"]) == 0
    assert main(["run", "pretrain", "pretrain.yaml"]) == 0
    corpus, pretrain = (line.split() for line in capsys.readouterr().out.splitlines())
    assert corpus[0] == "corpus" and pretrain[0] == "pretrain"

    assert main(["ls"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == [corpus[1], pretrain[1]]

    assert main(["show", pretrain[1]]) == 0
    shown = capsys.readouterr().out
    assert "loss: 2.5" in shown and "text: " in shown and "text.txt  sha256:" in shown

    assert main(["export", pretrain[1], "out"]) == 0
    assert (folder / "out" / "model.safetensors").read_bytes() == b"weights"
    assert main(["export", pretrain[1], "out"]) == 2
    assert "out already contains a model" in capsys.readouterr().err
    assert main(["export", corpus[1], "other"]) == 2
    assert "is a corpus, not a model" in capsys.readouterr().err


def print_results_of_vocabularies(names: Sequence[str], config: str) -> list[Artifact]:
    """Print what the command `run pipeline <config>` prints after it has run these configs of vocabulary."""
    store = Storage("runs")
    jobs = {name: Job(VOCABULARY, name, VocabularyConfig(corpus="corpus"), {}) for name in names}
    artifacts = [
        Artifact(
            store / f"vocabulary-{number}", Record(id=f"vocabulary-{number}", stage="vocabulary", kind="tokenizer")
        )
        for number in range(len(names))
    ]
    options = argparse.Namespace(stage="pipeline", config=config, overrides=[], store="runs")
    cli._print_results(options, Pipeline("tiny", store, jobs, {}, {}), artifacts)
    return artifacts


def test_the_artifacts_of_two_configs_of_one_stage_are_printed_with_the_names_of_the_configs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jobs.report.report.render", lambda artifacts: "")
    names = ("vocabulary", "vocabulary-of-books")
    artifacts = print_results_of_vocabularies(names, "pipeline.yaml")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [[name, artifact.storage.url] for name, artifact in zip(names, artifacts, strict=True)]


def test_the_report_has_a_name_of_its_own_only_if_stages_of_the_commands_file_were_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jobs.report.report.render", lambda artifacts: "")
    Path("small.yaml").write_text("stages: [vocabulary]\n")
    print_results_of_vocabularies(["vocabulary"], "pipeline.yaml")
    print_results_of_vocabularies(["vocabulary"], "small.yaml")
    Path("pipeline.yaml").unlink()
    print_results_of_vocabularies(["vocabulary"], "small.yaml")
    reports = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("report")]
    assert reports == ["report-vocabulary.html", "report.html", "report.html"]


def test_a_plan_starts_nothing_and_prints_every_mistake(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "pipeline", "pipeline.yaml"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["state", "pending", "pending"]
    (folder / "corpus.yaml").write_text("text: nowhere.txt\n")
    assert main(["plan", "pipeline", "pipeline.yaml", "pretrain.stps=1"]) == 2
    printed = capsys.readouterr()
    assert "'nowhere.txt' matches no file" in printed.out and "did you mean steps?" in printed.out
    assert "2 errors to correct first" in printed.err
    assert not (folder / "runs").exists()


def test_a_mistake_of_the_user_exits_with_2_and_a_failure_with_1(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", "corpus", "no.yaml"]) == 2
    assert "raymill: config 'no.yaml' is not a file" in capsys.readouterr().err
    assert main(["run", "corpus", "corpus.yaml"]) == 0
    assert main(["run", "sft", "sft.yaml"]) == 1
    failed = capsys.readouterr().err
    assert "a worker died for good" in failed and "The same command resumes from the last" in failed
    assert main(["show", "runs/none"]) == 2
    assert "is not a finished artifact" in capsys.readouterr().err


def test_a_job_sent_by_another_version_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAYMILL_SUBMITTED_VERSION", "0.0.1")
    assert main(["run", "corpus", "corpus.yaml"]) == 2
    assert "submitted by raymill 0.0.1, but the cluster runs" in capsys.readouterr().err
    monkeypatch.setenv("RAYMILL_SUBMITTED_VERSION", version("raymill"))
    monkeypatch.setenv("RAYMILL_SUBMITTED_CODE", "0" * 64)
    assert main(["run", "corpus", "corpus.yaml"]) == 2
    assert re.search(
        r"with source files 000000000000, but the cluster's raymill .* has source files", capsys.readouterr().err
    )
    assert not (folder / "runs").exists()


def test_a_submitted_run_that_is_refused_reports_it_in_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch):
    store = Storage("runs")
    monkeypatch.setenv(SUBMISSION_VARIABLE, "corpus-ab")
    assert main(["run", "corpus", "corpus.yaml", "--store", "runs"]) == 2  # not the store in which it was noted
    assert read_status(store, "corpus-ab") is None
    for config, words in (("corpus.yaml", "submitted by raymill 0.0.1"), ("no.yaml", "config 'no.yaml' is not a file")):
        record_submission(store, "corpus-ab")
        monkeypatch.setenv("RAYMILL_SUBMITTED_VERSION", "0.0.1" if config == "corpus.yaml" else version("raymill"))
        assert main(["run", "corpus", config, "--store", "runs"]) == 2
        entry = read_status(store, "corpus-ab")
        assert entry is not None and entry.state == "failed" and words in entry.says
    assert main(["run", "corpus", "corpus.yaml", "--store", "runs"]) == 0
    entry = read_status(store, "corpus-ab")
    assert entry is not None and entry.state == "succeeded"


@pytest.mark.parametrize(
    ("command", "last_words"),
    [
        ("run", "stopped by SIGINT; the same command resumes from here"),
        ("logs", "stopped by SIGINT; the job continues; the same command follows it again"),
        ("serve", "stopped by SIGINT; the server has ended"),
        ("status", "stopped by SIGINT"),
    ],
)
def test_a_stopped_command_says_what_happens_to_its_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, last_words: str
):
    def interrupt(options: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    options = argparse.Namespace(command=interrupt, name=command, traceback=False)
    monkeypatch.setattr("jobs.cli.parse", lambda arguments: options)
    assert main() == 130
    printed = capsys.readouterr().err
    assert last_words in printed and (command != "status" or printed.endswith("SIGINT\n"))


def test_a_command_whose_reader_closes_the_pipe_ends_quietly(tmp_path: Path):
    for number in range(3000):
        (tmp_path / f"corpus-{number}").mkdir()
        (tmp_path / f"corpus-{number}/artifact.json").write_text(f'{{"id": "{number}", "wall_s": 1, "started": 1}}')
    command = [sys.executable, "-m", "jobs.cli", "ls", str(tmp_path)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None and process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None and process.stderr.read() == ""
    assert process.wait(60) == 128 + signal.SIGPIPE


def test_a_command_whose_reader_got_the_same_signal_ends_with_the_code_of_that_signal() -> None:
    program = """
import argparse, sys, time
from jobs import cli

def work(options):
    print("begun", flush=True)
    time.sleep(600)

cli.parse = lambda arguments: argparse.Namespace(command=work, name="run", traceback=False)
sys.exit(cli.main())
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.stdout.close()  # `… 2>&1 | tee log`
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_a_submitted_run_outlives_the_folder_of_its_shipped_files(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Ray unpacks them again when a node joins on the same machine."""
    store, package, seen = Storage("runs"), Path.cwd(), list[bool]()
    monkeypatch.setenv(SUBMISSION_VARIABLE, "corpus-ab")
    record_submission(store, "corpus-ab")

    def run(*_: object, **__: object) -> list[Any]:
        (package / "corpus.yaml").unlink()
        seen.append(Path("corpus.yaml").exists())
        return []

    monkeypatch.setattr(cli, "run_pipeline", run)
    monkeypatch.setattr(cli, "_print_results", lambda *_: None)
    assert main(["run", "corpus", "corpus.yaml", "--store", "runs"]) == 0
    assert seen == [True] and Path.cwd() == package
