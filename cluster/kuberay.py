"""Builds the Kubernetes manifest of a RayJob: a Ray cluster that runs one command and is then removed.

KubeRay (v1.7) is the Kubernetes operator that creates the cluster from the RayJob. The manifest adds what the operator
leaves out: token authentication, pods without root rights, a NetworkPolicy (Ray listens on all interfaces, and its
metrics port asks for no token), and a PodDisruptionBudget. A RayJob is also checked against the rules that the operator
applies and the Kubernetes schema does not. The caller gives the number of pods, because this file knows nothing of the
stages.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

JOB_FOLDER = "/job"
"""The folder in every pod with the configs and files of the run. It is the working directory of all Ray processes."""

_MAX_NAME_LENGTH = 47
"""The operator's limit for the name of a RayJob. It is low because the operator derives longer names from the name."""
_DNS_1035_LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_USER_ID = 1000
"""The Linux user under which all containers run."""
_MAX_FILES_BYTES = 1 << 20
"""The files are stored in a ConfigMap, which Kubernetes limits to 1 MiB."""
_SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
"""The values of `submissionMode` that the operator accepts."""


@dataclass(frozen=True, kw_only=True)
class PodShape:
    """The resources of one pod."""

    cpus: int
    memory_gib: int
    gpus: int = 0
    node_selector: dict[str, str] = field(default_factory=dict)
    """The labels that a Kubernetes node must have to run the pod."""


@dataclass(frozen=True, kw_only=True)
class SecretVariable:
    """An environment variable whose value is kept in a Kubernetes Secret."""

    variable: str
    secret_name: str
    """The name of the Secret."""
    key: str
    """The key of the value within the Secret."""
    optional: bool = False
    """Whether pods start even if the Secret does not exist."""

    def to_manifest(self) -> dict[str, Any]:
        """The variable as an entry of a container's `env`."""
        source = {"name": self.secret_name, "key": self.key, "optional": self.optional}
        return {"name": self.variable, "valueFrom": {"secretKeyRef": source}}


@dataclass(frozen=True, kw_only=True)
class Redis:
    """A Redis database in which Ray's head node stores the cluster's state.

    With it the workers survive a restart of the head.
    """

    address: str
    """The database's host and port, as in `redis.example.com:6379`."""
    secret_name: str
    """The name of the Secret with the password."""
    key: str = "password"
    """The key of the password within the Secret."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """`cluster.yaml`: the settings of a run on Kubernetes. It contains the names of Secrets and no secret values."""

    image: str
    """A container image with Raymill installed (k8s/Containerfile)."""
    name: str = "raymill"
    """The name of the RayJob."""
    head: PodShape = field(default_factory=lambda: PodShape(cpus=4, memory_gib=16))
    """The resources of the head pod, which runs the driver and no workers."""
    data: PodShape = field(default_factory=lambda: PodShape(cpus=16, memory_gib=64))
    """The resources of a pod for work without GPUs."""
    data_pods: int = 1
    """The smallest number of data pods; there are more if the workers of a stage need them. More pods also speed up the
    stages that use all CPUs of the cluster."""
    train: PodShape = field(default_factory=lambda: PodShape(cpus=32, memory_gib=256, gpus=8))
    """The resources of a pod for training workers with GPUs."""
    rollout: PodShape = field(default_factory=lambda: PodShape(cpus=32, memory_gib=256, gpus=8))
    """The resources of a pod for vLLM engines that do not share GPUs with training workers."""
    secrets: list[SecretVariable] = field(default_factory=list)
    """Environment variables of all pods with values from Secrets."""
    service_account: str | None = None
    """The Kubernetes service account of the pods, if object storage grants access by the pod's identity."""
    redis: Redis | None = None
    """Optional storage of the cluster's state, with which the workers survive a restart of the head. With null they do
    not. In both cases the job is retried after a restart of the head, because the driver runs on the head. The job then
    resumes from its checkpoints."""
    grace_s: int = 120
    """Seconds that a pod has to end after it is asked to. This must be longer than writing a checkpoint takes."""
    retries: int = 3
    """How often the whole command is retried after a failure. A retry skips finished stages and resumes training from
    its checkpoints."""
    keep_s: int = 600
    """Seconds that the cluster is kept after the command has ended, so that its dashboard can be read."""
    operator_namespace: str = "kuberay-system"
    """The namespace of the KubeRay operator. Besides the cluster's pods only the operator may connect to the pods."""

    def check(self) -> None:
        """Raises ValueError if a value is out of its range or the name is not allowed."""
        if len(self.name) > _MAX_NAME_LENGTH or not _DNS_1035_LABEL.match(self.name):
            raise ValueError(
                f"name: {self.name!r} must have at most {_MAX_NAME_LENGTH} characters: lower-case letters, digits and "
                "dashes, beginning with a letter and not ending with a dash"
            )
        shapes = {"head": self.head, "data": self.data, "train": self.train, "rollout": self.rollout}
        for name, shape in shapes.items():
            if shape.cpus < 1 or shape.memory_gib < 1 or shape.gpus < 0:
                raise ValueError(f"{name}: cpus and memory_gib must be at least 1, and gpus must not be negative")
        for name, value, minimum in (
            ("data_pods", self.data_pods, 1),
            ("grace_s", self.grace_s, 31),
            ("retries", self.retries, 0),
            ("keep_s", self.keep_s, 0),
        ):
            if value < minimum:
                raise ValueError(f"{name}: {value} must be at least {minimum}")


