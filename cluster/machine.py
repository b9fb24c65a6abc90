"""What this machine has: free memory, processor model, and the cores that this process may use."""

import math
import os
from pathlib import Path

from cluster.cgroups import cgroup_of, core_limit_of, free_memory_in


def free_memory_bytes() -> int | None:
    """Memory that the machine, or this process's control group, still has; None where the kernel does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    if "MemAvailable" not in fields:
        return None
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = cgroup_of(os.getpid())
    free_in_group = None if group is None else free_memory_in(group)
    return free if free_in_group is None else min(free, free_in_group)


def processor_name() -> str:
    """The processor's model as Linux names it (its numbers on ARM); the machine type on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return os.uname().machine
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = [fields[name] for name in ("CPU implementer", "CPU part", "CPU variant") if name in fields]
    return fields.get("model name") or " ".join([os.uname().machine, *numbers])


def num_parallel_tasks(workers: int | None, num_tasks: int) -> int:
    """How many of a data stage's tasks run at the same time on this machine; `workers` is its `execution.workers`."""
    return min(workers or num_cores(), num_cores(), num_tasks)


def num_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its control group's limit."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group = cgroup_of(os.getpid(), "cpu")
    limit = core_limit_of(group) if group else None
    return bound if limit is None else max(1, min(bound, math.ceil(limit)))
