"""Finds shortages: stages whose forecast needs more memory or disk than this machine and the store have."""

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from cluster.machine import free_memory_bytes
from cluster.placement import TasksExecution
from cluster.session import cluster_address
from cluster.storage import Storage
from jobs.frame.config_loader import find_execution
from jobs.frame.forecast import MEASURED, Forecast
from jobs.frame.job import Job
from jobs.frame.pipeline import Pipeline

_FORECAST_TOLERANCE = 1.25
"""A stage is rejected if its forecast exceeds the free memory or disk by more than this factor, because forecasts are
not exact."""

_MEMORY_SETTINGS = ("micro_batch_size", "kv_cache_gib", "task_mib")
"""Fields of `execution` that a user can decrease to make a stage need less memory."""


def find_shortages(pipeline: Pipeline, forecasts: Mapping[str, Forecast], *, address: str | None = None) -> list[str]:
    """Return the error messages about unfinished stages that clearly need more memory or disk than there is.

    The keys of `forecasts` are the names of the stages' configs. `address` is the address of the Ray cluster that the
    run will join. If it is None, the run joins the cluster of RAY_ADDRESS, or starts a local cluster if RAY_ADDRESS is
    not set.
    """
    pending = {name: forecast for name, forecast in forecasts.items() if forecast.basis != MEASURED}
    store = pipeline.store
    outputs = {name: store / pipeline.jobs[name].id for name in pending}
    return describe_shortages(
        pending,
        store,
        available_memory_bytes=free_local_memory_bytes(address),
        available_disk_bytes=_free_disk_bytes(store) if pending else None,
        memory_remedies={name: _memory_remedy(pipeline.jobs[name]) for name in pending},
        written_bytes={
            name: output.num_bytes() for name, output in outputs.items() if store.is_local and output.exists()
        },
    )


def describe_shortages(
    pending: Mapping[str, Forecast],
    store: Storage,
    *,
    available_memory_bytes: int | None,
    available_disk_bytes: int | None,
    memory_remedies: Mapping[str, str],
    written_bytes: Mapping[str, int],
) -> list[str]:
    """Return an error message for each pending stage that clearly needs more memory than is available, and one for the
    first stage for which the disk is clearly too small.

    `pending` maps the name of each unfinished stage's config to the forecast, in the order in which the stages run.
    `available_memory_bytes` and `available_disk_bytes` are None if they are unknown; memory or disk is then not
    checked. `memory_remedies` maps the same names to the settings that decrease the memory of the stage.
    `written_bytes` maps the names of stages with an interrupted run to the number of bytes that this run has written
    already.
    """
    messages = []
    needed_gib = 0.0
    for name, forecast in pending.items():
        memory_gib = forecast.memory_gib
        free_memory_gib = math.inf if available_memory_bytes is None else available_memory_bytes / 2**30
        if memory_gib is not None and memory_gib > _FORECAST_TOLERANCE * free_memory_gib:
            messages.append(
                f"{name}: needs about {memory_gib:.1f} GiB of memory, but this machine has only "
                f"{free_memory_gib:.1f} GiB free; decrease {memory_remedies[name]}, stop other programs, or run on a "
                "cluster (--address)"
            )
        disk_gib = max(0.0, (forecast.disk_gib or 0.0) - written_bytes.get(name, 0) / 2**30)
        needed_gib += disk_gib
        free_disk_gib = math.inf if available_disk_bytes is None else available_disk_bytes / 2**30
        # `needed_gib` is the disk that this stage and all earlier ones need together. A stage is reported only if the
        # disk is too small with it but large enough without it, so only the first such stage is reported.
        if needed_gib > _FORECAST_TOLERANCE * free_disk_gib >= needed_gib - disk_gib:
            messages.append(
                f"{name}: needs about {disk_gib:.2f} GiB of disk, but {store.url} has only "
                f"{max(0.0, free_disk_gib - needed_gib + disk_gib):.2f} GiB left for it; delete files, or pass another "
                "location with --store"
            )
    return messages


def _memory_remedy(job: Job) -> str:
    """Return what a user can decrease so that a stage needs less memory, as part of an error message."""
    execution = find_execution(job.config)
    names = {field.name for field in dataclasses.fields(execution)} if execution else set()
    settings = [f"execution.{name}" for name in _MEMORY_SETTINGS if name in names]
    has_workers = isinstance(execution, TasksExecution) or bool(job.stage.placements(job.config))
    is_training = any(field.name == "steps" for field in dataclasses.fields(job.config))
    sizes = ["the number of workers"] if has_workers else []
    sizes += ["the size of the model"] if is_training or not has_workers else []
    return ", ".join([*settings, " or ".join(sizes)])


def _free_disk_bytes(store: Storage) -> int | None:
    """Return the free bytes of the disk that contains the store. Returns None if the store is not on a local disk."""
    if not store.is_local:
        return None
    path = Path(store.root)
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def free_local_memory_bytes(address: str | None) -> int | None:
    """Return the free memory of this machine in bytes.

    Returns None if the run will join a cluster, or if the kernel does not report free memory.
    """
    return free_memory_bytes() if cluster_address(address) == "local" else None
