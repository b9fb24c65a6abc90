"""`raymill submit`: a job makes the same artifacts as a local run, is submitted once, and contains no secret."""

import contextlib
import dataclasses
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster import submission as submission_module
from cluster.storage import Storage
from cluster.submission import _find_attempts, dashboard_address
from cluster.submission_status import SUBMISSION_VARIABLE, read_status, reporting_status
from jobs.cli import main
from jobs.commands import submit as submit_module
from jobs.commands.shipping import write_shipped_files
from jobs.commands.submit import submit
from jobs.frame import job_binder
from jobs.frame.artifact import RECORD, open_artifact, write_record
from jobs.frame.fields import input_artifact, source_files
from jobs.frame.pipeline import load_pipeline, load_stage
from jobs.frame.record import Record
from jobs.frame.stage import Context, Stage


@dataclass(frozen=True, kw_only=True)
class Reader:
    path: str = source_files()


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    sources: list[Reader] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RLHFConfig:
    init: str = input_artifact("corpus", default="corpus")
    prompts: list[str] = source_files([])
    verifier: str | None = source_files(None)
    steps: int = 1


def do_nothing(config: Any, context: Context) -> Mapping[str, Any]:
    return {}


STAGES = {
    "corpus": Stage(name="corpus", version=1, kind="corpus", config=CorpusConfig, run=do_nothing),
    "rlhf": Stage(name="rlhf", version=1, kind="model", config=RLHFConfig, run=do_nothing),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a user's folder with data, configs and a verifier, and change to it. Its stages do nothing."""
    monkeypatch.setattr(job_binder, "find_stage", lambda name: STAGES[name.partition("-")[0]])
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("data/a.txt", "one"),
        ("data/b.txt", "two"),
        ("checks/verifiers.py", "from lib.rules import rule\ndef short(): ...\n"),
        ("checks/lib/rules.py", "def rule(): ...\n"),
        ("configs/tiny/pipeline.yaml", "store: runs\nstages: [corpus, rlhf]\n"),
        ("configs/tiny/corpus.yaml", "sources:\n  - path: data/*.txt\n"),
        (
            "configs/tiny/rlhf.yaml",
            "prompts: [data/a.txt]\nverifier: checks/verifiers.py:short\nsteps: 5\n",
        ),
        ("configs/tiny/unused.yaml", "a: 1\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


CONFIG = Path("configs/tiny/pipeline.yaml")


def shipped_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_configs_and_verifiers_are_shipped_and_data_is_not(project: Path, tmp_path_factory: Any):
    folder = tmp_path_factory.mktemp("shipped")
    command = write_shipped_files("pipeline", CONFIG, ["rlhf.steps=7"], load_pipeline(CONFIG), folder)
    assert shipped_files(folder) == [
        "checks/lib/rules.py",
        "checks/verifiers.py",
        "configs/tiny/corpus.yaml",
        "configs/tiny/pipeline.yaml",
        "configs/tiny/rlhf.yaml",
    ]
    assert shlex.split(command) == [
        *("raymill", "run", "pipeline", "configs/tiny/pipeline.yaml", "rlhf.steps=7"),
        *("--store", f"{project}/runs"),
    ]
    assert yaml.safe_load((folder / "configs/tiny/rlhf.yaml").read_text()) == {
        "prompts": [f"{project}/data/a.txt"],
        "verifier": "checks/verifiers.py:short",
        "steps": 5,
    }


def test_the_shipped_files_give_the_same_artifact_ids(
    project: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
):
    overrides = ["rlhf.steps=7", "rlhf.prompts=[data/b.txt]"]
    here = load_pipeline(CONFIG, overrides)
    folder = tmp_path_factory.mktemp("shipped")
    command = shlex.split(write_shipped_files("pipeline", CONFIG, overrides, here, folder))
    monkeypatch.chdir(folder)
    there = load_pipeline(Path(command[3]), command[4:-2], store=command[-1])
    assert not there.errors
    assert {name: job.id for name, job in there.jobs.items()} == {n: job.id for n, job in here.jobs.items()}


def test_a_module_that_a_verifier_imports_changes_the_artifact_id(project: Path):
    before = {name: job.id for name, job in load_pipeline(CONFIG).jobs.items()}
    (project / "checks/lib/rules.py").write_text("def rule(): return 1\n")
    after = {name: job.id for name, job in load_pipeline(CONFIG).jobs.items()}
    assert after["corpus"] == before["corpus"] and after["rlhf"] != before["rlhf"]


def test_a_verifier_behind_a_url_is_not_shipped_and_keeps_its_url(project: Path, tmp_path_factory: Any):
    url = f"memory://checks-{uuid.uuid4().hex[:8]}/verifiers.py"
    with fsspec.open(url, "wb") as file:
        file.write(b"def short(): ...\n")  # pyright: ignore[reportAttributeAccessIssue]
    folder = tmp_path_factory.mktemp("shipped")
    overrides = [f"rlhf.verifier={url}:short"]
    command = write_shipped_files("pipeline", CONFIG, overrides, load_pipeline(CONFIG, overrides), folder)
    assert not [name for name in shipped_files(folder) if name.endswith(".py")]
    assert shlex.split(command)[4] == overrides[0]


def test_a_single_stage_ships_the_configs_of_the_stages_that_it_needs(project: Path, tmp_path_factory: Any):
    folder = tmp_path_factory.mktemp("shipped")
    (project / "other").mkdir()
    config = (project / "configs/tiny/rlhf.yaml").rename(project / "configs/tiny/rlhf-more.yaml")
    alone = load_stage("rlhf", config.relative_to(project))
    command = write_shipped_files("rlhf", config.relative_to(project), [], alone, folder)
    assert shipped_files(folder) == [
        "checks/lib/rules.py",
        "checks/verifiers.py",
        "configs/tiny/corpus.yaml",
        "configs/tiny/pipeline.yaml",
        "configs/tiny/rlhf-more.yaml",
    ]
    assert shlex.split(command)[:4] == ["raymill", "run", "rlhf", "configs/tiny/rlhf-more.yaml"]


def test_previous_refers_to_the_same_config_in_the_shipped_files_of_a_single_stage(
    project: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
):
    (project / "configs/tiny/corpus-b.yaml").write_text("sources:\n  - path: data/b.txt\n")
    CONFIG.write_text("store: runs\nstages: [corpus, corpus-b, rlhf]\n")
    config, overrides = CONFIG.with_name("rlhf.yaml"), ["init=previous"]
    here = load_stage("rlhf", config, overrides)
    assert here.jobs["rlhf"].planned["init"].id.startswith("corpus-b-")
    folder = tmp_path_factory.mktemp("shipped")
    command = shlex.split(write_shipped_files("rlhf", config, overrides, here, folder))
    monkeypatch.chdir(folder)
    there = load_stage("rlhf", Path(command[3]), command[4:-2], store=command[-1])
    assert there.jobs["rlhf"].id == here.jobs["rlhf"].id


def test_files_from_outside_the_working_directory_are_shipped_too(
    project: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
):
    here = load_pipeline(CONFIG).jobs
    (project / "configs/tiny/rlhf.yaml").write_text(
        f"prompts: [{project}/data/a.txt]\nverifier: {project}/checks/verifiers.py:short\nsteps: 5\n"
    )
    (project / "configs/tiny/corpus.yaml").write_text(f"sources:\n  - path: {project}/data/*.txt\n")
    elsewhere, folder = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("shipped")
    monkeypatch.chdir(elsewhere)
    pipeline = load_pipeline(project / CONFIG)
    command = shlex.split(write_shipped_files("pipeline", project / CONFIG, [], pipeline, folder))
    programs = [Path(name) for name in shipped_files(folder) if name.endswith(".py")]
    assert [Path(*path.parts[1:]) for path in programs] == [Path("checks/lib/rules.py"), Path("checks/verifiers.py")]
    monkeypatch.chdir(folder)
    there = load_pipeline(Path(command[3]), store=command[-1]).jobs
    assert {name: job.id for name, job in there.items()} == {name: job.id for name, job in here.items()}


def test_two_folders_with_the_same_name_are_shipped_to_different_folders(
    project: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
):
    elsewhere, folder = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("shipped")
    (project / "more/checks").mkdir(parents=True)
    (project / "more/checks/verifiers.py").write_text("def long(): ...\n")
    second = (project / "configs/tiny/rlhf.yaml").read_text().replace("checks/verifiers.py:short", "{}")
    for name, program in (("rlhf", "checks/verifiers.py:short"), ("rlhf-long", "more/checks/verifiers.py:long")):
        text = second.format(project / program).replace("data/a.txt", f"{project}/data/a.txt")
        (project / f"configs/tiny/{name}.yaml").write_text(text)
    (project / "configs/tiny/corpus.yaml").write_text(f"sources:\n  - path: {project}/data/*.txt\n")
    (project / "configs/tiny/pipeline.yaml").write_text("store: runs\nstages: [corpus, rlhf, rlhf-long]\n")
    monkeypatch.chdir(elsewhere)
    here = load_pipeline(project / CONFIG)
    command = shlex.split(write_shipped_files("pipeline", project / CONFIG, [], here, folder))
    monkeypatch.chdir(folder)
    there = load_pipeline(Path(command[3]), store=command[-1])
    assert not there.errors
    assert {name: job.id for name, job in there.jobs.items()} == {name: job.id for name, job in here.jobs.items()}


def test_python_files_that_are_data_are_not_shipped(project: Path, tmp_path_factory: Any):
    (project / "configs/tiny/corpus.yaml").write_text(
        "sources:\n  - path: checks/*.py\n  - path: checks/lib/rules.py\n"
    )
    (project / "checks/broken.py").write_text("print 'Python 2'\n")
    folder = tmp_path_factory.mktemp("shipped")
    write_shipped_files("pipeline", CONFIG, [], load_pipeline(CONFIG), folder)
    sources = yaml.safe_load((folder / "configs/tiny/corpus.yaml").read_text())["sources"]
    assert sources == [{"path": f"{project}/checks/*.py"}, {"path": f"{project}/checks/lib/rules.py"}]
    assert not (folder / "checks/broken.py").exists()


def test_all_errors_are_reported_before_anything_is_submitted(project: Path):
    (project / "configs/tiny/corpus.yaml").write_text("sources:\n  - path: missing/*.txt\n")
    with pytest.raises(ValueError, match=r"(?s)matches no file.*did you mean steps\?"):
        submit("pipeline", CONFIG, ["rlhf.step=7"], store=None, address="http://127.0.0.1:1")


def test_errors_in_the_finished_inputs_are_reported_before_anything_is_submitted(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    def reject(config: Any, inputs: Mapping[str, Any]) -> None:
        raise ValueError("init: another tokenizer")

    monkeypatch.setitem(STAGES, "rlhf", dataclasses.replace(STAGES["rlhf"], check_inputs=reject))
    pipeline = load_pipeline(CONFIG)
    corpus = pipeline.jobs["corpus"]
    write_record(pipeline.store / corpus.id, Record(id=corpus.id, stage="corpus", kind="corpus"))
    with pytest.raises(ValueError, match="rlhf: init: another tokenizer"):
        submit("pipeline", CONFIG, [], store=None, address="http://127.0.0.1:1")


def test_a_cluster_that_does_not_answer_is_an_error_that_explains_the_address(project: Path):
    with pytest.raises(ValueError, match="--address: the Jobs API at http://127.0.0.1:1 cannot be used"):
        submit("pipeline", CONFIG, [], store=None, address="http://127.0.0.1:1")


def job_details(id: str, status: JobStatus) -> JobDetails:
    return JobDetails(type=JobType.SUBMISSION, submission_id=id, status=status, entrypoint="raymill")


class FakeCluster:
    """A fake of Ray's Jobs API. A job runs until `finish`, which writes records of its artifacts to the store."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobStatus] = {}

    def list_jobs(self) -> list[JobDetails]:
        return [job_details(id, status) for id, status in self.jobs.items()]

    def submit_job(self, *, submission_id: str, **rest: Any) -> None:
        self.jobs[submission_id] = JobStatus.RUNNING
        self.variables = rest["runtime_env"]["env_vars"] if rest else {}

    def finish(self, id: str) -> None:
        self.jobs[id] = JobStatus.SUCCEEDED
        pipeline = load_pipeline(CONFIG)
        for job in pipeline.jobs.values():
            write_record(pipeline.store / job.id, Record(id=job.id, stage=job.stage.name, kind=job.kind))


def test_a_command_is_submitted_once_and_again_after_data_changed_or_artifacts_were_deleted(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    fake = FakeCluster()
    monkeypatch.setattr(submission_module, "job_client", lambda address: fake)

    said: list[str] = []

    def send() -> str:
        sent = submit("pipeline", CONFIG, [], store=None, address=None)
        said.append(sent.outcome)
        return sent.submission.id

    first = send()
    assert fake.variables[SUBMISSION_VARIABLE] == first
    assert (
        int(fake.variables["RAY_JOB_STOP_WAIT_TIME_S"]) > 13
    )  # Ray's default of 3 s is too short for an orderly shutdown
    assert send() == first  # while the job runs
    fake.finish(first)
    assert send() == first and list(fake.jobs) == [first]
    assert said == ["started", "already running", "already succeeded"]
    assert "sent" in str(read_status(Storage("runs"), first))
    last = list(load_pipeline(CONFIG).jobs.values())[-1]
    Storage("runs").remove(f"{last.id}/{RECORD}")
    assert send() == f"{first}-2" and said[-1] == "started again"
    assert send() == f"{first}-2"
    fake.finish(f"{first}-2")
    assert send() == f"{first}-2"
    (project / "data/b.txt").write_text("other")
    changed = send()
    assert changed not in (first, f"{first}-2", f"{first}-3") and fake.jobs[changed] == JobStatus.RUNNING


@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.0.0.1:8265", "http://10.0.0.1:8265"), ("head:80", "http://head:80"), ("https://a.b", "https://a.b")],
)
def test_a_bare_host_and_port_is_a_dashboard(address: str, expected: str):
    assert dashboard_address(address) == expected


class RejectingCluster(FakeCluster):
    """A fake of Ray's Jobs API whose jobs fail in their first checks, after or before they write a status file."""

    writes_status = True

    def list_jobs(self) -> list[JobDetails]:
        failed = {
            "driver_exit_code": 2,
            "message": "Job entrypoint command failed with exit code 2, last available logs (truncated):\n"
            "raymill: store: runs is a path of the machine",
        }
        return [job.copy(update=failed) for job in super().list_jobs()]

    def submit_job(self, *, submission_id: str, **rest: Any) -> None:
        self.jobs[submission_id] = JobStatus.FAILED
        if self.writes_status:
            with contextlib.suppress(ValueError), reporting_status(Storage("runs"), submission_id):
                raise ValueError("source: /home/me/a.txt does not exist on node 10.0.0.2")


SUBMIT = ["submit", "pipeline", str(CONFIG), "--address", "http://127.0.0.1:1"]


def test_submit_prints_the_error_of_a_run_whose_checks_fail_and_exits_with_its_code(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fake = RejectingCluster()
    monkeypatch.setattr(submission_module, "job_client", lambda address: fake)
    assert main(SUBMIT) == 2
    printed = capsys.readouterr()
    assert printed.out.strip() in fake.jobs
    assert "FAILED: its run failed: ValueError: source: /home/me/a.txt does not exist on node 10.0.0.2" in printed.err


def test_submit_prints_the_last_lines_of_the_log_if_the_run_wrote_no_status(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(RejectingCluster, "writes_status", False)
    fake = RejectingCluster()
    monkeypatch.setattr(submission_module, "job_client", lambda address: fake)
    assert main(SUBMIT) == 2
    printed = capsys.readouterr()
    assert "raymill: store: runs is a path of the machine" in printed.err
    assert main(["status", printed.out.strip()]) == 0
    assert "ended before it reported anything" in capsys.readouterr().out


def test_submit_succeeds_if_its_job_runs_or_waits(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Running(FakeCluster):
        def submit_job(self, *, submission_id: str, **rest: Any) -> None:
            super().submit_job(submission_id=submission_id)
            entry = {"state": "running", "time": time.time(), "says": "corpus: waiting for resources"}
            Storage("runs").write_json(f"submissions/{submission_id}.json", entry)

    class Pending(FakeCluster):
        def list_jobs(self) -> list[JobDetails]:
            details = {"status": JobStatus.PENDING, "message": "Job has not started yet."}
            return [job.copy(update=details) for job in super().list_jobs()]

    running, pending = Running(), Pending()
    started = time.monotonic()
    monkeypatch.setattr(submission_module, "job_client", lambda address: running)
    assert main(SUBMIT) == 0
    assert "its run: running, 0 s ago: corpus: waiting for resources" in capsys.readouterr().err
    assert time.monotonic() - started < 10

    monkeypatch.setattr(submit_module, "_MAX_START_WAIT_S", 0.1)
    monkeypatch.setattr(submission_module, "job_client", lambda address: pending)
    assert main(SUBMIT) == 0
    assert "PENDING: Job has not started yet.\nits run: sent, " in capsys.readouterr().err


def test_the_environment_of_the_config_applies_to_w_and_b_and_the_store(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in (("WANDB_MODE", "online"), ("WANDB_PROJECT", "other"), ("WANDB_BASE_URL", ""), ("ENDPOINT", "")):
        monkeypatch.setenv(name, value)
    with (project / CONFIG).open("a") as file:
        file.write("environment: {WANDB_PROJECT: mine, WANDB_BASE_URL: 'https://api.wandb.here', ENDPOINT: there}\n")
    fake = RejectingCluster()
    monkeypatch.setattr(submission_module, "job_client", lambda address: fake)
    main(SUBMIT)
    printed = capsys.readouterr()
    assert "W&B: https://wandb.here, project mine" in printed.err
    monkeypatch.setenv("ENDPOINT", "elsewhere")
    main(["status", printed.out.strip()])
    assert os.environ["ENDPOINT"] == "there"


def test_logs_does_not_print_the_end_of_the_log_twice(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Logging(RejectingCluster):
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            yield "raymill: store: runs is a path of the machine\n"

    fake = Logging()
    monkeypatch.setattr(submission_module, "job_client", lambda address: fake)
    main(SUBMIT)
    id = capsys.readouterr().out.strip()
    assert main(["logs", id]) == 2
    printed = capsys.readouterr()
    assert printed.out == "raymill: store: runs is a path of the machine\n"
    assert printed.err == f"raymill: job {id} FAILED: Job entrypoint command failed with exit code 2\n"


def test_the_status_comes_from_the_store_if_the_head_does_not_know_the_job(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class RestartedCluster(FakeCluster):
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            raise RuntimeError("Request failed with status code 404")
            yield

    fake = RestartedCluster()
    monkeypatch.setattr(submission_module, "job_client", lambda address: fake)
    id = submit("pipeline", CONFIG, [], store=None, address=None).submission.id
    with reporting_status(Storage("runs"), id):
        pass
    fake.jobs.clear()
    assert main(["logs", id]) == 0
    said = capsys.readouterr().err
    assert f"no job '{id}' on this cluster; check the id" in said and "its run: succeeded, " in said
    assert main(["status", id]) == 0
    assert capsys.readouterr().out.startswith("UNKNOWN\nno job ")

    def unreachable(address: str | None) -> FakeCluster:
        raise ValueError("--address: the Jobs API at http://head:8265 cannot be used")

    monkeypatch.setattr(submission_module, "job_client", unreachable)
    assert main(["logs", id]) == 0
    assert "the Jobs API at http://head:8265 cannot be used" in capsys.readouterr().err
    assert main(["logs", "pipeline-unknown"]) == 2  # neither the head nor the store knows the job
    assert capsys.readouterr().err.count("the Jobs API at http://head:8265 cannot be used") == 1


def test_attempts_are_ordered_by_number():
    ids = ["pipeline-ab-10", "pipeline-ab", "pipeline-ab-2", "pipeline-cd", "rlhf-ab-x"]
    assert [
        attempt.submission_id
        for attempt in _find_attempts([job_details(id, JobStatus.FAILED) for id in ids], "pipeline-ab")
    ] == [
        "pipeline-ab",
        "pipeline-ab-2",
        "pipeline-ab-10",
    ]


# The following tests use a Ray cluster that is protected by a token.


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


@dataclass(frozen=True)
class Cluster:
    address: str
    secret: str
    environment: Mapping[str, str]
    gcs: str
    head: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_head(num_cpus=2) as head:
        yield head


@contextmanager
def ray_head(num_cpus: int, **variables: str) -> Iterator[Cluster]:
    """Start a Ray head on the loopback address, with a token and secrets in its environment variables."""
    scratch = tempfile.mkdtemp(prefix="raymill-head-")
    secret = f"planted{secrets.token_hex(20)}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "WANDB_API_KEY": secret,
        "WANDB_MODE": "offline",
        "AWS_SECRET_ACCESS_KEY": secret,
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    names += ("dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--num-cpus={num_cpus}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={scratch}"]
    command += ["--object-store-memory=200000000", *(f"--{name}={port}" for name, port in ports.items())]
    with open(f"{scratch}/start.log", "wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for_port(ports["dashboard-port"], head)
        dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
        yield Cluster(dashboard, secret, environment, f"127.0.0.1:{ports['port']}", head)
    finally:
        end_processes(head)
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for_port(port: int, head: subprocess.Popen[bytes], timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert head.poll() is None, "the Ray head did not start"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise TimeoutError(f"no dashboard on port {port} after {timeout_s:g} s")


def end_processes(head: subprocess.Popen[bytes]) -> None:
    """End a Ray node and its child processes by their process ids, so that other clusters on this machine continue."""
    family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.kill()
    head.wait()


@pytest.fixture
def text_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a user's folder with a small text file and the configs of the stages from corpus to pretrain."""
    monkeypatch.chdir(tmp_path)
    sentences = [f"Sentence number {n} tells of {n * n} sheep and of the hill they live on." for n in range(400)]
    records = "".join(json.dumps({"text": " ".join(sentences[n : n + 4])}) + "\n" for n in range(0, 400, 2))
    records += "{broken\n"  # the local and the submitted run both report this line in the quarantine
    for name, text in (
        ("data/sheep.jsonl", records),
        ("configs/tiny/pipeline.yaml", "store: runs/here\nstages: [corpus, vocabulary, shards, pretrain]\n"),
        (
            "configs/tiny/corpus.yaml",
            "sources:\n  - {name: sheep, path: data/sheep.jsonl, format: jsonl, text: text}\n"
            "steps: [{exact_duplicates: {}}]\npart_mib: 1\n",
        ),
        ("configs/tiny/vocabulary.yaml", "corpus: corpus\nsize: 300\n"),
        ("configs/tiny/shards.yaml", "validation_fraction: 0.1\n"),
        (
            "configs/tiny/pretrain.yaml",
            "model: {width: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, ffn_width: 64}\n"
            "max_length: 64\nsequence_length: 32\nglobal_batch_size: 4\nsteps: 3\nvalidation_samples: 4\n"
            "optimizer: {warmup_steps: 1}\nexecution: {micro_batch_size: 2, peak_tflops: 0.1}\n",
        ),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def call(cluster: Cluster, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run `raymill` in a new process and return its output. Ray reads the token only once per process."""
    command = [str(Path(sys.executable).with_name("raymill")), *arguments]
    done = subprocess.run(
        command, env={**cluster.environment, **environment}, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def submission(cluster: Cluster, *command: str) -> str:
    return call(cluster, "submit", *command, "--address", cluster.address).strip()


def records(cluster: Cluster) -> str:
    """Return the JSON with which the cluster describes its jobs."""
    request = urllib.request.Request(f"{cluster.address}/api/jobs/")
    request.add_header("Authorization", f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}")
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_a_submitted_pipeline_makes_the_same_artifacts_as_a_local_run_and_contains_no_secret(
    cluster: Cluster, text_project: Path
):
    command = ("pipeline", str(CONFIG), "corpus.part_mib=3", "--store", "runs/there")
    sent = [submission(cluster, *command) for _ in range(2)]
    output = call(cluster, "logs", sent[0], "--address", cluster.address)
    status = call(cluster, "status", sent[0])  # the address of the submit is remembered
    assert status.startswith("SUCCEEDED\nits run: succeeded, "), output
    sent.append(submission(cluster, *command))
    assert len(set(sent)) == 1
    jobs = records(cluster)
    assert [job["submission_id"] for job in json.loads(jobs) if job["submission_id"]] == [sent[0]]
    call(cluster, "stop", sent[0], "--address", cluster.address)  # the job has already ended, so stop does nothing

    printed = call(cluster, "run", "pipeline", str(CONFIG), "corpus.part_mib=3", RAY_AUTH_MODE="disabled")
    for name, job in load_pipeline(CONFIG, ["corpus.part_mib=3"]).jobs.items():
        remote, local = (open_artifact(f"runs/{store}/{job.id}") for store in ("there", "here"))
        assert remote is not None, f"{name} is not finished\n{output}"
        assert local is not None, f"{name} is not finished\n{printed}"
        assert remote.digest == local.digest
        assert remote.storage.url in output

    assert cluster.secret not in jobs + output + printed
    written = [path for path in text_project.rglob("*") if path.is_file()]
    assert [path.suffix for path in written if path.suffix == ".wandb"], (
        "W&B wrote no file that could contain the secret"
    )
    assert not [path for path in written if cluster.secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_without_the_token_the_cluster_rejects_all_requests(cluster: Cluster, text_project: Path):
    command = ("submit", "pipeline", str(CONFIG), "--address", cluster.address)
    assert "--address: the Jobs API at" in call(cluster, *command, code=2, RAY_AUTH_TOKEN=secrets.token_hex(32))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster.address}/api/jobs/")


@pytest.mark.slow
def test_a_job_of_a_different_version_fails_with_a_reason_and_can_be_submitted_again(
    cluster: Cluster, text_project: Path
):
    submit_as_other_version = (
        "import sys, jobs.cli, jobs.frame.same_code; jobs.frame.same_code.package_version = lambda name: '0.0.1'; "
        f"sys.exit(jobs.cli.main(['submit', 'corpus', 'configs/tiny/corpus.yaml', '--address', {cluster.address!r}]))"
    )

    def send() -> str:
        command = [sys.executable, "-P", "-c", submit_as_other_version]
        done = subprocess.run(command, env=dict(cluster.environment), capture_output=True, text=True, timeout=300)
        assert done.returncode == 2, done.stderr
        assert "its run failed: ValueError: the job was submitted by raymill 0.0.1, but the cluster runs" in done.stderr
        return done.stdout.strip()

    first = send()
    told = call(cluster, "logs", first, "--address", cluster.address, code=2)  # the exit code of the job
    assert f"job {first} FAILED" in told
    assert call(cluster, "status", first, "--address", cluster.address).startswith("FAILED\n")
    assert send() == f"{first}-2"
    assert "no job 'corpus-unknown' on this cluster" in call(
        cluster, "status", "corpus-unknown", "--address", cluster.address, code=2
    )


@pytest.mark.slow
def test_a_job_that_is_stopped_has_time_for_an_orderly_shutdown(cluster: Cluster, text_project: Path):
    (text_project / "job.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def end(number, frame):\n    time.sleep(6)\n    pathlib.Path(sys.argv[1]).write_text('done')\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\nprint('begun', flush=True)\ntime.sleep(600)\n"
    )
    send = (
        "import pathlib, cluster.submission as s; s.submit_once('python job.py {}', pathlib.Path('.'), id='orderly', "
        "address={!r}, env={{}}, metadata={{}}, has_result=lambda: True)"
    ).format(text_project / "ended", cluster.address)
    subprocess.run([sys.executable, "-P", "-c", send], env=dict(cluster.environment), check=True, timeout=300)
    where = ("orderly", "--address", cluster.address)
    log = follow(cluster, *where)
    assert log.stdout is not None and any(line == "begun\n" for line in log.stdout)
    assert "job orderly was asked to stop" in call(cluster, "stop", *where)
    assert "STOPPED" in log.communicate(timeout=120)[0]
    assert (text_project / "ended").read_text() == "done"
    assert "job orderly had already ended: STOPPED" in call(cluster, "stop", *where)


@pytest.mark.slow
def test_a_job_waits_for_a_worker_and_reports_the_death_of_the_head(text_project: Path):
    """The head has no CPUs, and a worker node starts later. Then the head is killed while a log is followed."""
    # Two Ray nodes on a host unpack the job's files to the same folder, so the second node removes the driver's working
    # directory. After this only W&B would need the directory, so it is disabled.
    with ray_head(num_cpus=0, WANDB_MODE="disabled") as cluster:
        command = ("corpus", "configs/tiny/corpus.yaml", "--store", str(text_project / "runs"))
        sent = submission(cluster, *command)
        logs = follow(cluster, sent)
        wait_for(
            lambda: "waiting for resources" in call(cluster, "status", sent),
            "the status does not report that the job waits",
        )
        start = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={cluster.gcs}"]
        start += ["--num-cpus=1", "--object-store-memory=100000000", "--node-ip-address=127.0.0.1"]
        worker = subprocess.Popen(start, env=cluster.environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            output, _ = logs.communicate(timeout=900)
            assert logs.returncode == 0, output
            assert "needs 1 CPU, the cluster has 0" in output and "has its resources after" in output
        finally:
            end_processes(worker)

        waiting = submission(cluster, *command, "execution.wait_s=300", "part_mib=2")
        logs = follow(cluster, waiting)
        wait_for(
            lambda: "its run: running" in call(cluster, "status", waiting),
            "the status does not report that the job runs",
        )
        for process in [psutil.Process(cluster.head.pid), *psutil.Process(cluster.head.pid).children(recursive=True)]:
            process.kill()  # killed, because a head that ends orderly may still answer for a while
        output, _ = logs.communicate(timeout=900)
        assert logs.returncode == 1 and "the cluster's head has not answered" in output, output
        status = call(cluster, "status", waiting)
        assert status.startswith("UNKNOWN") and "its run: " in status


def follow(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("raymill")), "logs", *arguments]
    return subprocess.Popen(
        command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition: Callable[[], bool], message: str, timeout_s: float = 600.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(1.0)