@dataclass(frozen=True)
class PodGroup:
    """A group of equal worker pods.

    The number of pods is fixed, because a stage does not start before all its workers fit.
    """

    name: str
    """`data`, `train` or `rollout`, as in `ClusterConfig`."""
    shape: PodShape
    """The resources of each pod."""
    num_pods: int


def count_pods(workers: Sequence[Mapping[str, float]], shape: PodShape, field: str) -> int:
    """The number of pods of `shape` that the workers need.

    Each worker is given by its resources, {"CPU": …, "GPU": …}. The workers are placed one by one, the largest first,
    each in the first pod that has room for it. `field` is the config field that defines the workers.
    Raises ValueError if a worker is larger than a pod.
    """
    capacity = {"CPU": float(shape.cpus), "GPU": float(shape.gpus)}
    free_in_pods: list[dict[str, float]] = []
    for worker in sorted(workers, key=lambda worker: (-worker.get("GPU", 0.0), -worker.get("CPU", 0.0))):
        for name, amount in worker.items():
            if amount > capacity[name]:
                raise ValueError(
                    f"{field}: a worker needs {amount:g} {name}, but one pod has {capacity[name]:g}; "
                    "enlarge the pod or lower the resources of each worker"
                )
        fitting = (free for free in free_in_pods if all(free[name] + 1e-9 >= worker[name] for name in worker))
        free = next(fitting, None)
        if free is None:
            free = dict(capacity)
            free_in_pods.append(free)
        for name, amount in worker.items():
            free[name] -= amount
    return len(free_in_pods)


def build_manifest(
    config: ClusterConfig,
    groups: Sequence[PodGroup],
    *,
    command: str,
    files: Mapping[str, str],
    env: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The Kubernetes objects that run `command` on a cluster of the worker pods in `groups`.

    `files` maps paths below `JOB_FOLDER` to contents. `env` contains the environment variables of every pod, besides
    those from Secrets. Raises ValueError if `ClusterConfig.check` or `check_ray_job` finds an error, or if the files
    are too large for a ConfigMap.
    """
    config.check()
    if sum(len(content.encode()) for content in files.values()) > _MAX_FILES_BYTES:
        raise ValueError(
            "the configs and .py files of the run are larger than 1 MiB in all, the limit of a Kubernetes ConfigMap; "
            "install the .py files in the image instead"
        )
    keys = _config_map_keys(files)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config, f"{config.name}-files"),
        "data": {key: files[path] for path, key in keys.items()},
    }
    settings = _PodSettings(config, [{"name": name, "value": value} for name, value in env.items()], keys)
    job = _ray_job(config, groups, command, settings)
    check_ray_job(job)
    return [config_map, _network_policy(config), _disruption_budget(config, groups), job]


def _config_map_keys(paths: Iterable[str]) -> dict[str, str]:
    """The ConfigMap key of each path: a dict from paths to keys.

    A key is the path with underscores in place of slashes and of all other characters that Kubernetes does not allow in
    a key. If several paths would have the same key, a digest of the path precedes each of these keys.
    """
    keys = {path: re.sub(r"[^-._a-zA-Z0-9]", "_", path) for path in sorted(paths)}
    repeated = {key for key, count in Counter(keys.values()).items() if count > 1}
    return {
        path: f"{hashlib.sha256(path.encode()).hexdigest()[:8]}-{key}" if key in repeated else key
        for path, key in keys.items()
    }


@dataclass(frozen=True)
class _PodSettings:
    """The settings that all pods have in common."""

    config: ClusterConfig
    env: list[dict[str, Any]]
    """The entries of each container's `env`, without those from Secrets."""
    config_map_keys: Mapping[str, str]
    """The ConfigMap key of each file, by its path."""


def _ray_job(config: ClusterConfig, groups: Sequence[PodGroup], command: str, settings: _PodSettings) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # The head offers no CPUs, so that no worker runs there. A worker that used up the head's memory would end
            # the cluster.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod_template(settings, "head", config.head),
        },
        "workerGroupSpecs": [
            {
                "groupName": group.name,
                "replicas": group.num_pods,
                "minReplicas": group.num_pods,
                "maxReplicas": group.num_pods,
                "rayStartParams": {},
                "template": _pod_template(settings, group.name, group.shape),
            }
            for group in groups
        ],
    }
    if config.redis is not None:
        password = {"secretKeyRef": {"name": config.redis.secret_name, "key": config.redis.key}}
        cluster["gcsFaultToleranceOptions"] = {
            "redisAddress": config.redis.address,
            "redisPassword": {"valueFrom": password},
        }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(config, config.name),
        "spec": {
            "entrypoint": command,
            # The submitter runs in the head pod, because a log stream between two pods may hang.
            "submissionMode": "SidecarMode",
            "backoffLimit": config.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": config.keep_s,
            "rayClusterSpec": cluster,
        },
    }


