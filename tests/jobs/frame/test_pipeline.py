"""Configs are bound to jobs, the errors of all configs are collected, and a finished stage does not run again."""

import dataclasses
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.placement import Placement
from cluster.storage import Storage
from jobs.frame import job_binder, pipeline_run
from jobs.frame.artifact import Artifact, open_artifact, write_record
from jobs.frame.fields import input_artifact, source_files
from jobs.frame.job import Job
from jobs.frame.pipeline import load_pipeline, load_stage
from jobs.frame.pipeline_run import run_pipeline
from jobs.frame.plan import plan
from jobs.frame.stage import Context, Stage
from jobs.frame.stages import STAGES as ALL_STAGES
from jobs.frame.stages import find_stage


@dataclass(frozen=True, kw_only=True)
class Execution:
    placement: Placement = field(default_factory=lambda: Placement(workers=2))


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    text: str = source_files()
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    corpus: str = input_artifact("corpus", default="corpus")
    steps: int = 10


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    models: dict[str, str] = input_artifact("model")


def check_steps(config: PretrainConfig) -> None:
    if config.steps < 1:
        raise ValueError(f"steps: {config.steps} must be at least 1")


def write_name(config: Any, context: Context) -> Mapping[str, Any]:
    context.output.write_bytes("made.txt", repr(config).encode())
    return {"inputs": sorted(context.inputs)}


