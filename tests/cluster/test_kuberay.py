"""A manifest is valid by KubeRay's schema and by the operator's rules, and is secure by default."""

import copy
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from cluster.kuberay import (
    JOB_FOLDER,
    ClusterConfig,
    PodGroup,
    PodShape,
    Redis,
    SecretVariable,
    build_manifest,
    check_ray_job,
    count_pods,
)

SHAPE = PodShape(cpus=8, memory_gib=32, gpus=4)


def config(**changes: Any) -> ClusterConfig:
    key = SecretVariable(variable="WANDB_API_KEY", secret_name="wandb", key="api-key", optional=True)
    return ClusterConfig(**{"image": "raymill:1", "secrets": [key], **changes})


def objects(**changes: Any) -> dict[str, dict[str, Any]]:
    """The objects of a manifest with two train pods and one rollout pod, by their kind."""
    manifest = build_manifest(
        config(**changes),
        [PodGroup("train", SHAPE, 2), PodGroup("rollout", SHAPE, 1)],
        command="raymill run pipeline configs/a.yaml",
        files={"configs/a.yaml": "steps: 1\n"},
        env={"A": "1"},
    )
    return {item["kind"]: item for item in manifest}


def pod_specs(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("redis", [None, Redis(address="redis:6379", secret_name="redis")])
def test_the_manifest_is_valid_by_the_schema(redis: Redis | None, rayjob_definition: jsonschema.Draft202012Validator):
    job = objects(redis=redis, service_account="trainer")["RayJob"]
    rayjob_definition.validate(job)


def test_the_schema_rejects_a_misspelled_field(rayjob_definition: jsonschema.Draft202012Validator):
    job = objects()["RayJob"]
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["templat"] = {}
    with pytest.raises(jsonschema.ValidationError, match="'templat' was unexpected"):
        rayjob_definition.validate(job)


def test_every_pod_runs_without_root_rights_and_privileges():
    for spec in pod_specs(objects()["RayJob"]):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_manifest_names_a_secret_and_does_not_contain_its_value():
    (container,) = pod_specs(objects()["RayJob"])[0]["containers"]
    by_name = {entry["name"]: entry for entry in container["env"]}
    assert by_name["WANDB_API_KEY"] == {
        "name": "WANDB_API_KEY",
        "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "api-key", "optional": True}},
    }
    assert by_name["A"]["value"] == "1"
    assert "runtimeEnvYAML" not in objects()["RayJob"]["spec"]


def test_the_cluster_needs_a_token_and_only_its_pods_can_connect():
    manifest = objects()
    assert manifest["RayJob"]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    labels = {"app.kubernetes.io/name": "raymill", "app.kubernetes.io/instance": "raymill"}
    cluster_pods, operator = manifest["NetworkPolicy"]["spec"]["ingress"]
    assert cluster_pods == {"from": [{"podSelector": {"matchLabels": labels}}]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    cluster = manifest["RayJob"]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert labels.items() <= group["template"]["metadata"]["labels"].items()


def test_no_worker_runs_on_the_head_and_the_head_is_not_evicted():
    manifest = objects()
    head = manifest["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    budget = manifest["PodDisruptionBudget"]["spec"]
    assert budget["minAvailable"] == 3  # One head and two training pods.
    assert budget["selector"]["matchExpressions"][0]["values"] == ["head", "train"]


def test_the_files_are_mounted_in_the_working_directory_of_every_pod():
    manifest = objects()
    assert manifest["ConfigMap"]["data"] == {"configs_a.yaml": "steps: 1\n"}
    for spec in pod_specs(manifest["RayJob"]):
        assert spec["containers"][0]["workingDir"] == JOB_FOLDER
        assert spec["volumes"][0]["configMap"] == {
            "name": "raymill-files",
            "items": [{"key": "configs_a.yaml", "path": "configs/a.yaml"}],
        }


def test_files_whose_keys_would_be_equal_are_both_mounted():
    files = {"a.yaml": "a", "pkg/words.py": "one", "pkg_words.py": "two"}
    manifest = {item["kind"]: item for item in build_manifest(config(), [], command="raymill", files=files, env={})}
    (spec,) = pod_specs(manifest["RayJob"])
    (config_map,) = [volume["configMap"] for volume in spec["volumes"] if "configMap" in volume]
    data = manifest["ConfigMap"]["data"]
    assert {item["path"]: data[item["key"]] for item in config_map["items"]} == files


def test_gpu_pods_request_gpus_and_tolerate_the_taint_of_gpu_nodes():
    head, train, _ = pod_specs(objects()["RayJob"])
    assert train["containers"][0]["resources"]["limits"] == {
        "cpu": "8",
        "memory": "32Gi",
        "nvidia.com/gpu": "4",
    }
    assert train["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "tolerations" not in head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a" * 48}, "name: 'a+' must have at most 47 characters"),
        ({"name": "Raymill"}, "name: 'Raymill' must have at most 47 characters: lower-case"),
        ({"grace_s": 30}, "grace_s: 30 must be at least 31"),
        ({"data_pods": 0}, "data_pods: 0 must be at least 1"),
        ({"head": PodShape(cpus=0, memory_gib=1)}, "head: cpus and memory_gib must be at least 1"),
    ],
)
def test_a_setting_that_kubernetes_would_reject_is_an_error(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        objects(**changes)


def set_at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(job: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        parent: Any = job
        for key in parents:
            parent = parent[int(key)] if key.isdigit() else parent[key]
        parent[last] = value

    return change


CLUSTER = "spec.rayClusterSpec"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("metadata.name", "a" * 48), "longer than 47"),
        (set_at("metadata.name", "Raymill"), "is not a DNS-1035 label"),
        (set_at("spec.submissionMode", "Foo"), "submissionMode: 'Foo' must be one of"),
        (set_at("spec.backoffLimit", -1), "backoffLimit must not be negative"),
        (set_at("spec.submissionMode", "InteractiveMode"), "cannot be retried"),
        (set_at("spec.clusterSelector", {"ray.io/cluster": "x"}), "exactly one of"),
        (set_at("spec.shutdownAfterJobFinishes", False), "ttlSecondsAfterFinished needs"),
        (set_at("spec.ttlSecondsAfterFinished", -1), "must not be negative"),
        (
            set_at("spec.deletionStrategy", {"deletionRules": [{}]}),
            "only one of shutdownAfterJobFinishes and deletionRules",
        ),
        (set_at("spec.submitterConfig", {"backoffLimit": 1}), "submitterConfig cannot be used with SidecarMode"),
        (set_at(f"{CLUSTER}.headGroupSpec.template.spec.restartPolicy", "Always"), "must be Never"),
        (
            set_at(f"{CLUSTER}.workerGroupSpecs.0.replicas", -1),
            "train: 0 <= minReplicas <= replicas <= maxReplicas must be true",
        ),
        (set_at(f"{CLUSTER}.workerGroupSpecs.0.minReplicas", 9), "but they are 9, 2 and 2"),
        (set_at(f"{CLUSTER}.workerGroupSpecs.1.groupName", "train"), "two groups have the same name"),
        (set_at(f"{CLUSTER}.workerGroupSpecs.0.template.spec.containers", []), "at least one container"),
        (set_at(f"{CLUSTER}.headGroupSpec.resources", {"CPU": "1"}), "set both in resources and in rayStartParams"),
        (set_at(f"{CLUSTER}.headGroupSpec.rayStartParams.labels", "a=b"), "set labels in the group"),
        (set_at(f"{CLUSTER}.rayVersion", "2.51.0"), "needs rayVersion 2.52"),
    ],
)
def test_a_job_that_the_schema_allows_and_the_operator_rejects_is_an_error(
    change: Callable[[dict[str, Any]], None], message: str
):
    job = copy.deepcopy(objects()["RayJob"])
    check_ray_job(job)
    change(job)
    with pytest.raises(ValueError, match=message):
        check_ray_job(job)


def test_workers_are_packed_into_pods_first_fit():
    worker = {"CPU": 2.0, "GPU": 1.0}
    assert count_pods([worker] * 4, SHAPE, "train") == 1  # The workers use all 8 CPUs and 4 GPUs of a pod.
    assert count_pods([worker] * 5, SHAPE, "train") == 2
    assert (
        count_pods([{"CPU": 5.0}, {"CPU": 5.0}, {"CPU": 3.0}], SHAPE, "data") == 2
    )  # One pod has 5 + 3 CPUs in use, the other 5.
    assert count_pods([], SHAPE, "data") == 0


def test_a_worker_larger_than_a_pod_is_rejected():
    with pytest.raises(ValueError, match="train: a worker needs 8 GPU, but one pod has 4; enlarge the pod"):
        count_pods([{"GPU": 8.0}], SHAPE, "train")
