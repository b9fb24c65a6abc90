"""Which of a node's watched processes are gone or stand still, and why.

What the kernel does not tell any more of a process that is gone (its control group's kills, its peak of memory, what
its log says) has been seen here while it lived.
"""

import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from cluster.cgroups import (
    MemoryGroup,
    MemoryUse,
    cgroup_of,
    format_gib,
    limiting_group,
    memory_use_of,
    peak_memory_of,
    read_memory_group,
)
from cluster.death_causes import fatal_signal_in_log, killed_by_signal
from cluster.heartbeat import STACK_SIGNAL, STOP_FILE, ProcessRecord, node_folder, read_record
from cluster.process_info import ProcessInfo

DEAD, STOPPED, CONTINUED = "dead", "stopped", "continued"
_STOPPED_S = 6.0
"""How long a process may be stopped by a signal before it is told."""
_ASLEEP = 0.02
"""Processes that take less than this share of one core are asleep."""
_TAIL_BYTES = 16 << 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessEvent:
    """What a node's watch has seen of a process."""

    place: ProcessInfo
    kind: str
    """`DEAD`, `STOPPED` or `CONTINUED`."""
    cause: str = ""
    """Of a death: what is to be said of it, from what the node knows."""
    is_certain: bool = True
    """False where SIGKILL is said because nothing else is known; Ray may know better."""
    log_tail: str = ""
    log_death: bool = False
    """Whether nobody but the watch will say that it died: Ray does the work of such a process again by itself."""


@dataclass
class _Seen:
    """What is known of a process while it lives."""

    about: ProcessRecord
    process: psutil.Process | None
    """None when it was gone before it was first looked at."""
    groups: dict[str, int] = field(default_factory=dict)
    """By folder of a memory control group that it has been in: the kills that were counted when it was first seen."""
    peak: int = 0
    stopped_s: float | None = None
    """Since when it is stopped."""
    is_stop_reported: bool = False

    @property
    def place(self) -> ProcessInfo:
        return self.about.place


class NodeReport(NamedTuple):
    """What a node's watch has seen since its last look."""

    sightings: list[ProcessEvent]
    has_moved: bool
    """Whether a process has come to another step, begun or ended."""
    is_busy: bool
    """Whether the processes compute."""
    found: Sequence[ProcessInfo] = ()
    """Who was not watched before, gone by now or not."""
    at_work: Sequence[ProcessInfo] = ()
    """Who is watched now."""
    memory: MemoryUse | None = None
    """Of the control group that is nearest to its limit, the node's or of a process; None without a limit."""


