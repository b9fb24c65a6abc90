"""Reads `pipeline.yaml`: the list of a pipeline's configs, the location of its artifacts, and environment variables."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.credentials import reject_credentials
from jobs.frame.config_loader import build, load_yaml, parse_override
from jobs.frame.secrets import is_secret_variable
from jobs.frame.stages import STAGES, find_stage

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """`pipeline.yaml`."""

    store: str = "runs"
    """The location of the artifacts: a folder or any fsspec URL. It is not part of any artifact's id."""
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    """Names of the config files in the same folder, without `.yaml`, in the order in which they run. A config that is
    an input of another one always runs before it, even if it is listed later or not listed."""
    environment: dict[str, str | None] = field(default_factory=dict)
    """Environment variables of all processes of the pipeline, such as AWS_ENDPOINT_URL, WANDB_PROJECT, HTTPS_PROXY or
    NCCL_…. Secrets are not allowed. The value null is replaced by the variable's value in the environment of the
    command. The variables are not part of any artifact's id."""

    def variables(self) -> dict[str, str]:
        """Return the environment variables with their values.

        Raises ValueError for an invalid name, a name that looks like that of a secret, a missing value, or a value with
        a URL that contains credentials.
        """
        variables: dict[str, str] = {}
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name) or name.startswith("RAYMILL_"):
                raise ValueError(
                    f"environment: {name!r} is not a variable that may be set; a name consists of letters, digits and "
                    "underscores, and must not begin with a digit or with RAYMILL_"
                )
            if is_secret_variable(name):
                raise ValueError(
                    f"environment.{name}: the name looks like that of a secret, and the records of submitted jobs "
                    "would show its value; set the variable in the cluster's environment, or on Kubernetes with a "
                    "Secret that cluster.yaml names"
                )
            value = os.environ.get(name) if value is None else value
            if value is None:
                raise ValueError(
                    f"environment.{name}: null means the value of the variable in the environment of the command, but "
                    "the variable is not set there; set it, or write a value here"
                )
            reject_credentials(value)
            variables[name] = value
        return variables


def read_pipeline_config(path: Path, overrides: Sequence[str] = ()) -> tuple[PipelineConfig, dict[str, list[str]]]:
    """Read the file `pipeline.yaml` at `path`. Returns (the content of the file, the overrides of each config).

    The second value maps the name of each config that the file lists to the overrides of the config's fields. An
    override `pretrain.steps=100` becomes `steps=100` for the config `pretrain`. Raises ValueError for an error in
    the file, or for an override that belongs to no config of the pipeline.
    """
    pipeline_overrides = [override for override in overrides if _is_pipeline_override(override)]
    config = build(PipelineConfig, load_yaml(path), pipeline_overrides, label=str(path))
    overrides_by_config: dict[str, list[str]] = {name: [] for name in config.stages}
    for override in overrides:
        if override not in pipeline_overrides:
            name, _, field_override = override.partition(".")
            if name not in overrides_by_config:
                nearest = difflib.get_close_matches(name, config.stages, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"its stages are {', '.join(config.stages)}"
                raise ValueError(f"override {override!r}: {name!r} is not a stage of {path}; {hint}")
            overrides_by_config[name].append(field_override)
    return config, overrides_by_config


def find_pipeline_file(stage: str, path: Path) -> Path | None:
    """Return the path of the `pipeline.yaml` whose list decides what `previous` refers to in the configs of a command.

    `stage` and `path` are the arguments of the command. For the stage "pipeline" this is `path` itself, and for a
    single stage it is the file in the folder of `path`, or None if there is no such file.
    """
    file = path if stage == "pipeline" else path.parent / "pipeline.yaml"
    return file if file.is_file() else None


def find_pipeline_config(stage: str, path: Path) -> PipelineConfig:
    """Read the file that `find_pipeline_file` returns. If there is none, returns a PipelineConfig of defaults."""
    file = find_pipeline_file(stage, path)
    return build(PipelineConfig, load_yaml(file), label=str(file)) if file else PipelineConfig()


def load_configs(stage: str, path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Load the config of one stage, or every config of a pipeline if `stage` is "pipeline".

    The only key of the result is the name of the stage, or the keys are the names of the configs that the pipeline
    lists. Only config files are read. Therefore this function works on machines that cannot read the source files and
    the artifacts.
    """
    if stage != "pipeline":
        return {stage: build(find_stage(stage).config, load_yaml(path), overrides, label=str(path))}
    config, overrides_by_config = read_pipeline_config(path, overrides)
    files = {name: path.parent / f"{name}.yaml" for name in config.stages}
    return {
        name: build(find_stage(name).config, load_yaml(file), overrides_by_config[name], label=str(file))
        for name, file in files.items()
    }


def _is_pipeline_override(override: str) -> bool:
    """Return whether an override changes `pipeline.yaml` itself and not the config of a stage.

    Examples are `store=runs` and `environment.WANDB_PROJECT=mine`.
    """
    key = parse_override(override).key
    return "." not in key or key.startswith("environment.")