def _pod_template(settings: _PodSettings, role: str, shape: PodShape) -> dict[str, Any]:
    """The template of the head pod or of the pods of a group. `role` is `head` or the name of the group."""
    config = settings.config
    resources: dict[str, Any] = {"cpu": str(shape.cpus), "memory": f"{shape.memory_gib}Gi"}
    if shape.gpus:
        resources["nvidia.com/gpu"] = str(shape.gpus)
    container = {
        "name": "ray-head" if role == "head" else "ray-worker",
        "image": config.image,
        # Ray's workers inherit this folder, so relative paths in configs (such as a verifier's) work in all of them.
        "workingDir": JOB_FOLDER,
        "env": [{"name": "HOME", "value": "/tmp"}, *settings.env, *(secret.to_manifest() for secret in config.secrets)],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "files", "mountPath": JOB_FOLDER, "readOnly": True},
            {"name": "scratch", "mountPath": "/tmp"},
        ],
    }
    items = [{"key": key, "path": path} for path, key in settings.config_map_keys.items()]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": config.grace_s,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "fsGroup": _USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "files", "configMap": {"name": f"{config.name}-files", "items": items}},
            {"name": "scratch", "emptyDir": {}},
        ],
    }
    if config.service_account:
        spec["serviceAccountName"] = config.service_account
    if shape.node_selector:
        spec["nodeSelector"] = dict(shape.node_selector)
    if shape.gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": {**_labels(config), "app.kubernetes.io/component": role}}, "spec": spec}


def _network_policy(config: ClusterConfig) -> dict[str, Any]:
    """A policy that lets only the cluster's pods connect to each other, and the operator to the dashboard."""
    cluster_pods = {"podSelector": {"matchLabels": _labels(config)}}
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": config.operator_namespace}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(config, config.name),
        "spec": {
            **cluster_pods,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [cluster_pods]},
                {"from": [operator], "ports": [{"port": 8265, "protocol": "TCP"}]},
            ],
        },
    }


def _disruption_budget(config: ClusterConfig, groups: Sequence[PodGroup]) -> dict[str, Any]:
    """A budget that protects the head and the training pods from eviction.

    The eviction of one of them would set all training workers back to the last checkpoint.
    """
    protected_roles = ["head", *(group.name for group in groups if group.name == "train")]
    num_protected = 1 + sum(group.num_pods for group in groups if group.name == "train")
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(config, config.name),
        "spec": {
            "minAvailable": num_protected,  # Kubernetes allows no percentage here for pods of a custom controller.
            "selector": {
                "matchLabels": _labels(config),
                "matchExpressions": [
                    {"key": "app.kubernetes.io/component", "operator": "In", "values": protected_roles}
                ],
            },
        },
    }


def _metadata(config: ClusterConfig, name: str) -> dict[str, Any]:
    return {"name": name, "labels": _labels(config)}


def _labels(config: ClusterConfig) -> dict[str, str]:
    return {"app.kubernetes.io/name": "raymill", "app.kubernetes.io/instance": config.name}


