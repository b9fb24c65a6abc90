"""Loads a pipeline: the jobs of its configs, in the order in which they run.

A folder such as `configs/tiny` contains the config files of the stages, and `pipeline.yaml`, which lists the configs
and names the store. The input of a stage is the name of a config in the same folder (`shards: shards`), the word
`previous`, or the location of an artifact (`init: s3://bucket/sft-0a1b`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.session import check_no_shadowed_packages
from cluster.storage import Storage
from cluster.wandb_mirror import wandb_mode
from jobs.frame.artifact import open_artifact
from jobs.frame.job import Job, finished_inputs
from jobs.frame.job_binder import Binder
from jobs.frame.pipeline_config import PipelineConfig, find_pipeline_config, read_pipeline_config
from jobs.frame.stages import stage_name_of


@dataclass(frozen=True)
class Pipeline:
    """The jobs of a pipeline and the store of their artifacts."""

    name: str
    """The name of the folder that contains the configs."""
    store: Storage
    """The folder or bucket that the artifacts are written to."""
    jobs: Mapping[str, Job]
    """The jobs in the order in which they run, which is the order of `pipeline.yaml`, except that the inputs of a job
    always come before it: name of the config -> job."""
    errors: Mapping[str, str]
    """The configs that have an error and therefore no job: name of the config -> error message."""
    environment: Mapping[str, str]
    """The environment variables of all processes of the pipeline, including this process: name -> value."""


def load(stage: str, path: Path, overrides: Sequence[str] = (), *, store: str | None = None) -> Pipeline:
    """Load the pipeline or the single stage that a command of the user names.

    Calls `load_pipeline` if `stage` is "pipeline", and `load_stage` otherwise. `path` is the path of `pipeline.yaml` or
    of the stage's config file. `store` is the location of the artifacts. If it is None, the location is read from
    `pipeline.yaml`.
    """
    if stage == "pipeline":
        return load_pipeline(path, overrides, store=store)
    return load_stage(stage, path, overrides, store=store)


def load_pipeline(path: Path, overrides: Sequence[str] = (), *, store: str | None = None) -> Pipeline:
    """Load every config that a `pipeline.yaml` lists, and the other configs in the folder that their inputs refer to.

    An override of a config begins with the name of the config: `pretrain.steps=100`. An override of `pipeline.yaml`
    does not: `store=runs`. The environment variables of the pipeline are set in this process before any source file is
    read. Raises ValueError for an error in `pipeline.yaml`, and for an override that is malformed or belongs to no
    config that `pipeline.yaml` lists. Errors in the configs are returned in `Pipeline.errors`.
    """
    config, overrides_by_config = read_pipeline_config(path, overrides)
    if not config.stages:
        raise ValueError(f"{path}: stages: the list is empty; name at least one config of the folder")
    environment = _set_environment(config)
    binder = Binder(path.parent, overrides_by_config, order=config.stages)
    for name in config.stages:
        binder.try_bind(name)
    return Pipeline(path.parent.name, Storage(store or config.store), binder.jobs, binder.errors, environment)


def load_stage(stage: str, path: Path, overrides: Sequence[str] = (), *, store: str | None = None) -> Pipeline:
    """Load one stage from its config file. An override begins with the name of a field: `steps=100`.

    The environment variables are read from the `pipeline.yaml` in the same folder, and so is the location of the store
    if `store` is None. Errors in the stage's config, and in the configs that its inputs refer to, are returned in
    `Pipeline.errors`. The inputs of the stage need not be finished to load the stage, but they must be finished before
    it can run.
    """
    pipeline_config = find_pipeline_config(stage, path)
    environment = _set_environment(pipeline_config)
    name = path.stem if stage_name_of(path.stem) == stage else stage
    binder = Binder(path.parent, {name: list(overrides)}, order=pipeline_config.stages, files={name: path})
    binder.try_bind(name)
    jobs = {name: binder.jobs[name]} if name in binder.jobs else {}
    return Pipeline(path.parent.name, Storage(store or pipeline_config.store), jobs, binder.errors, environment)


def _set_environment(config: PipelineConfig) -> dict[str, str]:
    """Set the environment variables of a pipeline in this process. Returns them."""
    variables = config.variables()
    os.environ.update(variables)
    return variables


def find_errors(pipeline: Pipeline) -> list[str]:
    """Return every error that can be detected without starting a worker.

    These are the errors in configs, source files, finished inputs, and the environment of this process.
    """
    errors = list(pipeline.errors.values())
    for check in (wandb_mode, check_no_shadowed_packages):
        try:
            check()
        except ValueError as error:
            errors.append(str(error))
    for name, job in pipeline.jobs.items():
        inputs = finished_inputs(job, pipeline.store)
        if open_artifact(pipeline.store / job.id) or len(inputs) < len(job.planned):
            continue  # A finished stage needs no check. A stage with an unfinished input is checked before it runs.
        try:
            job.stage.check_inputs(job.config, inputs)
        except ValueError as error:
            errors.append(f"{name}: {error}")
    return errors
