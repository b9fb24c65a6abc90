"""The command `raymill manifest STAGE CONFIG`. It prints Kubernetes objects that execute `raymill run STAGE CONFIG`.

There are three groups of worker pods: data, train and rollout. The number of pods in a group is computed from the
`execution` settings of the stages: it is the number for that stage which needs the most pods of the group, because the
stages run one after another. There are at least as many data pods as the cluster file says. A ConfigMap contains the
configs, the local `.py` files that the configs name, and the modules that these files import from their folder. Data is
not copied, because the pods read it from the URLs in the configs, or from volumes that all pods mount.
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
from jobs.frame.config_loader import build, find_execution, load_yaml
from jobs.frame.job_binder import Binder
from jobs.frame.pipeline_config import find_pipeline_config, find_pipeline_file, load_configs, read_pipeline_config
from jobs.frame.references import find_inputs, find_sources, without_function_name
from jobs.frame.same_code import submission_variables
from jobs.frame.stages import find_stage, stage_name_of

PodGroupName = Literal["data", "train", "rollout"]

_HEADER = "# Written by: {command}\n# Apply with: kubectl apply --server-side -f FILE\n"


class Location(NamedTuple):
    """A path or URL in a config."""

    field: str
    """The field with the path or URL, such as `store` or `sft: init`. `sft: source` stands for any source field."""
    url: str
    """The path or URL, as it is in the config. It may end in `:function`."""


def render_manifest(stage: str, config: Path, overrides: Sequence[str], *, store: str | None, cluster: Path) -> str:
    """Return the YAML of all Kubernetes objects for the command `raymill run` with these arguments.

    `cluster` is the path of a YAML file with the image and the sizes of the pods. If `store` is None, the location of
    the store is read from `pipeline.yaml`. Raises ValueError for an invalid setting and for a path that pods cannot
    read.
    """
    cluster_config = build(ClusterConfig, load_yaml(cluster), label=str(cluster))
    try:
        cluster_config.check()
    except ValueError as error:
        raise ValueError(f"{cluster}: {error}") from error
    configs = load_configs(stage, config, overrides)
    store_option = [] if store is None else ["--store", store]
    is_pipeline = stage == "pipeline"
    pipeline_config = read_pipeline_config(config, overrides)[0] if is_pipeline else find_pipeline_config(stage, config)
    store = store or pipeline_config.store
    files = {_shipped_name(path): path.read_text() for path in _shipped_files(stage, config, configs)}
    _check_locations(configs, store)
    run_command = ["raymill", "run", stage, _shipped_name(config), *overrides, "--store", store]
    objects = build_manifest(
        cluster_config,
        pod_groups(configs, cluster_config),
        command=shlex.join(run_command),
        files=files,
        env={**pipeline_config.variables(), **JOB_VARIABLES, **submission_variables(with_digest=False)},
    )
    this_command = ["raymill", "manifest", stage, str(config), *overrides, *store_option, "--cluster", str(cluster)]
    documents = (yaml.dump(value, Dumper=_BlockTextDumper, sort_keys=False, width=110) for value in objects)
    return _HEADER.format(command=shlex.join(this_command)) + "---\n" + "---\n".join(documents)


def pod_groups(configs: Mapping[str, Any], cluster_config: ClusterConfig) -> list[PodGroup]:
    """Return the groups of worker pods, each with its number of pods. A group that no stage uses is left out.

    `configs` maps the name of each config to the config.
    """
    shapes: dict[PodGroupName, PodShape] = {
        "data": cluster_config.data,
        "train": cluster_config.train,
        "rollout": cluster_config.rollout,
    }
    pods: dict[PodGroupName, int] = {"data": cluster_config.data_pods, "train": 0, "rollout": 0}
    for name, config in configs.items():
        for workers_by_pod_group in _concurrent_workers(name, config):
            for group, workers in workers_by_pod_group.items():
                needed = count_pods(workers, shapes[group], f"{name}: execution on {group} pods")
                pods[group] = max(pods[group], needed)
    return [PodGroup(group, shapes[group], count) for group, count in pods.items() if count]


def _concurrent_workers(name: str, config: Any) -> Iterable[dict[PodGroupName, list[dict[str, float]]]]:
    """Yield each set of workers of a stage that run at the same time.

    A set is a dictionary: name of a pod group -> the Ray resources of each worker in it. `name` is the name of the
    stage's config, and `config` is the config.
    """
    stage, execution = find_stage(name), find_execution(config)
    if isinstance(execution, TasksExecution) and execution.workers:
        yield {"data": [{"CPU": 1.0}] * execution.workers}
    separate_engine_groups = stage.separate_engine_groups(config)
    for placements in stage.placements(config):
        workers: dict[PodGroupName, list[dict[str, float]]] = {}
        for group, placement in placements.items():
            pod_group = _pod_group(placement, is_engine_group=group in separate_engine_groups)
            workers.setdefault(pod_group, []).extend(placement.bundles)
        yield workers


def _pod_group(placement: Placement, *, is_engine_group: bool) -> PodGroupName:
    """Return the pod group of a placement's workers.

    Workers without GPUs are on data pods. Workers with GPUs are on rollout pods if they run vLLM engines on nodes of
    their own (`is_engine_group`, see `Stage.separate_engine_groups`), and on train pods otherwise.
    """
    if not placement.gpus_per_worker:
        return "data"
    return "rollout" if is_engine_group else "train"


def _shipped_files(stage: str, config: Path, configs: Mapping[str, Any]) -> list[Path]:
    """Return the paths of the configs, of the `.py` files named in them, and of the modules that these files import.

    A single stage also needs the configs that make its inputs, directly or indirectly, and the `pipeline.yaml` of its
    folder, whose list decides what `previous` refers to.
    """
    if stage == "pipeline":
        config_by_path = {config.parent / f"{name}.yaml": configs[name] for name in configs}
    else:
        config_by_path = {config: configs[stage]} | _configs_of_inputs(stage, config, configs[stage])
    paths = set(config_by_path)
    if pipeline_file := find_pipeline_file(stage, config):
        paths.add(pipeline_file)
    values = [value for each in config_by_path.values() for value in find_sources(each)]
    files = {file for value in values if (program := local_program(value)) for file in program_files(program)}
    return sorted(paths | files)


def _configs_of_inputs(stage: str, path: Path, config: Any) -> dict[Path, Any]:
    """Return the configs of the folder that make the inputs of a stage, directly or indirectly, by their paths.

    `path` is the path of the stage's config, and `config` its content.
    """
    name = path.stem if stage_name_of(path.stem) == stage else stage
    binder = Binder(path.parent, {}, order=find_pipeline_config(stage, path).stages, files={name: path})
    found: dict[Path, Any] = {}
    pending = [(name, config)]
    while pending:
        name, config = pending.pop()
        for config_input in find_inputs(config):
            other = binder.config_of_input(name, config_input)
            other_path = path.parent / f"{other}.yaml"
            if other is not None and other_path not in found and other_path != path:
                found[other_path] = build(find_stage(other).config, load_yaml(other_path), label=str(other_path))
                pending.append((other, found[other_path]))
    return found


def _shipped_name(path: Path) -> str:
    """Return the path of a local file's copy in the pods, relative to the working directory there.

    Raises ValueError for an absolute path and for a path with `..`.
    """
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"{path}: the path of this file must be relative to the working directory and must not contain .., because "
            "only files in the working directory are copied to the pods"
        )
    return path.as_posix()


def _check_locations(configs: Mapping[str, Any], store: str) -> None:
    """Raises ValueError if the store, a source file or an input has a relative path, because pods cannot read it.

    Programs may have relative paths, because they are copied to the pods. `configs` maps the name of each config to the
    config.
    """
    locations = [Location("store", store)]
    for name, config in configs.items():
        locations += [Location(f"{name}: source", value) for value in find_sources(config)]
        inputs = [found for found in find_inputs(config) if "/" in found.value]
        locations += [Location(f"{name}: {found.path}", found.value) for found in inputs]
    for field, url in locations:
        path = local_path(without_function_name(url))
        if local_program(url) is None and path is not None and not path.startswith("/"):
            raise ValueError(
                f"{field}: {url!r} is a path on this machine; use a URL such as s3://bucket/path, or an absolute path "
                "on a volume that all pods mount"
            )


class _BlockTextDumper(yaml.SafeDumper):
    """Writes YAML in which a string of several lines is a block, so that a config in the ConfigMap looks like its file.

    The YAML contains no aliases, so an object that occurs twice is written twice.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Return the YAML node of a string. The node has the block style `|` if the string has several lines."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockTextDumper.add_representer(str, _represent_text)
