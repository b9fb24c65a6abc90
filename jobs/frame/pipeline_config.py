"""`pipeline.yaml`: the configs of a pipeline, where its artifacts go, and the variables of its processes."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.credentials import reject_credentials
from jobs.frame.config import build, load_yaml, parse_override
from jobs.frame.secrets import is_secret_variable
from jobs.frame.stages import STAGES, find_stage

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """`pipeline.yaml`."""

    store: str = "runs"
    """Where artifacts are written: a folder or any fsspec URL. Not part of any artifact's id."""
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    """Names of config files beside this one, in the order in which they run."""
    environment: dict[str, str | None] = field(default_factory=dict)
    """Environment variables of all processes of the pipeline, for values that are not secret (AWS_ENDPOINT_URL,
    WANDB_PROJECT, HTTPS_PROXY, NCCL_…); null takes the value from the environment of the command. Not part of any
    artifact's id."""

    def variables(self) -> dict[str, str]:
        """The environment variables with their values. Raises ValueError for a secret or a missing value.

        A secret belongs in the cluster's own environment, on Kubernetes as a Secret named in cluster.yaml.
        """
        variables: dict[str, str] = {}
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name) or name.startswith("RAYMILL_"):
                raise ValueError(f"environment: {name!r} is not the name of a variable that may be set")
            if is_secret_variable(name):
                raise ValueError(
                    f"environment.{name}: by its name this is a secret, which job records would show; put it into the "
                    "cluster's own environment, on Kubernetes as a Secret named in cluster.yaml"
                )
            value = os.environ.get(name) if value is None else value
            if value is None:
                raise ValueError(f"environment.{name}: null takes the value from the environment, where it is not set")
            reject_credentials(value)
            variables[name] = value
        return variables


def read_pipeline_config(path: Path, overrides: Sequence[str] = ()) -> tuple[PipelineConfig, dict[str, list[str]]]:
    """The config in the pipeline file, and the overrides for each of its stages, without the stage's name in front.

    Raises ValueError for a mistake in the file or in the form of an override.
    """
    for_pipeline = [override for override in overrides if _is_for_pipeline(override)]
    config = build(PipelineConfig, load_yaml(path), for_pipeline, label=str(path))
    by_stage: dict[str, list[str]] = {name: [] for name in config.stages}
    for override in overrides:
        if override not in for_pipeline:
            name, _, rest = override.partition(".")
            if name not in by_stage:
                nearest = difflib.get_close_matches(name, config.stages, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"stages: {', '.join(config.stages)}"
                raise ValueError(f"override {override!r}: {name!r} is not a stage of {path}; {hint}")
            by_stage[name].append(rest)
    return config, by_stage


def find_pipeline_config(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The config in `pipeline.yaml`, where `path` is that file or a stage's config beside it; defaults without one."""
    file = path.parent / "pipeline.yaml"
    if not file.is_file():
        return PipelineConfig()
    for_pipeline = [override for override in overrides if _is_for_pipeline(override)] if path == file else []
    return build(PipelineConfig, load_yaml(file), for_pipeline, label=str(file))


def load_configs(stage: str, path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The typed config of one stage, or of every stage that a pipeline lists, by name.

    It reads no data and no artifact, so it works on machines that cannot see them.
    """
    if stage != "pipeline":
        return {stage: build(find_stage(stage).config, load_yaml(path), overrides, label=str(path))}
    config, by_stage = read_pipeline_config(path, overrides)
    files = {name: path.parent / f"{name}.yaml" for name in config.stages}
    return {
        name: build(find_stage(name).config, load_yaml(file), by_stage[name], label=str(file))
        for name, file in files.items()
    }


def _is_for_pipeline(override: str) -> bool:
    """Whether an override is for `pipeline.yaml` itself, not for a stage: `store=…`, `environment.WANDB_PROJECT=…`."""
    key = parse_override(override).key
    return "." not in key or key.startswith("environment.")