def check_ray_job(job: Mapping[str, Any]) -> None:
    """Raises ValueError if a RayJob breaks a rule that the operator applies and the Kubernetes schema does not.

    The operator would accept such a RayJob and then fail it, or silently ignore a setting. The rules are from
    ray-operator/controllers/ray/utils/validation.go of KubeRay v1.7.
    """
    spec, name = job["spec"], job["metadata"]["name"]
    cluster = spec.get("rayClusterSpec")
    _require(len(name) <= _MAX_NAME_LENGTH, f"metadata.name: {name!r} is longer than {_MAX_NAME_LENGTH} characters")
    _require(bool(_DNS_1035_LABEL.match(name)), f"metadata.name: {name!r} is not a DNS-1035 label")
    mode = spec.get("submissionMode", "K8sJobMode")
    _require(mode in _SUBMISSION_MODES, f"submissionMode: {mode!r} must be one of {', '.join(_SUBMISSION_MODES)}")
    has_selector = bool(spec.get("clusterSelector"))
    _require(bool(cluster) != has_selector, "exactly one of rayClusterSpec and clusterSelector must be set")
    _require(spec.get("backoffLimit", 0) >= 0, "backoffLimit must not be negative")
    _require(
        not (spec.get("backoffLimit") and (has_selector or mode == "InteractiveMode")),
        "backoffLimit: a job with clusterSelector or in InteractiveMode cannot be retried; set it to 0",
    )
    shuts_down, ttl_s = spec.get("shutdownAfterJobFinishes", False), spec.get("ttlSecondsAfterFinished", 0)
    _require(ttl_s >= 0, "ttlSecondsAfterFinished must not be negative")
    _require(shuts_down or not ttl_s, "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true")
    _require(shuts_down or not spec.get("suspend"), "suspend needs shutdownAfterJobFinishes: true")
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    _require(not (shuts_down and rules), "only one of shutdownAfterJobFinishes and deletionRules may be set")
    if mode == "SidecarMode":
        for field_name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            _require(not spec.get(field_name), f"{field_name} cannot be used with SidecarMode")
        policy = cluster["headGroupSpec"]["template"]["spec"].get("restartPolicy", "Never")
        _require(policy == "Never", "the head's restartPolicy must be Never in SidecarMode")
    if cluster:
        _check_cluster(cluster)


def _check_cluster(cluster: Mapping[str, Any]) -> None:
    groups = cluster.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in groups]
    _require(len(set(names)) == len(names), f"workerGroupSpecs: two groups have the same name in {names}")
    for group in groups:
        min_replicas, max_replicas = group["minReplicas"], group["maxReplicas"]
        replicas = group.get("replicas", min_replicas)
        _require(
            0 <= min_replicas <= replicas <= max_replicas,
            f"{group['groupName']}: 0 <= minReplicas <= replicas <= maxReplicas must be true, but they are "
            f"{min_replicas}, {replicas} and {max_replicas}",
        )
    for name, group in [("head", cluster["headGroupSpec"]), *zip(names, groups, strict=True)]:
        containers = group["template"]["spec"].get("containers", [])
        _require(bool(containers), f"{name}: needs at least one container")
        parameters = group.get("rayStartParams", {})
        resource_parameters = {"num-cpus", "num-gpus", "memory", "resources"} & parameters.keys()
        _require(
            not (resource_parameters and group.get("resources")),
            f"{name}: the resources are set both in resources and in rayStartParams; remove one of the two",
        )
        _require("labels" not in parameters, f"{name}: set labels in the group instead of rayStartParams")
    head_env = {entry["name"] for entry in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    stores_state_in_redis = "gcsFaultToleranceOptions" in cluster
    for variable in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"):
        _require(variable not in head_env, f"{variable}: use gcsFaultToleranceOptions instead of the variable")
    head_parameters = cluster["headGroupSpec"].get("rayStartParams", {})
    _require(
        not (stores_state_in_redis and "redis-password" in head_parameters),
        "rayStartParams.redis-password: use gcsFaultToleranceOptions.redisPassword instead",
    )
    if cluster.get("authOptions", {}).get("mode") == "token":
        ray_version = tuple(int(number) for number in cluster.get("rayVersion", "0").split(".")[:2])
        _require(ray_version >= (2, 52), "authOptions.mode: token needs rayVersion 2.52 or newer")


def _require(is_valid: bool, message: str) -> None:
    if not is_valid:
        raise ValueError(f"RayJob: {message}")
