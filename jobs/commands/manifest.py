"""The same command as `run`, as Kubernetes objects: groups of pods sized from the stages' execution settings.

Stages run one after another, so a group is as large as the hungriest stage needs it. Data stays where the configs'
URLs say; only configs and the user's own local `.py` files are shipped, in a ConfigMap.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from actors.algorithm import load_algorithm
from actors.settings import GraphExecution
from cluster.kuberay import ClusterConfig, PodGroup, PodShape, build_manifest, num_pods
from cluster.paths import local_path
from cluster.placement import Placement
from cluster.submission import JOB_VARIABLES
from jobs.commands.submit import local_program, program_files
from jobs.frame.config import build, load_yaml
from jobs.frame.fields import file_of, marked_inputs, marked_sources
from jobs.frame.pipeline import load_configs, settings_of
from jobs.frame.same_code import code_variables
from jobs.frame.user_code import read_algorithm

HEADER = "# Written by: {command}\n# Apply with: kubectl apply --server-side -f FILE\n"


def render_manifest(stage: str, config: Path, overrides: Sequence[str], *, store: str | None, cluster: Path) -> str:
    """The YAML of all objects. Raises ValueError for a wrong setting, or a place that no pod could reach."""
    settings = build(ClusterConfig, load_yaml(cluster), where=str(cluster))
    try:
        settings.check()
    except ValueError as error:
        raise ValueError(f"{cluster}: {error}") from error
    configs = load_configs(stage, config, overrides)
    given = [] if store is None else ["--store", store]
    beside = settings_of(config, overrides)
    store = store or beside.store
    files = {_shipped(path): path.read_text() for path in _files(stage, config, configs)}
    _refuse_local_places(configs, store)
    words = ["raymill", "run", stage, _shipped(config), *overrides, "--store", store]
    objects = build_manifest(
        settings,
        group_sizes(configs, settings),
        command=shlex.join(words),
        files=files,
        env={**beside.values(), **JOB_VARIABLES, **code_variables(with_digest=False)},
    )
    called = ["raymill", "manifest", stage, str(config), *overrides, *given, "--cluster", str(cluster)]
    documents = (yaml.dump(one, Dumper=_BlockText, sort_keys=False, width=110) for one in objects)
    return HEADER.format(command=shlex.join(called)) + "---\n" + "---\n".join(documents)


def group_sizes(configs: Mapping[str, Any], settings: ClusterConfig) -> list[PodGroup]:
    """The worker groups and how many pods each needs; a group that no stage uses is left out."""
    pods = {"data": settings.data_pods, "train": 0, "rollout": 0}
    shapes: dict[str, PodShape] = {name: getattr(settings, name) for name in pods}
    for stage, config in configs.items():
        for group, workers in _demand(config).items():
            needed = num_pods(workers, shapes[group], f"{stage}: execution on {group} pods")
            pods[group] = max(pods[group], needed)
    return [PodGroup(name, shapes[name], number) for name, number in pods.items() if number]


def _execution(config: Any) -> dict[str, Any]:
    """The execution settings of a stage by name, of a graph's actors those that it starts; none where it has none."""
    execution = _fields(config).get("execution")
    if execution is None:
        return {}
    settings = _fields(execution)
    if isinstance(execution, GraphExecution):
        placements = execution.groups(config.learning, load_algorithm(read_algorithm(config.learning.algorithm)))
        return placements | {name: value for name, value in settings.items() if not isinstance(value, Placement)}
    return settings


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _demand(config: Any) -> dict[str, list[dict[str, float]]]:
    """What the workers of a stage need, by group: engines on rollout pods unless they share their GPUs' pods with the
    learners, other GPU work on train pods, CPU work on data pods."""
    demand: dict[str, list[dict[str, float]]] = {}
    execution = _execution(config)
    for role, value in execution.items():
        if isinstance(value, Placement):
            each = {"CPU": value.cpus_per_worker, "GPU": value.gpus_per_worker}
            apart = role == "generators" and not execution.get("colocate", False)
            group = "data" if not value.gpus_per_worker else "rollout" if apart else "train"
            worker = {name: amount for name, amount in each.items() if amount}
            demand.setdefault(group, []).extend([worker] * value.workers)
        elif role == "workers" and value is not None:  # tasks of one CPU each
            demand.setdefault("data", []).extend([{"CPU": 1.0}] * value)
    return demand


def _files(stage: str, config: Path, configs: Mapping[str, Any]) -> list[Path]:
    paths = [config if name == stage else config.parent / f"{name}.yaml" for name in configs]
    paths += [config] if stage == "pipeline" else []
    programs = {local_program(value) for one in configs.values() for value in marked_sources(one)}
    files = {file for program in programs if program for file in program_files(program)}
    return [*paths, *sorted(files)]


def _shipped(path: Path) -> str:
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path}: name it below the working directory, which is what is shipped")
    return path.as_posix()


def _refuse_local_places(configs: Mapping[str, Any], store: str) -> None:
    """Raise ValueError for a path that means a place on this machine only."""
    places = [("store", store)]
    for name, config in configs.items():
        places += [(f"{name}: source", value) for value in marked_sources(config)]
        places += [(f"{name}: {path}", value) for path, value, _ in marked_inputs(config) if "/" in value]
    for field, place in places:
        path = local_path(file_of(place))
        if local_program(place) is None and path is not None and not path.startswith("/"):
            raise ValueError(
                f"{field}: {place!r} is a place on this machine; pods need a URL such as s3://bucket/path, or an "
                "absolute path on a volume that all of them mount"
            )


class _BlockText(yaml.SafeDumper):
    """Writes text of several lines as a block, so that a shipped config reads like the file it was, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockText.add_representer(str, _represent_text)
