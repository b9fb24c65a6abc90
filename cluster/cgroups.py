"""What the kernel says of a process's memory: its peak, and its control group's limit, peak, kills and cores."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_GIB = 1024**3
_NO_LIMIT = 1 << 60
_ROOT = Path("/sys/fs/cgroup")
_FILES = {"memory": ("memory.oom_control", "memory.events"), "cpu": ("cpu.cfs_quota_us", "cpu.max")}
"""By which file a folder is known for a group, in version 1 and 2 of control groups. The root of version 2 has none."""


@dataclass(frozen=True)
class MemoryGroup:
    """A memory control group at a moment, in bytes."""

    path: str
    kills: int
    """Processes of the group that the kernel has killed for want of memory, ever."""
    limit: int | None
    """None where there is none."""
    peak: int | None
    """The most that the group has used; None where the kernel does not tell."""


def cgroup_of(pid: int, controller: str = "memory") -> Path | None:
    """The folder of a process's control group for `memory` or `cpu`; None without one, or when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    v1 = next((path for controllers, path in paths.items() if controller in controllers.split(",")), None)
    hierarchy, path = (_ROOT / controller, v1) if v1 is not None else (_ROOT, paths.get("", "/"))
    # In a container the path may be the host's while the mount begins at the container's own group.
    for folder in (hierarchy / path.lstrip("/"), hierarchy):
        if any((folder / name).exists() for name in _FILES[controller]):
            return folder
    return None


class MemoryUse(NamedTuple):
    """What a group may use, and uses of it without the file pages that can be dropped, in bytes."""

    used: int
    limit: int

    def __str__(self) -> str:
        return f"{format_gib(self.used)} of {format_gib(self.limit)}"


def read_memory_group(folder: Path) -> MemoryGroup | None:
    """What a memory control group says now; None when it is gone."""
    try:
        if (folder / "memory.oom_control").exists():
            kills = _named(folder / "memory.oom_control", "oom_kill")
            return MemoryGroup(
                str(folder),
                kills,
                _number(folder / "memory.limit_in_bytes"),
                _number(folder / "memory.max_usage_in_bytes"),
            )
        kills = _named(folder / "memory.events", "oom_kill")
        return MemoryGroup(str(folder), kills, _number(folder / "memory.max"), _number(folder / "memory.peak"))
    except OSError:
        return None


def free_memory_in(folder: Path) -> int | None:
    """Bytes that a memory control group may still take, dropping file pages that can be; None without a limit.

    Those above it count too: a pod's or a batch job's limit may stand there.
    """
    return min((max(0, use.limit - use.used) for use in _uses(folder)), default=None)


def memory_use_of(folder: Path) -> MemoryUse | None:
    """What a group and all beside it use of the smallest limit, its own or one above it; None without a limit."""
    return min(_uses(folder), key=lambda use: use.limit, default=None)


def limiting_group(folder: Path) -> MemoryGroup | None:
    """The group with the smallest limit, of this one and those above it; None where none has one."""
    groups = [group for one in _with_parents(folder) if (group := read_memory_group(one)) and group.limit is not None]
    return min(groups, key=lambda group: group.limit or 0, default=None)


def core_limit_of(folder: Path) -> float | None:
    """How many cores' time a group and those above it may take in all; None without a limit."""
    shares = [share for group in _with_parents(folder) if (share := _cores_of_one(group)) is not None]
    return min(shares, default=None)


def _with_parents(folder: Path) -> list[Path]:
    return [group for group in (folder, *folder.parents) if group.is_relative_to(_ROOT) or group == folder]


def _cores_of_one(folder: Path) -> float | None:
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
    """Of a group and those above it, where there is a limit."""
    return [use for group in _with_parents(folder) if (use := _use_of_one(group)) is not None]


def _use_of_one(folder: Path) -> MemoryUse | None:
    is_v1 = (folder / "memory.oom_control").exists()
    use_name, droppable = ("usage_in_bytes", "total_inactive_file") if is_v1 else ("current", "inactive_file")
    group = read_memory_group(folder)
    if group is None or group.limit is None:
        return None
    try:
        use = _number(folder / f"memory.{use_name}") or 0
        return MemoryUse(max(0, use - _named(folder / "memory.stat", droppable)), group.limit)
    except OSError:
        return None  # it is gone


def peak_memory_of(pid: int) -> int:
    """The most resident memory that a process has had, in bytes; 0 when it is gone."""
    try:
        return _named(Path(f"/proc/{pid}/status"), "VmHWM:") * 1024
    except OSError:
        return 0


def format_gib(num_bytes: int) -> str:
    """A size for a reader: `1.25 GiB`, or `40 MiB` where it is small."""
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / 1024**2:.0f} MiB"


def _named(path: Path, name: str) -> int:
    """The number after `name` in a file of `name number` lines; 0 when it is not there."""
    for line in path.read_text(errors="replace").splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0


def _number(path: Path) -> int | None:
    if not path.exists():
        return None
    text = path.read_text().strip()
    return None if text == "max" or int(text) > _NO_LIMIT else int(text)
