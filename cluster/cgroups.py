"""Limits and use of Linux control groups (version 1 and 2): memory, kills for want of memory, and cores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

_GIB = 1024**3
_NO_LIMIT = 1 << 60
_ROOT = Path("/sys/fs/cgroup")
_MARKER_FILES = {"memory": ("memory.oom_control", "memory.events"), "cpu": ("cpu.cfs_quota_us", "cpu.max")}
"""The files by which a folder is recognized as a group, in version 1 and 2. The root of version 2 has none."""


@dataclass(frozen=True)
class MemoryGroup:
    """A memory control group at a moment, in bytes."""

    path: str
    kills: int
    """Processes of the group that the kernel has ever killed for want of memory."""
    limit: int | None
    """None without a limit."""
    peak: int | None
    """The most that the group has used; None where the kernel does not tell."""


class MemoryUse(NamedTuple):
    """Bytes that a group may use, and uses without the file pages that can be dropped."""

    used: int
    limit: int

    def __str__(self) -> str:
        return f"{format_gib(self.used)} of {format_gib(self.limit)}"


def cgroup_of(pid: int, controller: Literal["memory", "cpu"] = "memory") -> Path | None:
    """The folder of a process's control group; None without one, or when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    v1 = next((path for controllers, path in paths.items() if controller in controllers.split(",")), None)
    hierarchy, path = (_ROOT / controller, v1) if v1 is not None else (_ROOT, paths.get("", "/"))
    # In a container the path may be the host's while the mount begins at the container's own group.
    for folder in (hierarchy / path.lstrip("/"), hierarchy):
        if any((folder / name).exists() for name in _MARKER_FILES[controller]):
            return folder
    return None


def read_memory_group(folder: Path) -> MemoryGroup | None:
    """The state of a memory control group; None when it is gone."""
    try:
        if (folder / "memory.oom_control").exists():
            kills = _named_number(folder / "memory.oom_control", "oom_kill")
            limit, peak = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.max_usage_in_bytes")
        else:
            kills = _named_number(folder / "memory.events", "oom_kill")
            limit, peak = _number(folder / "memory.max"), _number(folder / "memory.peak")
    except OSError:
        return None
    return MemoryGroup(str(folder), kills, limit, peak)


def free_memory_in(folder: Path) -> int | None:
    """Bytes that a memory control group may still use, counting droppable file pages as free; None without a limit.

    The limits of the groups above it count too: a pod's or a batch job's limit may be there.
    """
    return min((max(0, use.limit - use.used) for use in _uses(folder)), default=None)


def memory_use_of(folder: Path) -> MemoryUse | None:
    """Use of the smallest limit that applies to a group, its own or one above it; None without a limit."""
    return min(_uses(folder), key=lambda use: use.limit, default=None)


def limiting_group(folder: Path) -> MemoryGroup | None:
    """The group with the smallest limit, of this one and those above it; None where none has one."""
    groups = [group for one in _with_parents(folder) if (group := read_memory_group(one)) and group.limit is not None]
    return min(groups, key=lambda group: group.limit or 0, default=None)


def core_limit_of(folder: Path) -> float | None:
    """How many cores' time a group may use, by its own limit and those above it; None without a limit."""
    limits = [limit for group in _with_parents(folder) if (limit := _own_core_limit(group)) is not None]
    return min(limits, default=None)


def peak_memory_of(pid: int) -> int:
    """The most resident memory that a process has had, in bytes; 0 when it is gone."""
    try:
        return _named_number(Path(f"/proc/{pid}/status"), "VmHWM:") * 1024
    except OSError:
        return 0


def format_gib(num_bytes: int) -> str:
    """A size as text: `1.25 GiB`, or `40 MiB` where it is small."""
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / 1024**2:.0f} MiB"


def _with_parents(folder: Path) -> list[Path]:
    return [group for group in (folder, *folder.parents) if group.is_relative_to(_ROOT) or group == folder]


def _own_core_limit(folder: Path) -> float | None:
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


def _uses(folder: Path) -> list[MemoryUse]:
    """The use of every limit that applies to a group: its own and those above it."""
    return [use for group in _with_parents(folder) if (use := _own_use(group)) is not None]


def _own_use(folder: Path) -> MemoryUse | None:
    is_v1 = (folder / "memory.oom_control").exists()
    use_name, droppable = ("usage_in_bytes", "total_inactive_file") if is_v1 else ("current", "inactive_file")
    group = read_memory_group(folder)
    if group is None or group.limit is None:
        return None
    try:
        used = _number(folder / f"memory.{use_name}") or 0
        return MemoryUse(max(0, used - _named_number(folder / "memory.stat", droppable)), group.limit)
    except OSError:
        return None  # the group is gone


def _named_number(path: Path, name: str) -> int:
    """The number after `name` in a file of `name number` lines; 0 when it is not there."""
    for line in path.read_text(errors="replace").splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0


def _number(path: Path) -> int | None:
    """The number that a file holds; None for a missing file or one that says there is no limit."""
    if not path.exists():
        return None
    text = path.read_text().strip()
    return None if text == "max" or int(text) > _NO_LIMIT else int(text)
