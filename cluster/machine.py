"""What this machine has: free memory, processor model, and the cores that this process may use."""

import math
import os
from pathlib import Path

from cluster.cgroups import cgroup_of, core_limit_of, free_memory_in


def free_memory_bytes() -> int | None:
    """What this machine, or the control group that this process is in, can still give; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    if "MemAvailable" not in fields:
        return None
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = cgroup_of(os.getpid())
    left = None if group is None else free_memory_in(group)
    return free if left is None else min(free, left)


def processor() -> str:
    """The processor's model as the kernel has it (on ARM its numbers); the machine type elsewhere than on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return os.uname().machine
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = [fields[name] for name in ("CPU implementer", "CPU part", "CPU variant") if name in fields]
    return fields.get("model name") or " ".join([os.uname().machine, *numbers])


def tasks_at_once(asked: int | None, num_tasks: int) -> int:
    """How many of a data stage's tasks run at the same time on this machine; `asked` is its `execution.workers`."""
    return min(num_cores() if asked is None else max(1, asked), num_cores(), num_tasks)


def num_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its control group's share of them."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group = cgroup_of(os.getpid(), "cpu")
    share = core_limit_of(group) if group else None
    return bound if share is None else max(1, min(bound, math.ceil(share)))
