"""The Kubernetes manifest of a Ray cluster that runs one command, and a check by the operator's own rules.

This file knows KubeRay (v1.7) and no stage; the caller gives the sizes of the pod groups. It adds what the operator
does not: token authentication, no root, a NetworkPolicy (Ray's ports listen on all interfaces, the metrics port without
a token), and a PodDisruptionBudget.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

MOUNT = "/job"
"""The folder of the shipped files in every pod, and the working directory of everything that Ray starts there."""

_MAX_NAME = 47
_LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")  # a DNS-1035 label
_USER = 1000
_MAX_SHIPPED_BYTES = 1 << 20  # the limit of a ConfigMap
_SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")


@dataclass(frozen=True, kw_only=True)
class PodShape:
    """The resources of a pod."""

    cpus: int
    memory_gib: int
    gpus: int = 0
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels that a Kubernetes node must have to run it."""


@dataclass(frozen=True, kw_only=True)
class SecretVariable:
    """An environment variable whose value is kept in a Kubernetes Secret."""

    variable: str
    secret_name: str
    """The Secret's name."""
    key: str
    optional: bool = False
    """Whether pods start without it."""

    def to_manifest(self) -> dict[str, Any]:
        """The entry of a container's `env`."""
        source = {"name": self.secret_name, "key": self.key, "optional": self.optional}
        return {"name": self.variable, "valueFrom": {"secretKeyRef": source}}


@dataclass(frozen=True, kw_only=True)
class Redis:
    """A Redis in which the head keeps the cluster's state, so that the workers survive a restart of the head."""

    address: str
    """`host:6379`"""
    secret_name: str
    """Name of the Secret that holds the password."""
    key: str = "password"


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """`cluster.yaml`: the Kubernetes side of a run. It holds no secret, only the names of Secrets."""

    image: str
    """An image with Raymill in it (k8s/Containerfile)."""
    name: str = "raymill"
    head: PodShape = field(default_factory=lambda: PodShape(cpus=4, memory_gib=16))
    """Runs the driver and no worker."""
    data: PodShape = field(default_factory=lambda: PodShape(cpus=16, memory_gib=64))
    data_pods: int = 1
    """The smallest number of data pods; stages that use all CPUs are faster with more."""
    train: PodShape = field(default_factory=lambda: PodShape(cpus=32, memory_gib=256, gpus=8))
    rollout: PodShape = field(default_factory=lambda: PodShape(cpus=32, memory_gib=256, gpus=8))
    secrets: list[SecretVariable] = field(default_factory=list)
    service_account: str | None = None
    """Service account of the pods, for access to object storage by their identity."""
    redis: Redis | None = None
    """Keeps the cluster's state and its workers across a restart of the head. With or without it, a job whose head is
    lost (the driver runs there) is retried and resumes from its checkpoints."""
    grace_s: int = 120
    """How long a pod may take to end; it must be longer than a checkpoint takes."""
    retries: int = 3
    """How often the whole command is retried; it resumes from what is done."""
    keep_s: int = 600
    """How long a finished cluster is kept, for a look at its dashboard."""
    operator_namespace: str = "kuberay-system"
    """The namespace of KubeRay's operator; nobody else outside of the cluster may connect to it."""

    def check(self) -> None:
        """Raises ValueError naming the field, the value, the rule and the remedy."""
        if len(self.name) > _MAX_NAME or not _LABEL.match(self.name):
            raise ValueError(
                f"name: {self.name!r} must have at most {_MAX_NAME} characters, lower-case letters, digits and "
                "dashes, a letter first; shorten or rename it"
            )
        shapes = {"head": self.head, "data": self.data, "train": self.train, "rollout": self.rollout}
        for name, shape in shapes.items():
            if shape.cpus < 1 or shape.memory_gib < 1 or shape.gpus < 0:
                raise ValueError(f"{name}: cpus and memory_gib must be at least 1, gpus not negative")
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
    """Equal worker pods; their number is fixed, because a stage does not start before all its workers fit."""

    name: str
    shape: PodShape
    pods: int


