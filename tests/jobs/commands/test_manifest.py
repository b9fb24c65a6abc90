"""The committed manifest is up to date, and its pod groups are as large as the stages need."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from actors.settings import GraphExecution, LearningConfig
from cluster.kuberay import ClusterConfig, PodShape, check_ray_job
from cluster.placement import Placement, TasksExecution
from jobs.commands.manifest import pod_groups, render_manifest
from jobs.frame.pipeline import load_stage
from jobs.frame.pipeline_config import load_configs
from jobs.frame.stages import find_stage
from jobs.frame.training_config import TrainingExecution

ROOT = Path(__file__).parents[3]
CONFIG, CLUSTER = Path("configs/1b/pipeline.yaml"), Path("k8s/cluster.yaml")


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("at_root")
def test_the_committed_manifest_is_up_to_date():
    rendered = render_manifest("pipeline", CONFIG, [], store=None, cluster=CLUSTER)
    assert Path("k8s/rayjob.yaml").read_text() == rendered, (
        f"update it with: raymill manifest pipeline {CONFIG} --cluster {CLUSTER} > k8s/rayjob.yaml"
    )
    objects = {value["kind"]: value for value in yaml.safe_load_all(rendered)}
    check_ray_job(objects["RayJob"])
    shipped = objects["ConfigMap"]["data"]
    assert shipped["configs_1b_pretrain.yaml"] == Path("configs/1b/pretrain.yaml").read_text()
    groups = objects["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert {group["groupName"]: group["replicas"] for group in groups} == {"data": 4, "train": 2, "rollout": 1}


@pytest.mark.usefixtures("at_root")
def test_the_committed_manifest_is_valid_by_the_schema_of_kuberay(rayjob_definition: jsonschema.Draft202012Validator):
    (job,) = [value for value in yaml.safe_load_all(Path("k8s/rayjob.yaml").read_text()) if value["kind"] == "RayJob"]
    rayjob_definition.validate(job)


@pytest.mark.usefixtures("at_root")
def test_the_job_runs_the_same_command():
    rendered = render_manifest(
        "pretrain", Path("configs/1b/pretrain.yaml"), ["steps=5"], store="s3://bucket/runs", cluster=CLUSTER
    )
    (job,) = [value for value in yaml.safe_load_all(rendered) if value["kind"] == "RayJob"]
    assert job["spec"]["entrypoint"] == (
        "raymill run pretrain configs/1b/pretrain.yaml steps=5 --store s3://bucket/runs"
    )
    assert rendered.splitlines()[0] == (
        "# Written by: raymill manifest pretrain configs/1b/pretrain.yaml steps=5 --store s3://bucket/runs "
        "--cluster k8s/cluster.yaml"
    )


@pytest.mark.usefixtures("at_root")
def test_a_single_stage_ships_the_configs_that_its_inputs_can_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rendered = render_manifest("pretrain", Path("configs/1b/pretrain.yaml"), [], store="s3://b/runs", cluster=CLUSTER)
    (shipped,) = [value["data"] for value in yaml.safe_load_all(rendered) if value["kind"] == "ConfigMap"]
    for name, text in shipped.items():
        file = tmp_path / name.replace("_", "/", 2)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "web.txt").write_text("words")
    monkeypatch.chdir(tmp_path)
    loaded = {name: yaml.safe_load(Path(f"configs/1b/{name}.yaml").read_text()) for name in ("corpus", "vocabulary")}
    loaded["corpus"]["sources"] = [{"name": "web", "path": "web.txt", "format": "text"}]
    loaded["corpus"]["steps"] = []
    loaded["corpus"].pop("mixture", None)
    Path("configs/1b/corpus.yaml").write_text(yaml.safe_dump(loaded["corpus"]))
    pipeline = load_stage("pretrain", Path("configs/1b/pretrain.yaml"), store="runs")
    assert not pipeline.errors and pipeline.jobs["pretrain"].planned["shards"].name == "shards"


@pytest.mark.usefixtures("at_root")
def test_a_single_stage_ships_only_the_configs_of_its_inputs_even_if_others_are_broken_or_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cluster = CLUSTER.resolve()
    monkeypatch.chdir(tmp_path)
    Path("pipeline.yaml").write_text("store: s3://bucket/runs\nstages: [corpus, vocabulary, sft]\n")
    Path("corpus.yaml").write_text("sources: [{name: web, path: 's3://b/web.txt', format: text}]\n")
    Path("vocabulary.yaml").write_text("corpus: corpus\n")
    Path("tokens.yaml").write_text("nonsense: 1\n")
    Path("shards.yaml").write_text("corpus: corpus\ntokenizer: previous\n")
    Path("pretrain.yaml").write_text("shards: shards\n")
    Path("sft.yaml").write_text("nonsense: 1\n")
    rendered = render_manifest("pretrain", Path("pretrain.yaml"), [], store=None, cluster=cluster)
    (shipped,) = [value["data"] for value in yaml.safe_load_all(rendered) if value["kind"] == "ConfigMap"]
    assert sorted(shipped) == ["corpus.yaml", "pipeline.yaml", "pretrain.yaml", "shards.yaml", "vocabulary.yaml"]


@pytest.mark.usefixtures("at_root")
def test_the_store_is_read_from_the_pipeline_file_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cluster = CLUSTER.resolve()
    monkeypatch.chdir(tmp_path)
    Path("pipeline.yaml").write_text("store: s3://bucket/full\nstages: []\n")
    Path("small.yaml").write_text("store: s3://bucket/small\nstages: []\n")
    rendered = render_manifest("pipeline", Path("small.yaml"), [], store=None, cluster=cluster)
    (job,) = [value for value in yaml.safe_load_all(rendered) if value["kind"] == "RayJob"]
    assert job["spec"]["entrypoint"] == "raymill run pipeline small.yaml --store s3://bucket/small"


@pytest.mark.usefixtures("at_root")
def test_a_config_with_an_absolute_path_is_rejected():
    with pytest.raises(ValueError, match="the path of this file must be relative to the working directory"):
        render_manifest("pipeline", CONFIG.resolve(), [], store=None, cluster=CLUSTER)


@pytest.mark.usefixtures("at_root")
def test_a_verifier_behind_a_url_is_not_shipped():
    overrides = ["rlhf.reward=null", "rlhf.verifier=s3://bucket/checks.py:short"]
    rendered = render_manifest("pipeline", CONFIG, overrides, store=None, cluster=CLUSTER)
    (shipped,) = [value for value in yaml.safe_load_all(rendered) if value["kind"] == "ConfigMap"]
    assert [key for key in shipped["data"] if key.endswith(".py")] == []


@pytest.mark.usefixtures("at_root")
def test_a_path_on_this_machine_is_rejected():
    with pytest.raises(ValueError, match="store: 'runs/tiny' is a path on this machine; use a URL"):
        render_manifest("pipeline", CONFIG, [], store="runs/tiny", cluster=CLUSTER)
    with pytest.raises(ValueError, match="sft: source: 'chats.jsonl' is a path on this machine"):
        render_manifest("pipeline", CONFIG, ["sft.chats=[chats.jsonl]"], store=None, cluster=CLUSTER)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(
    ("source", "is_rejected"),
    [
        ("zip://a.json::file://x.whl", True),
        ("file://data/x.jsonl", True),
        ("local://x.jsonl", True),
        ("code/*.py", True),
        ("zip://a.json::/mnt/x.zip", False),
        ("file:///mnt/x.jsonl", False),
        ("zip://a.json::s3://bucket/x.zip", False),
    ],
)
def test_a_source_is_rejected_if_its_outermost_path_is_on_this_machine(source: str, is_rejected: bool):
    with pytest.raises(ValueError, match="is a path on this machine") if is_rejected else nullcontext():
        render_manifest("pipeline", CONFIG, [f"sft.chats=['{source}']"], store=None, cluster=CLUSTER)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("folder", ["tiny", "1b"])
def test_every_committed_config_passes_the_checks_of_its_stage(folder: str):
    configs = load_configs("pipeline", Path(f"configs/{folder}/pipeline.yaml"))
    listed = {path.stem for path in Path(f"configs/{folder}").glob("*.yaml")} - {"pipeline"}
    assert set(configs) <= listed
    for name in sorted(listed):
        stage = find_stage(name)
        (config,) = load_configs(stage.name, Path(f"configs/{folder}/{name}.yaml")).values()
        stage.check(config)


@dataclass(frozen=True, kw_only=True)
class Config:
    execution: Any = field(default_factory=TasksExecution)
    learning: LearningConfig = field(default_factory=LearningConfig)


def gpu(workers: int) -> Placement:
    return Placement(workers=workers, cpus_per_worker=2, gpus_per_worker=1, backend="nccl")


SETTINGS = ClusterConfig(
    image="raymill",
    data=PodShape(cpus=8, memory_gib=8),
    train=PodShape(cpus=16, memory_gib=8, gpus=4),
    rollout=PodShape(cpus=16, memory_gib=8, gpus=2),
)


def pods_by_group(learning: LearningConfig | None = None, **executions: Any) -> dict[str, int]:
    learning = learning or LearningConfig()
    configs = {name: Config(execution=execution, learning=learning) for name, execution in executions.items()}
    return {group.name: group.num_pods for group in pod_groups(configs, SETTINGS)}


def test_a_pod_group_is_as_large_as_its_most_demanding_stage_needs():
    graph = GraphExecution(generators=gpu(3), learners=gpu(4), colocate=False)
    assert pods_by_group(
        corpus=TasksExecution(workers=20), pretrain=TrainingExecution(placement=gpu(6)), rlhf=graph
    ) == {
        "data": 3,  # 20 tasks on pods of 8 CPUs
        "train": 2,  # 6 GPUs for pretrain, 4 for the learners
        "rollout": 2,  # 3 engines on pods of 2 GPUs
    }


def test_engines_that_share_a_node_with_the_learners_get_no_rollout_pods():
    graph = GraphExecution(generators=gpu(2), learners=gpu(3), colocate=True)
    assert pods_by_group(rlhf=graph) == {"data": 1, "train": 2}


def test_actors_that_the_algorithm_does_not_start_get_no_pods():
    graph = GraphExecution(generators=gpu(1), learners=gpu(4), critics=gpu(4), reference=gpu(1), colocate=False)
    assert pods_by_group(LearningConfig(kl_coefficient=0.0), rlhf=graph)["train"] == 1
    assert pods_by_group(LearningConfig(), rlhf=graph)["train"] == 2
    assert pods_by_group(LearningConfig(algorithm="ppo"), rlhf=graph)["train"] == 3


def test_work_without_gpus_runs_on_data_pods():
    assert pods_by_group(corpus=TasksExecution(), pretrain=TrainingExecution(placement=Placement(workers=9))) == {
        "data": 2
    }
