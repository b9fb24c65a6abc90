"""A pipeline: config files bound to jobs, in the order in which they run.

A folder such as `configs/tiny` holds one file per stage and `pipeline.yaml`, which lists them and names the store.
A stage's inputs name sibling files (`shards: shards`) or the location of an artifact (`init: s3://bucket/sft-0a1b`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.session import check_no_shadowed_packages
from cluster.storage import Storage
from cluster.wandb_mirror import wandb_mode
from jobs.frame.artifact import open_artifact
from jobs.frame.binder import Binder
from jobs.frame.job import Job, finished_inputs
from jobs.frame.pipeline_config import PipelineConfig, find_pipeline_config, read_pipeline_config
from jobs.frame.stages import stage_name_of


@dataclass(frozen=True)
class Pipeline:
    """Jobs and the store that their artifacts go to."""

    name: str
    """Name of the folder of its configs."""
    store: Storage
    jobs: Mapping[str, Job]
    """By the name of their config, in the order in which they run."""
    errors: Mapping[str, str]
    """Why a config could not be bound to a job, by its name."""
    environment: Mapping[str, str]
    """Environment variables of all its processes, this one included."""


def load(stage: str, path: Path, overrides: Sequence[str] = (), *, store: str | None = None) -> Pipeline:
    """The pipeline in a file, where `stage` is "pipeline", or else the one stage in a config file.

    Raises what `load_pipeline` and `load_stage` raise.
    """
    if stage == "pipeline":
        return load_pipeline(path, overrides, store=store)
    return load_stage(stage, path, overrides, store=store)


def load_pipeline(path: Path, overrides: Sequence[str] = (), *, store: str | None = None) -> Pipeline:
    """Every stage that `pipeline.yaml` lists. Overrides begin with a stage's name: `pretrain.steps=100`.

    Its environment variables are set in this process before any source is read.
    Raises ValueError only for mistakes in the pipeline file or in the form of an override; those of a stage go to
    `errors`.
    """
    config, by_stage = read_pipeline_config(path, overrides)
    environment = _set_environment(config)
    binder = Binder(path.parent, by_stage, order=config.stages)
    for name in config.stages:
        binder.try_bind(name)
    return Pipeline(path.parent.name, Storage(store or config.store), binder.jobs, binder.errors, environment)


def load_stage(stage: str, path: Path, overrides: Sequence[str] = (), *, store: str | None = None) -> Pipeline:
    """One stage from its config file; its inputs must be finished. Overrides name a field: `steps=100`.

    The store (unless given) and the environment variables are those of the `pipeline.yaml` beside the file.
    """
    pipeline_config = find_pipeline_config(path)
    environment = _set_environment(pipeline_config)
    name = path.stem if stage_name_of(path.stem) == stage else stage
    binder = Binder(path.parent, {name: list(overrides)}, order=pipeline_config.stages, files={name: path})
    binder.try_bind(name)
    jobs = {name: binder.jobs[name]} if name in binder.jobs else {}
    return Pipeline(path.parent.name, Storage(store or pipeline_config.store), jobs, binder.errors, environment)


def _set_environment(config: PipelineConfig) -> dict[str, str]:
    """Set the pipeline's environment variables in this process and return them."""
    variables = config.variables()
    os.environ.update(variables)
    return variables


def find_errors(pipeline: Pipeline) -> list[str]:
    """Every mistake that shows without starting anything: in configs, in source files, and in finished inputs."""
    errors = list(pipeline.errors.values())
    for check in (wandb_mode, check_no_shadowed_packages):
        try:
            check()
        except ValueError as error:
            errors.append(str(error))
    for name, job in pipeline.jobs.items():
        inputs = finished_inputs(job, pipeline.store)
        if open_artifact(pipeline.store / job.id) or len(inputs) < len(job.planned):
            continue  # a finished stage was checked; one that waits for an input is checked once that is made
        try:
            job.stage.check_inputs(job.config, inputs)
        except ValueError as error:
            errors.append(f"{name}: {error}")
    return errors