def count_pods(workers: Sequence[Mapping[str, float]], shape: PodShape, field: str) -> int:
    """How many pods of `shape` hold these workers (each {"CPU": …, "GPU": …}), packed first fit, largest first.

    `field` is the config field that asks for the workers. Raises ValueError when one worker is larger than a pod.
    """
    capacity = {"CPU": float(shape.cpus), "GPU": float(shape.gpus)}
    pods: list[dict[str, float]] = []
    for worker in sorted(workers, key=lambda needed: (-needed.get("GPU", 0.0), -needed.get("CPU", 0.0))):
        for name, amount in worker.items():
            if amount > capacity[name]:
                raise ValueError(
                    f"{field}: a worker needs {amount:g} {name}, but one pod has {capacity[name]:g}; "
                    "enlarge the pod or give each worker less"
                )
        fitting = (pod for pod in pods if all(amount <= pod[name] + 1e-9 for name, amount in worker.items()))
        pod = next(fitting, None)
        if pod is None:
            pod = dict(capacity)
            pods.append(pod)
        for name, amount in worker.items():
            pod[name] -= amount
    return len(pods)


def build_manifest(
    config: ClusterConfig,
    groups: Sequence[PodGroup],
    *,
    command: str,
    files: Mapping[str, str],
    env: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The Kubernetes objects that run `command` on a cluster of `groups`, with `files` (path: content) shipped.

    `env` holds the variables of every pod, besides the secret ones. Raises ValueError for what Kubernetes or the
    operator would refuse.
    """
    config.check()
    if sum(len(content.encode()) for content in files.values()) > _MAX_SHIPPED_BYTES:
        raise ValueError("the configs and files to ship are larger than 1 MiB; put them into the image")
    keys = _keys(files)
    shipped = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config, f"{config.name}-files"),
        "data": {key: files[path] for path, key in keys.items()},
    }
    pods = _Pods(config, [{"name": name, "value": value} for name, value in env.items()], keys)
    job = _ray_job(config, groups, command, pods)
    check_ray_job(job)
    return [shipped, _network_policy(config), _disruption_budget(config, groups), job]


def _keys(paths: Iterable[str]) -> dict[str, str]:
    """The ConfigMap key of each path: slashes are not allowed, and a digest separates keys that would be equal."""
    plain = {path: re.sub(r"[^-._a-zA-Z0-9]", "_", path) for path in sorted(paths)}
    shared = {key for key, number in Counter(plain.values()).items() if number > 1}
    return {
        path: f"{hashlib.sha256(path.encode()).hexdigest()[:8]}-{key}" if key in shared else key
        for path, key in plain.items()
    }


@dataclass(frozen=True)
class _Pods:
    """What all pods have in common."""

    config: ClusterConfig
    env: list[dict[str, Any]]
    keys: Mapping[str, str]
    """Keys of the ConfigMap, by the file's path."""


def _ray_job(config: ClusterConfig, groups: Sequence[PodGroup], command: str, pods: _Pods) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # The head holds the cluster together: a worker that used up its memory would end all of it.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod(pods, "head", config.head),
        },
        "workerGroupSpecs": [
            {
                "groupName": group.name,
                "replicas": group.pods,
                "minReplicas": group.pods,
                "maxReplicas": group.pods,
                "rayStartParams": {},
                "template": _pod(pods, group.name, group.shape),
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
            "submissionMode": "SidecarMode",  # the log stream cannot hang between two pods
            "backoffLimit": config.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": config.keep_s,
            "rayClusterSpec": cluster,
        },
    }


def _pod(pods: _Pods, role: str, shape: PodShape) -> dict[str, Any]:
    config = pods.config
    resources: dict[str, Any] = {"cpu": str(shape.cpus), "memory": f"{shape.memory_gib}Gi"}
    if shape.gpus:
        resources["nvidia.com/gpu"] = str(shape.gpus)
    container = {
        "name": "ray-head" if role == "head" else "ray-worker",
        "image": config.image,
        # Ray's workers inherit the folder in which Ray was started, so a verifier's relative path works in all of them.
        "workingDir": MOUNT,
        "env": [{"name": "HOME", "value": "/tmp"}, *pods.env, *(secret.to_manifest() for secret in config.secrets)],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "files", "mountPath": MOUNT, "readOnly": True},
            {"name": "scratch", "mountPath": "/tmp"},
        ],
    }
    items = [{"key": key, "path": path} for path, key in pods.keys.items()]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": config.grace_s,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
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
    """Lets the cluster's own pods connect to each other, and the operator to the dashboard."""
    own_pods = {"podSelector": {"matchLabels": _labels(config)}}
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": config.operator_namespace}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(config, config.name),
        "spec": {
            **own_pods,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [own_pods]},
                {"from": [operator], "ports": [{"port": 8265, "protocol": "TCP"}]},
            ],
        },
    }


