"""Reads from Linux control groups (cgroups, version 1 and 2): memory limit, memory use, OOM kills and CPU limit.

An OOM kill is a kill by the kernel's out-of-memory killer. The limit of a group also applies to all groups below it.
The limit of a Kubernetes pod or a batch job is often set on an ancestor of a process's own group, so every function
here that looks for a limit also looks at the ancestors, unless its docstring says otherwise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

_GIB = 1024**3
_MAX_LIMIT_BYTES = 1 << 60
"""A larger limit means no limit: version 1 writes a number near 2**63 where no limit is set."""
_ROOT, _PROCESSES = Path("/sys/fs/cgroup"), Path("/proc")
_MARKER_FILES = {"memory": ("memory.oom_control", "memory.events"), "cpu": ("cpu.cfs_quota_us", "cpu.max")}
"""For each controller: the name, first in version 1 and then in version 2, of a file that shows that a folder is a
group. In version 2 the root group lacks the file, and so does a group for which the controller is not enabled."""


@dataclass(frozen=True)
class MemoryGroup:
    """The state of a memory control group when it was read."""

    path: str
    num_oom_kills: int
    """The number of the group's processes that the OOM killer has killed since the group was created. In version 2 it
    includes the processes of the groups below this one."""
    limit_bytes: int | None
    """The memory limit that is set on the group itself and not on an ancestor. None if no limit is set."""
    peak_bytes: int | None
    """The most memory that the group has used. None if the kernel does not record it."""


class MemoryUse(NamedTuple):
    """The memory use of a control group, and the limit of the same group."""

    used_bytes: int
    """The memory that the group uses, without the cached file pages that the kernel can drop."""
    limit_bytes: int

    def __str__(self) -> str:
        return f"{format_gib(self.used_bytes)} of {format_gib(self.limit_bytes)}"


def cgroup_of(pid: int, controller: Literal["memory", "cpu"] = "memory") -> Path | None:
    """The folder of the group that counts and limits a process's memory or CPU time: its own group or an ancestor.

    In version 1 a process has one group for each controller. In version 2 all controllers share one group. If the
    controller is not enabled for this group, the nearest ancestor with the controller counts and limits the process.
    Returns None if there is no such group, or if the process has ended.
    """
    try:
        lines = (_PROCESSES / f"{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    v1_path = next((path for controllers, path in paths.items() if controller in controllers.split(",")), None)
    hierarchy, path = (_ROOT / controller, v1_path) if v1_path is not None else (_ROOT, paths.get("", "/"))
    # In a container, /proc may state the group's path on the host. The path does not exist in the container, where the
    # folder of the whole hierarchy is the container's own group.
    for folder in _group_and_ancestors(hierarchy / path.lstrip("/")):
        if any((folder / name).exists() for name in _MARKER_FILES[controller]):
            return folder
    return None


def read_memory_group(folder: Path) -> MemoryGroup | None:
    """The state of a memory control group. None if the folder has ceased to exist or lacks the controller's files."""
    try:
        if (folder / "memory.oom_control").exists():
            num_oom_kills = _read_named_number(folder / "memory.oom_control", "oom_kill")
            limit_name, peak_name = "memory.limit_in_bytes", "memory.max_usage_in_bytes"
        else:
            num_oom_kills = _read_named_number(folder / "memory.events", "oom_kill")
            limit_name, peak_name = "memory.max", "memory.peak"
        limit_bytes, peak_bytes = _read_number(folder / limit_name), _read_number(folder / peak_name)
    except OSError:
        return None
    return MemoryGroup(str(folder), num_oom_kills, limit_bytes, peak_bytes)


def free_group_bytes(folder: Path) -> int | None:
    """The memory that a control group can still use under its limit and the limits of its ancestors.

    Cached file pages that the kernel can drop count as free. Returns None if no limit applies.
    """
    return min((max(0, use.limit_bytes - use.used_bytes) for use in _memory_uses(folder)), default=None)


def smallest_limit_use(folder: Path) -> MemoryUse | None:
    """The memory use of the group with the smallest limit among a group and its ancestors. None if no limit applies."""
    return min(_memory_uses(folder), key=lambda use: use.limit_bytes, default=None)


def limiting_group(folder: Path) -> MemoryGroup | None:
    """The group with the smallest memory limit among a group and its ancestors. None if no limit applies."""
    groups = [read_memory_group(path) for path in _group_and_ancestors(folder)]
    limited_groups = [group for group in groups if group and group.limit_bytes is not None]
    return min(limited_groups, key=lambda group: group.limit_bytes or 0, default=None)


def core_limit_of(folder: Path) -> float | None:
    """The number of CPU cores that a group may use under its limit and those of its ancestors; it may be a fraction.

    Returns None if no limit applies.
    """
    limits = [limit for group in _group_and_ancestors(folder) if (limit := _read_core_limit(group)) is not None]
    return min(limits, default=None)


def peak_memory_of(pid: int) -> int:
    """The largest resident memory (RSS) that a process has had, in bytes. 0 if the process has ended."""
    try:
        return _read_named_number(_PROCESSES / f"{pid}/status", "VmHWM:") * 1024
    except OSError:
        return 0


def format_gib(num_bytes: int) -> str:
    """Format a number of bytes as `1.25 GiB`, or as `40 MiB` below 1 GiB."""
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / 1024**2:.0f} MiB"


def _group_and_ancestors(folder: Path) -> list[Path]:
    """The folder of a group and the folders of its ancestors up to `_ROOT`, the group itself first."""
    return [group for group in (folder, *folder.parents) if group.is_relative_to(_ROOT) or group == folder]


def _read_core_limit(folder: Path) -> float | None:
    """The limit that is set on the group itself and not on an ancestor, in CPU cores. None if no limit is set."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        elif (folder / "cpu.cfs_quota_us").exists():
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        else:
            return None
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _memory_uses(folder: Path) -> list[MemoryUse]:
    """The memory use of each group that has a limit, among a group and its ancestors."""
    return [use for group in _group_and_ancestors(folder) if (use := _read_memory_use(group)) is not None]


def _read_memory_use(folder: Path) -> MemoryUse | None:
    """The memory use of the group itself. None if the group itself has no limit, or no longer exists."""
    is_v1 = (folder / "memory.oom_control").exists()
    usage_name, droppable_name = ("usage_in_bytes", "total_inactive_file") if is_v1 else ("current", "inactive_file")
    group = read_memory_group(folder)
    if group is None or group.limit_bytes is None:
        return None
    try:
        usage_bytes = _read_number(folder / f"memory.{usage_name}") or 0
        droppable_bytes = _read_named_number(folder / "memory.stat", droppable_name)
    except OSError:
        return None  # The group no longer exists.
    return MemoryUse(max(0, usage_bytes - droppable_bytes), group.limit_bytes)


def _read_named_number(path: Path, name: str) -> int:
    """The number after `name` in a file of `name number` lines. 0 if no line begins with `name`."""
    for line in path.read_text(errors="replace").splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0


def _read_number(path: Path) -> int | None:
    """The number in a file. None if the file does not exist, or if its content means that no limit is set."""
    if not path.exists():
        return None
    text = path.read_text().strip()
    return None if text == "max" or int(text) > _MAX_LIMIT_BYTES else int(text)
