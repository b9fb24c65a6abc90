"""Describes the machine that this process runs on: free memory, processor model and usable CPU cores."""

import math
import os
from pathlib import Path

from cluster.cgroups import cgroup_of, core_limit_of, free_group_bytes


def free_memory_bytes() -> int | None:
    """The memory that this process can still use: the free memory of the machine or, if less, of its control group.

    Returns None where the kernel does not report free memory, as on macOS.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    if "MemAvailable" not in fields:
        return None
    machine_bytes = int(fields["MemAvailable"].split()[0]) * 1024
    group = cgroup_of(os.getpid())
    group_bytes = None if group is None else free_group_bytes(group)
    return machine_bytes if group_bytes is None else min(machine_bytes, group_bytes)


def processor_name() -> str:
    """The processor model that Linux reports.

    On ARM, where Linux reports no model name, it is the machine type with the implementer, part and variant numbers.
    On other systems it is the machine type, such as `arm64`.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return os.uname().machine
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = [fields[name] for name in ("CPU implementer", "CPU part", "CPU variant") if name in fields]
    return fields.get("model name") or " ".join([os.uname().machine, *numbers])


def num_parallel_tasks(workers: int | None, num_tasks: int) -> int:
    """The number of a data stage's tasks that run at the same time on this machine.

    `workers` is the stage's `execution.workers`. None means one task for each core. 0 means that the tasks run one
    after another in this process.
    """
    cores = num_cores()
    return min(cores if workers is None else max(1, workers), cores, num_tasks)


def num_cores() -> int:
    """The number of CPU cores that this process may use, given its CPU affinity and its control group's limit."""
    affinity_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group = cgroup_of(os.getpid(), "cpu")
    core_limit = core_limit_of(group) if group else None
    return affinity_cores if core_limit is None else max(1, min(affinity_cores, math.ceil(core_limit)))