def _disruption_budget(config: ClusterConfig, groups: Sequence[PodGroup]) -> dict[str, Any]:
    """Forbids evicting the head or a trainer, which would set the whole group back to its last checkpoint."""
    protected = ["head", *(group.name for group in groups if group.name == "train")]
    number = 1 + sum(group.pods for group in groups if group.name == "train")
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(config, config.name),
        "spec": {
            "minAvailable": number,  # for pods that an operator owns it must be a number
            "selector": {
                "matchLabels": _labels(config),
                "matchExpressions": [{"key": "app.kubernetes.io/component", "operator": "In", "values": protected}],
            },
        },
    }


def _metadata(config: ClusterConfig, name: str) -> dict[str, Any]:
    return {"name": name, "labels": _labels(config)}


def _labels(config: ClusterConfig) -> dict[str, str]:
    return {"app.kubernetes.io/name": "raymill", "app.kubernetes.io/instance": config.name}


def check_ray_job(job: Mapping[str, Any]) -> None:
    """Raises ValueError for the first of the operator's own rules that a RayJob breaks.

    The schema allows all of these; the operator then fails the job, or silently does something else
    (ray-operator/controllers/ray/utils/validation.go of KubeRay v1.7).
    """
    spec, name = job["spec"], job["metadata"]["name"]
    cluster = spec.get("rayClusterSpec")
    _require(len(name) <= _MAX_NAME, f"metadata.name: {name!r} is longer than {_MAX_NAME} characters")
    _require(bool(_LABEL.match(name)), f"metadata.name: {name!r} is not a DNS-1035 label")
    mode = spec.get("submissionMode", "K8sJobMode")
    _require(mode in _SUBMISSION_MODES, f"submissionMode: {mode!r} must be one of {', '.join(_SUBMISSION_MODES)}")
    selected = bool(spec.get("clusterSelector"))
    _require(bool(cluster) != selected, "exactly one of rayClusterSpec and clusterSelector must be set")
    _require(spec.get("backoffLimit", 0) >= 0, "backoffLimit must not be negative")
    _require(
        not (spec.get("backoffLimit") and (selected or mode == "InteractiveMode")),
        "backoffLimit: a job on a selected cluster, or an interactive one, cannot be retried",
    )
    ends, ttl = spec.get("shutdownAfterJobFinishes", False), spec.get("ttlSecondsAfterFinished", 0)
    _require(ttl >= 0, "ttlSecondsAfterFinished must not be negative")
    _require(ends or not ttl, "ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    _require(ends or not spec.get("suspend"), "suspend needs shutdownAfterJobFinishes")
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    _require(not (ends and rules), "shutdownAfterJobFinishes and deletionRules exclude each other")
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
        least, most = group["minReplicas"], group["maxReplicas"]
        replicas = group.get("replicas", least)
        _require(
            0 <= least <= replicas <= most,
            f"{group['groupName']}: 0 <= minReplicas {least} <= replicas {replicas} <= maxReplicas {most} must hold",
        )
    for name, group in [("head", cluster["headGroupSpec"]), *zip(names, groups, strict=True)]:
        containers = group["template"]["spec"].get("containers", [])
        _require(bool(containers), f"{name}: needs at least one container")
        parameters = group.get("rayStartParams", {})
        both = {"num-cpus", "num-gpus", "memory", "resources"} & parameters.keys() and group.get("resources")
        _require(not both, f"{name}: resources and rayStartParams both give the pod's resources")
        _require("labels" not in parameters, f"{name}: labels belong to the group, not to rayStartParams")
    head_env = {entry["name"] for entry in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    keeps_tables = "gcsFaultToleranceOptions" in cluster
    for variable in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"):
        _require(variable not in head_env, f"{variable}: use gcsFaultToleranceOptions")
    start = cluster["headGroupSpec"].get("rayStartParams", {})
    _require(not (keeps_tables and "redis-password" in start), "redis-password: use gcsFaultToleranceOptions")
    if cluster.get("authOptions", {}).get("mode") == "token":
        parts = tuple(int(part) for part in cluster.get("rayVersion", "0").split(".")[:2])
        _require(parts >= (2, 52), "authOptions.mode token needs rayVersion 2.52 or newer")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"RayJob: {message}")