class NodeMonitor:
    """Looks at the watched processes of its node; a plain class, in the driver for its own node, an actor elsewhere."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where the processes leave their files; None for this job's own on this node."""
        self.folder = folder or node_folder()
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:  # as in `register`: the work needs no watch
            log.warning("the processes of this node are not watched, their deaths would have no cause: %s", error)
        self._seen: dict[int, _Seen] = {}
        self._found: list[ProcessInfo] = []
        self._moves: tuple[Any, ...] = ()
        self._cpu_s, self._looked_s = 0.0, time.monotonic()

    def look(self) -> NodeReport:
        """What is new since the last look."""
        self._find_new()
        sightings = [sighting for pid in list(self._seen) if (sighting := self._look_at(pid))]
        moves = (sorted((pid, str(seen.place)) for pid, seen in self._seen.items()), self._beats())
        has_moved, self._moves = moves != self._moves, moves
        cpu_s, now = sum(map(_cpu_s, self._seen.values())), time.monotonic()
        is_busy = cpu_s - self._cpu_s > _ASLEEP * (now - self._looked_s)
        self._cpu_s, self._looked_s = cpu_s, now
        found, self._found = self._found, []
        return NodeReport(
            sightings, has_moved, is_busy, found, [seen.place for seen in self._seen.values()], self._memory()
        )

    def request_stop(self) -> None:
        """Ask the processes to come to a good end (`stop_requested`)."""
        try:
            (self.folder / STOP_FILE).touch()
        except OSError as error:
            log.warning("the processes of this node cannot be asked to end: %s", error)

    def stacks(self) -> list[tuple[ProcessInfo, str]]:
        """The Python stacks of all watched processes that can tell them; one that is stopped by a signal has none."""
        asked = [(seen.place, self.folder / f"{pid}.stack", seen) for pid, seen in self._seen.items()]
        asked = [one for one in asked if one[2].about.has_stack and one[1].exists()]
        sizes = [file.stat().st_size for _, file, _ in asked]
        for _, _, seen in asked:
            with contextlib.suppress(psutil.Error):
                if seen.process is not None:
                    seen.process.send_signal(STACK_SIGNAL)
        time.sleep(0.5)  # the handler runs at once in a process that runs at all
        return [(place, file.read_text()[size:]) for (place, file, _), size in zip(asked, sizes, strict=True)]

    def dismiss(self, role: str | None = None, index: int | None = None) -> None:
        """Forget the processes of a role, or all of them: what ends them now is meant to."""
        self._find_new()
        for pid, seen in list(self._seen.items()):
            if seen.place.fits(role=role, index=index):
                (self.folder / f"{pid}.json").unlink(missing_ok=True)
                del self._seen[pid]

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _find_new(self) -> None:
        for file in self.folder.glob("*.json"):
            pid = int(file.stem)
            if pid in self._seen:
                continue
            try:
                about = read_record(file)
            except FileNotFoundError:
                continue  # it ended well between two calls
            process = None
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
            self._seen[pid] = _Seen(about, process)
            self._found.append(about.place)

    def _look_at(self, pid: int) -> ProcessEvent | None:
        seen, file = self._seen[pid], self.folder / f"{pid}.json"
        try:
            about = read_record(file)
        except FileNotFoundError:
            del self._seen[pid]
            return None
        if about.place != seen.place:  # the process has ended one task and begun another
            self._found.append(about.place)
        seen.about = about
        if about.has_raised or not _lives(seen.process):
            del self._seen[pid]
            file.unlink(missing_ok=True)
            return None if about.has_raised else self._death(seen)
        seen.peak = max(seen.peak, peak_memory_of(pid))
        if (group := cgroup_of(pid)) and str(group) not in seen.groups and (memory := read_memory_group(group)):
            seen.groups[str(group)] = memory.kills
        return self._stopped(seen)

    def _beats(self) -> list[tuple[str, float]]:
        beats = []
        for path in self.folder.glob("*.beat"):
            with contextlib.suppress(FileNotFoundError):
                beats.append((path.name, path.stat().st_mtime))
        return sorted(beats)

    def _memory(self) -> MemoryUse | None:
        groups = {cgroup_of(os.getpid()), *(Path(folder) for seen in self._seen.values() for folder in seen.groups)}
        uses = [use for group in groups if group is not None and (use := memory_use_of(group)) is not None]
        return min(uses, key=lambda use: use.limit - use.used, default=None)

    def _stopped(self, seen: _Seen) -> ProcessEvent | None:
        assert seen.process is not None, "it lives"
        try:
            is_stopped = seen.process.status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return None  # it is gone, as the next look says, or not ours to see
        if not is_stopped:
            was_told, seen.stopped_s, seen.is_stop_reported = seen.is_stop_reported, None, False
            return ProcessEvent(seen.place, CONTINUED) if was_told else None
        seen.stopped_s = seen.stopped_s or time.monotonic()
        if seen.is_stop_reported or time.monotonic() - seen.stopped_s < _STOPPED_S:
            return None
        seen.is_stop_reported = True
        return ProcessEvent(seen.place, STOPPED)

    def _death(self, seen: _Seen) -> ProcessEvent:
        tail, log_death = _tail(seen.place.log, seen.about.log_from), seen.about.log_death
        killers = [
            memory
            for folder, kills in seen.groups.items()
            if (memory := read_memory_group(Path(folder))) and memory.kills > kills
        ]
        if killers:
            # Another process of the group may die of the next one; this kill is accounted for.
            for other in self._seen.values():
                other.groups.update({memory.path: memory.kills for memory in killers if memory.path in other.groups})
            cause = out_of_memory(killers[0], limiting_group(Path(killers[0].path)), seen.peak)
            return ProcessEvent(seen.place, DEAD, cause, log_tail=tail, log_death=log_death)
        if cause := fatal_signal_in_log(tail):
            return ProcessEvent(seen.place, DEAD, cause, log_tail=tail, log_death=log_death)
        cause = killed_by_signal(signal.SIGKILL)
        return ProcessEvent(seen.place, DEAD, cause, is_certain=False, log_tail=tail, log_death=log_death)


def out_of_memory(group: MemoryGroup, limiting: MemoryGroup | None, peak: int) -> str:
    """What is said of a process that the kernel killed for want of memory.

    group: where it was; limiting: that or one above it, whose limit was reached, None where there is no limit but the
    machine's memory; peak: the process's own.
    """
    limit, limited = "no limit but the machine's memory", limiting or group
    if limiting is not None and limiting.limit is not None:
        limit = f"limit {format_gib(limiting.limit)}" + (f" of {limiting.path}" if limiting.path != group.path else "")
    group_peak = f", its peak {format_gib(limited.peak)}" if limited.peak else ""
    own = f"; this process's peak was {format_gib(peak)}" if peak > 0 else ""
    return f"ran out of memory: the kernel killed it in control group {group.path} ({limit}{group_peak}){own}"


def _cpu_s(seen: _Seen) -> float:
    """The time that a process has computed; 0 when it is gone."""
    try:
        times = seen.process.cpu_times() if seen.process else None
    except psutil.Error:
        return 0.0
    return times.user + times.system if times else 0.0


def _lives(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _tail(path: str, start: int) -> str:
    """The end of what a process has written to its log since it was registered."""
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
