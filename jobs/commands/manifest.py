"""`raymill manifest STAGE CONFIG`: the same command as `run`, as Kubernetes objects.

The groups of pods are sized from the stages' `execution` settings. Stages run one after another, so each group is as
large as the most demanding stage needs it. Data stays where the configs' URLs point; only configs and the user's own
local `.py` files are shipped, in a ConfigMap.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from cluster.kuberay import ClusterConfig, PodGroup, PodShape, build_manifest, count_pods
from cluster.paths import local_path
from cluster.placement import Placement, TasksExecution
from cluster.submission import JOB_VARIABLES
from jobs.commands.shipping import local_program, program_files
from jobs.frame.config import build, find_execution, load_yaml
from jobs.frame.pipeline_config import find_pipeline_config, load_configs
from jobs.frame.references import find_inputs, find_sources, without_function_name
from jobs.frame.same_code import submission_variables
from jobs.frame.stages import find_stage

PodGroupName = Literal["data", "train", "rollout"]

_HEADER = "# Written by: {command}\n# Apply with: kubectl apply --server-side -f FILE\n"


class Location(NamedTuple):
    """A path or URL that a config names."""

    field: str
    """Where it is named: `store`, `sft: init`."""
    url: str


def render_manifest(stage: str, config: Path, overrides: Sequence[str], *, store: str | None, cluster: Path) -> str:
    """The YAML of all objects. Raises ValueError for a wrong setting, or a location that pods cannot reach."""
    cluster_config = build(ClusterConfig, load_yaml(cluster), label=str(cluster))
    try:
        cluster_config.check()
    except ValueError as error:
        raise ValueError(f"{cluster}: {error}") from error
    configs = load_configs(stage, config, overrides)
    store_option = [] if store is None else ["--store", store]
    pipeline_config = find_pipeline_config(config, overrides)
    store = store or pipeline_config.store
    files = {_shipped_name(path): path.read_text() for path in _shipped_files(stage, config, configs)}
    _refuse_local_locations(configs, store)
    words = ["raymill", "run", stage, _shipped_name(config), *overrides, "--store", store]
    objects = build_manifest(
        cluster_config,
        pod_groups(configs, cluster_config),
        command=shlex.join(words),
        files=files,
        env={**pipeline_config.variables(), **JOB_VARIABLES, **submission_variables(with_digest=False)},
    )
    this_command = ["raymill", "manifest", stage, str(config), *overrides, *store_option, "--cluster", str(cluster)]
    documents = (yaml.dump(one, Dumper=_BlockTextDumper, sort_keys=False, width=110) for one in objects)
    return _HEADER.format(command=shlex.join(this_command)) + "---\n" + "---\n".join(documents)


def pod_groups(configs: Mapping[str, Any], cluster_config: ClusterConfig) -> list[PodGroup]:
    """The groups of worker pods and the number of pods in each; a group that no stage uses is left out."""
    shapes: dict[PodGroupName, PodShape] = {
        "data": cluster_config.data,
        "train": cluster_config.train,
        "rollout": cluster_config.rollout,
    }
    pods: dict[PodGroupName, int] = {"data": cluster_config.data_pods, "train": 0, "rollout": 0}
    for name, config in configs.items():
        for workers_by_group in _worker_sets(name, config):
            for group, workers in workers_by_group.items():
                needed = count_pods(workers, shapes[group], f"{name}: execution on {group} pods")
                pods[group] = max(pods[group], needed)
    return [PodGroup(group, shapes[group], number) for group, number in pods.items() if number]


def _worker_sets(name: str, config: Any) -> Iterable[dict[PodGroupName, list[dict[str, float]]]]:
    """For each set of workers that run at the same time: the resources of each worker, by the pods that it runs on."""
    stage, execution = find_stage(name), find_execution(config)
    if isinstance(execution, TasksExecution) and execution.workers:
        yield {"data": [{"CPU": 1.0}] * execution.workers}
    engine_groups = stage.engine_groups(config)
    for placements in stage.placements(config):
        workers: dict[PodGroupName, list[dict[str, float]]] = {}
        for group, placement in placements.items():
            pod_group = _pod_group(placement, is_engine_group=group in engine_groups)
            workers.setdefault(pod_group, []).extend(placement.bundles)
        yield workers


def _pod_group(placement: Placement, *, is_engine_group: bool) -> PodGroupName:
    """Work without GPUs runs on data pods, engines with nodes of their own on rollout pods, the rest on train pods."""
    if not placement.gpus_per_worker:
        return "data"
    return "rollout" if is_engine_group else "train"


def _shipped_files(stage: str, config: Path, configs: Mapping[str, Any]) -> list[Path]:
    paths = [config if name == stage else config.parent / f"{name}.yaml" for name in configs]
    paths += [config] if stage == "pipeline" else []
    programs = {local_program(value) for one in configs.values() for value in find_sources(one)}
    files = {file for program in programs if program for file in program_files(program)}
    return [*paths, *sorted(files)]


def _shipped_name(path: Path) -> str:
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path}: give a path below the working directory; only files below it are shipped")
    return path.as_posix()


def _refuse_local_locations(configs: Mapping[str, Any], store: str) -> None:
    """Raises ValueError for a path that exists on this machine only."""
    locations = [Location("store", store)]
    for name, config in configs.items():
        locations += [Location(f"{name}: source", value) for value in find_sources(config)]
        inputs = [marked for marked in find_inputs(config) if "/" in marked.value]
        locations += [Location(f"{name}: {marked.path}", marked.value) for marked in inputs]
    for field, url in locations:
        path = local_path(without_function_name(url))
        if local_program(url) is None and path is not None and not path.startswith("/"):
            raise ValueError(
                f"{field}: {url!r} is a path on this machine; pods need a URL such as s3://bucket/path, or an "
                "absolute path on a volume that all of them mount"
            )


class _BlockTextDumper(yaml.SafeDumper):
    """Writes text of several lines as a block, so that a shipped config looks like its file, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockTextDumper.add_representer(str, _represent_text)