STAGES = {
    "corpus": Stage(
        name="corpus",
        version=1,
        kind="corpus",
        config=CorpusConfig,
        run=write_name,
        placements=lambda config: ({"placement": config.execution.placement},),
    ),
    "pretrain": Stage(
        name="pretrain",
        version=1,
        kind="model",
        config=PretrainConfig,
        run=write_name,
        check=check_steps,
        estimate=lambda config, planned: {"steps": config.steps},
    ),
    "evaluate": Stage(name="evaluate", version=1, kind="evaluation", config=EvaluateConfig, run=write_name),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the configs of three small stages. None of them needs Ray."""
    monkeypatch.setattr(job_binder, "find_stage", lambda name: STAGES[name.partition("-")[0]])
    monkeypatch.setattr(pipeline_run, "connect", no_ray)
    monkeypatch.setattr(pipeline_run, "max_cluster_resources", lambda: None)
    (tmp_path / "text.txt").write_text("words")
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "pipeline.yaml").write_text(f"store: {tmp_path / 'runs'}\nstages: [corpus, pretrain, evaluate]\n")
    (configs / "corpus.yaml").write_text(f"text: {tmp_path / 'text.txt'}\n")
    (configs / "pretrain.yaml").write_text("steps: 20\n")
    (configs / "evaluate.yaml").write_text("models: {trained: pretrain}\n")
    return configs


@contextmanager
def no_ray(address: str | None, environment: object) -> Iterator[None]:
    yield


def test_inputs_are_bound_by_the_names_of_configs_in_the_same_folder(folder: Path):
    jobs = load_pipeline(folder / "pipeline.yaml").jobs
    assert list(jobs) == ["corpus", "pretrain", "evaluate"]
    assert jobs["pretrain"].planned == {"corpus": jobs["corpus"]}
    assert jobs["evaluate"].planned == {"models.trained": jobs["pretrain"]}


def test_every_node_must_see_all_source_files_even_python_files_that_are_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    checked: list[tuple[Storage, list[str]]] = []

    @contextmanager
    def record_paths(store: Storage, sources: list[str]) -> Iterator[None]:
        checked.append((store, sources))
        yield

    monkeypatch.setattr(pipeline_run, "require_shared_paths", record_paths)
    (folder / "code.py").write_text("words")
    (folder / "corpus.yaml").write_text(f"text: {folder}/*.py\n")
    pipeline = load_pipeline(folder / "pipeline.yaml")
    run_pipeline(pipeline)
    assert checked == [(pipeline.store, [str(folder / "code.py")])]


def test_an_override_changes_its_stage_and_what_depends_on_it(folder: Path):
    plain = load_pipeline(folder / "pipeline.yaml").jobs
    changed = load_pipeline(folder / "pipeline.yaml", ["pretrain.steps=30"]).jobs
    assert [name for name in plain if plain[name].id != changed[name].id] == ["pretrain", "evaluate"]


def test_an_override_of_an_unknown_stage_names_the_nearest_one(folder: Path):
    with pytest.raises(ValueError, match=r"'pretrian' is not a stage of .*; did you mean pretrain\?"):
        load_pipeline(folder / "pipeline.yaml", ["pretrian.steps=30"])


def test_the_errors_of_all_stages_are_collected(folder: Path):
    (folder / "corpus.yaml").write_text("text: nowhere/*.txt\n")
    (folder / "evaluate.yaml").write_text("modles: {}\n")
    errors = load_pipeline(folder / "pipeline.yaml", ["pretrain.steps=0"]).errors
    assert "text: 'nowhere/*.txt' matches no file" in errors["corpus"]
    assert errors["pretrain"].endswith("pretrain.yaml: steps: 0 must be at least 1")
    assert "did you mean models?" in errors["evaluate"]


def test_the_error_for_a_path_that_matches_no_file_names_the_field(tmp_path: Path):
    (tmp_path / "sft.yaml").write_text("chats: [nowhere.jsonl]\ninit: x\n")
    (error,) = load_stage("sft", tmp_path / "sft.yaml", store=str(tmp_path)).errors.values()
    assert re.search(r"sft.yaml: chats\S*: 'nowhere.jsonl' matches no file", error)


def test_an_error_while_files_are_read_names_the_config(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def read_nothing(config: CorpusConfig) -> None:
        raise OSError("the bucket does not respond")

    monkeypatch.setitem(STAGES, "corpus", replace(STAGES["corpus"], check_sources=read_nothing))
    errors = load_pipeline(folder / "pipeline.yaml").errors
    assert errors["corpus"] == f"{folder / 'corpus.yaml'}: the bucket does not respond"
    (folder / "corpus.yaml").rename(folder / "mine.yaml")
    errors = load_stage("corpus", folder / "mine.yaml").errors
    assert errors == {"corpus": f"{folder / 'mine.yaml'}: the bucket does not respond"}


def test_a_stage_whose_input_has_errors_only_names_the_input(folder: Path):
    (folder / "corpus.yaml").write_text("text: nowhere/*.txt\n")
    errors = load_pipeline(folder / "pipeline.yaml").errors
    assert errors["pretrain"].endswith("corpus: the config corpus has an error, which is reported separately")


def test_an_input_of_the_wrong_kind_is_rejected(folder: Path):
    (folder / "evaluate.yaml").write_text("models: {trained: corpus}\n")
    errors = load_pipeline(folder / "pipeline.yaml").errors
    assert errors["evaluate"].endswith("models.trained: 'corpus' has the kind corpus; this input accepts model")


def test_previous_refers_to_the_last_earlier_config_that_makes_the_kind(folder: Path):
    (folder / "pretrain-2.yaml").write_text("steps: 30\n")
    (folder / "evaluate.yaml").write_text("models: {trained: previous}\n")
    (folder / "pipeline.yaml").write_text("stages: [corpus, pretrain, pretrain-2, evaluate]\n")
    assert load_pipeline(folder / "pipeline.yaml").jobs["evaluate"].planned["models.trained"].name == "pretrain-2"
    (folder / "pipeline.yaml").write_text("stages: [corpus, pretrain, evaluate, pretrain-2]\n")
    by_name = load_pipeline(folder / "pipeline.yaml", ["evaluate.models.trained=pretrain"]).jobs["evaluate"]
    assert load_pipeline(folder / "pipeline.yaml").jobs["evaluate"].id == by_name.id


def test_previous_without_a_config_that_makes_the_kind_is_rejected_with_a_remedy(folder: Path):
    (folder / "evaluate.yaml").write_text("models: {trained: previous}\n")
    (folder / "pipeline.yaml").write_text("stages: [corpus, evaluate]\n")
    error = load_pipeline(folder / "pipeline.yaml").errors["evaluate"]
    assert "no config before evaluate makes a model; set the input to the name of a config in the same folder" in error


def test_previous_in_a_config_that_no_pipeline_lists_uses_the_order_of_the_stages(folder: Path):
    (folder / "evaluate-other.yaml").write_text("models: {trained: previous}\n")
    job = load_stage("evaluate", folder / "evaluate-other.yaml").jobs["evaluate-other"]
    assert job.planned["models.trained"].name == "pretrain"


def test_an_unknown_stage_in_the_list_of_the_pipeline_does_not_matter_to_a_config_that_it_does_not_list(folder: Path):
    (folder / "evaluate-other.yaml").write_text("models: {trained: previous}\n")
    (folder / "pipeline.yaml").write_text("stages: [corpus, pretrain, pertrain]\n")
    job = load_stage("evaluate", folder / "evaluate-other.yaml").jobs["evaluate-other"]
    assert job.planned["models.trained"].name == "pretrain"


def test_inputs_that_form_a_cycle_are_rejected(folder: Path):
    (folder / "evaluate.yaml").write_text("models: {trained: evaluate}\n")
    errors = load_pipeline(folder / "pipeline.yaml").errors
    assert "evaluate → evaluate: these inputs form a cycle" in errors["evaluate"]


def test_planned_inputs_are_checked_before_they_are_finished(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def check_planned_inputs(config: Any, planned: Any) -> None:
        if planned["corpus"].name == "corpus":
            raise ValueError("sequence_length: too long")

    monkeypatch.setitem(
        STAGES, "pretrain", dataclasses.replace(STAGES["pretrain"], check_planned_inputs=check_planned_inputs)
    )
    errors = load_pipeline(folder / "pipeline.yaml").errors
    assert errors["pretrain"].endswith("pretrain.yaml: sequence_length: too long")


def test_a_stage_that_does_not_fit_the_cluster_is_rejected_before_the_first_stage_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline_run, "max_cluster_resources", lambda: {"CPU": 2.0})
    engines = {"generators": Placement(workers=2), "learners": Placement(workers=1)}
    stage = dataclasses.replace(STAGES["evaluate"], placements=lambda config: (engines,))
    monkeypatch.setitem(STAGES, "evaluate", stage)
    pipeline = load_pipeline(folder / "pipeline.yaml")
    with pytest.raises(ValueError, match=r"evaluate: execution \(generators, learners\): does not fit: needs 3 CPUs"):
        run_pipeline(pipeline)
    assert [row.state for row in plan(pipeline)] == ["pending", "pending", "pending"]


def test_an_input_that_does_not_exist_is_rejected(folder: Path):
    (folder / "evaluate.yaml").write_text("models: {trained: elsewhere/model}\n")
    assert (
        "is not the name of a config in the same folder, not a finished artifact"
        in (load_pipeline(folder / "pipeline.yaml").errors["evaluate"])
    )


def test_an_error_in_one_stage_stops_the_pipeline_before_it_starts(folder: Path):
    broken = load_pipeline(folder / "pipeline.yaml", ["pretrain.steps=0"])
    with pytest.raises(ValueError, match="steps: 0 must be at least 1"):
        run_pipeline(broken)
    assert not Path(broken.store.url).exists()


def test_a_second_run_does_nothing_and_a_changed_setting_runs_only_what_depends_on_it(folder: Path):
    first = run_pipeline(load_pipeline(folder / "pipeline.yaml"))
    again = run_pipeline(load_pipeline(folder / "pipeline.yaml"))
    assert [artifact.record for artifact in again] == [artifact.record for artifact in first]
    changed = run_pipeline(load_pipeline(folder / "pipeline.yaml", ["pretrain.steps=30"]))
    assert changed[0].record == first[0].record
    assert [artifact.stage for artifact in changed] == ["corpus", "pretrain", "evaluate"]
    assert changed[1].id != first[1].id and changed[2].id != first[2].id


def test_the_plan_shows_what_is_done_what_resumes_and_what_is_pending(folder: Path):
    pipeline = load_pipeline(folder / "pipeline.yaml")
    assert [row.state for row in plan(pipeline)] == ["pending", "pending", "pending"]
    run_pipeline(load_stage("corpus", folder / "corpus.yaml"))
    (pipeline.store / pipeline.jobs["pretrain"].id).write_bytes("half.bin", b"half")
    rows = plan(pipeline)
    assert [row.state for row in rows] == ["done", "resume", "pending"]
    assert rows[0].placement == "placement×2" and rows[1].estimate == {"steps": 20}


def test_the_plan_shows_that_an_input_has_changed(folder: Path):
    pipeline = load_pipeline(folder / "pipeline.yaml")
    corpus = run_pipeline(pipeline)[0]
    write_record(corpus.storage, replace(corpus.record, digest="of other bytes"))
    assert [row.state for row in plan(pipeline)] == ["done", "done (input changed: corpus)", "done"]


def test_a_single_stage_uses_the_store_of_its_pipeline_and_requires_finished_inputs(folder: Path):
    alone = load_stage("pretrain", folder / "pretrain.yaml", ["steps=7"])
    assert alone.store == load_pipeline(folder / "pipeline.yaml").store
    with pytest.raises(ValueError, match="corpus-[0-9a-f]{12} is not in"):
        run_pipeline(alone)
    run_pipeline(load_stage("corpus", folder / "corpus.yaml"))
    assert [artifact.stage for artifact in run_pipeline(alone)] == ["pretrain"]


def test_an_input_by_location_gives_the_same_id_as_an_input_by_name(folder: Path, tmp_path: Path):
    corpus = run_pipeline(load_stage("corpus", folder / "corpus.yaml"))[0]
    by_name = load_stage("pretrain", folder / "pretrain.yaml")
    by_location = load_stage("pretrain", folder / "pretrain.yaml", [f"corpus={corpus.storage.url}"])
    assert by_name.jobs["pretrain"].id == by_location.jobs["pretrain"].id
    upstream = by_location.jobs["pretrain"].planned["corpus"]
    assert isinstance(upstream, Artifact) and upstream.id == corpus.id


def test_a_stage_may_occur_twice_under_two_names(folder: Path):
    (folder / "pretrain-long.yaml").write_text("steps: 100\n")
    (folder / "pipeline.yaml").write_text("stages: [corpus, pretrain, pretrain-long]\n")
    pipeline = load_pipeline(folder / "pipeline.yaml", store=str(folder.parent / "other"))
    assert pipeline.jobs["pretrain-long"].id.startswith("pretrain-long-")
    artifacts = run_pipeline(pipeline)
    assert [artifact.stage for artifact in artifacts] == ["corpus", "pretrain", "pretrain"]
    assert open_artifact(Storage(str(folder.parent / "other")) / pipeline.jobs["pretrain-long"].id)


def test_an_unknown_stage_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"'pretrian' is not a stage; did you mean pretrain\?"):
        find_stage("pretrian")


@pytest.mark.parametrize("name", ALL_STAGES)
def test_every_stage_of_the_pipeline_has_its_file(name: str):
    stage: Stage = importlib.import_module(f"jobs.{name}").STAGE
    assert stage.name == name and find_stage(f"{name}-other") is stage


def test_an_input_is_the_same_job_object_as_in_the_pipeline(folder: Path):
    jobs = load_pipeline(folder / "pipeline.yaml").jobs
    upstream = jobs["pretrain"].planned["corpus"]
    assert isinstance(upstream, Job) and upstream is jobs["corpus"]


def test_environment_variables_are_read_from_the_pipeline_file_and_change_no_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("NCCL_SOCKET_IFNAME", "WANDB_PROJECT"):  # set here, so that monkeypatch removes them after the test
        monkeypatch.setenv(name, "")
    plain = load_pipeline(folder / "pipeline.yaml").jobs["pretrain"].id
    with (folder / "pipeline.yaml").open("a") as file:
        file.write("environment: {NCCL_SOCKET_IFNAME: eth0, AWS_ENDPOINT_URL: null}\n")
    with pytest.raises(
        ValueError, match=r"environment.AWS_ENDPOINT_URL: null means the value of the variable in the env"
    ):
        load_pipeline(folder / "pipeline.yaml")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    pipeline = load_pipeline(folder / "pipeline.yaml", ["environment.WANDB_PROJECT=mine"])
    assert pipeline.environment == {
        "NCCL_SOCKET_IFNAME": "eth0",
        "AWS_ENDPOINT_URL": "http://store:9000",
        "WANDB_PROJECT": "mine",
    }
    assert pipeline.jobs["pretrain"].id == plain
    assert load_stage("corpus", folder / "corpus.yaml").environment["NCCL_SOCKET_IFNAME"] == "eth0"


@pytest.mark.parametrize("what", ["pipeline", "stage"])
def test_environment_variables_are_set_before_source_files_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    with (folder / "pipeline.yaml").open("a") as file:
        file.write("environment: {AWS_ENDPOINT_URL: 'http://minio:9000'}\n")
    endpoints: list[str | None] = []
    recording_stage = dataclasses.replace(
        STAGES["corpus"], check_sources=lambda config: endpoints.append(os.environ.get("AWS_ENDPOINT_URL"))
    )
    monkeypatch.setitem(STAGES, "corpus", recording_stage)
    if what == "pipeline":
        load_pipeline(folder / "pipeline.yaml")
    else:
        load_stage("corpus", folder / "corpus.yaml")
    assert endpoints == ["http://minio:9000"]


def test_more_workers_than_an_autoscaler_can_add_are_rejected_before_the_run_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline_run, "max_cluster_resources", lambda: {"CPU": 1.0})
    begin_calls: list[bool] = []
    with pytest.raises(ValueError, match=r"corpus: execution \(placement\): does not fit: needs 2 CPUs"):
        run_pipeline(load_pipeline(folder / "pipeline.yaml"), on_begin=lambda: begin_calls.append(True))
    assert not begin_calls
    monkeypatch.setattr(pipeline_run, "max_cluster_resources", lambda: {"CPU": 2.0})
    run_pipeline(load_pipeline(folder / "pipeline.yaml"), on_begin=lambda: begin_calls.append(True))
    assert begin_calls == [True]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("WANDB_API_KEY: abc", "environment.WANDB_API_KEY looks like a secret"),
        ("HF_TOKEN: null", "environment.HF_TOKEN: the name looks like that of a secret"),
        ("AWS_SECRET_ACCESS_KEY: null", "the name looks like that of a secret"),
        ("DB_PASSWORD: x", "environment.DB_PASSWORD looks like a secret"),
        ("HTTPS_PROXY: 'http://me:hidden@proxy:3128'", "must not contain credentials"),
        ("RAYMILL_SUBMISSION: x", "is not a variable that may be set"),
        ("'A B': x", "is not a variable that may be set"),
    ],
)
def test_a_secret_in_the_environment_of_a_pipeline_is_rejected(folder: Path, entry: str, message: str):
    with (folder / "pipeline.yaml").open("a") as file:
        file.write(f"environment: {{{entry}}}\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_pipeline(folder / "pipeline.yaml")
    assert "hidden" not in str(caught.value)


def test_an_empty_list_of_stages_is_an_error(folder: Path):
    with pytest.raises(ValueError, match="pipeline.yaml: stages: the list is empty"):
        load_pipeline(folder / "pipeline.yaml", ["stages=[]"])
