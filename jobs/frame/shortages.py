"""Shortages: stages that this machine's memory, or the store's disk, cannot hold by their forecast."""

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from cluster.machine import free_memory_bytes
from cluster.session import cluster_address
from cluster.storage import Storage
from jobs.frame.config import find_execution
from jobs.frame.forecast import MEASURED, Forecast
from jobs.frame.job import Job
from jobs.frame.pipeline import Pipeline

_TOLERANCE = 1.25
"""Forecasts of memory and disk are not exact; a stage is refused when it needs this many times what is free."""

_MEMORY_SETTINGS = ("micro_batch_size", "kv_cache_gib", "task_mib")
"""Fields of `execution` that bound the memory of a stage."""


def find_shortages(pipeline: Pipeline, forecasts: Mapping[str, Forecast], *, address: str | None = None) -> list[str]:
    """One message for each stage still to be done that memory or disk clearly cannot hold."""
    pending = {name: forecast for name, forecast in forecasts.items() if forecast.basis != MEASURED}
    store = pipeline.store
    outputs = {name: store / pipeline.jobs[name].id for name in pending}
    return describe_shortages(
        pending,
        store,
        free_memory=free_local_memory(address),
        free_disk=_free_disk_bytes(store) if pending else None,
        remedies={name: _memory_remedy(pipeline.jobs[name]) for name in pending},
        written={name: output.num_bytes() for name, output in outputs.items() if store.is_local and output.exists()},
    )


def describe_shortages(
    pending: Mapping[str, Forecast],
    store: Storage,
    *,
    free_memory: int | None,
    free_disk: int | None,
    remedies: Mapping[str, str],
    written: Mapping[str, int],
) -> list[str]:
    """One message for each stage that does not fit, by name.

    `free_memory` and `free_disk` are bytes, None where they are not known, as on a cluster or an object store.
    `remedies` says what lowers a stage's memory; `written` has the bytes that an unfinished stage has already written.
    """
    messages = []
    needed_gib = 0.0
    for name, forecast in pending.items():
        memory, disk = forecast.memory_gib, max(0.0, (forecast.disk_gib or 0.0) - written.get(name, 0) / 2**30)
        if memory is not None and free_memory is not None and memory > _TOLERANCE * free_memory / 2**30:
            messages.append(
                f"{name}: needs about {memory:.1f} GiB of memory, this machine has {free_memory / 2**30:.1f} GiB free; "
                f"lower {remedies[name]}, free memory, or run it on a cluster (--address)"
            )
        needed_gib += disk
        limit_gib = math.inf if free_disk is None else _TOLERANCE * free_disk / 2**30
        if free_disk is not None and needed_gib > limit_gib >= needed_gib - disk:
            messages.append(
                f"{name}: needs about {disk:.2f} GiB of disk, {store.url} has "
                f"{max(0.0, free_disk / 2**30 - needed_gib + disk):.2f} GiB left for it; free space, or give --store "
                "another location"
            )
    return messages


def _memory_remedy(job: Job) -> str:
    """The settings of a stage that lower its memory."""
    execution = find_execution(job.config)
    names = {field.name for field in dataclasses.fields(execution)} if execution else set()
    settings = [f"execution.{name}" for name in _MEMORY_SETTINGS if name in names]
    learns = any(field.name == "steps" for field in dataclasses.fields(job.config))
    return ", ".join([*settings, "the number of workers" + (" or the size of the model" if learns else "")])


def _free_disk_bytes(store: Storage) -> int | None:
    """Bytes that can still be written to a store on a local disk; None for other stores."""
    if not store.is_local:
        return None
    path = Path(store.root)
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def free_local_memory(address: str | None) -> int | None:
    """Free bytes of this machine's memory when the run will start its own cluster here; None when it joins one."""
    return free_memory_bytes() if cluster_address(address) == "local" else None
