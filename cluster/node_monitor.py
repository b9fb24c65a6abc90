"""Deaths, stops and stalls of the monitored processes on one node, with their causes.

Once a process is gone the kernel no longer tells its control group's kill count or its peak of memory, so both are
recorded here while it lives.
"""

import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

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
from cluster.death_causes import cause_in_log, signal_cause
from cluster.heartbeat import STACK_SIGNAL, STOP_FILE, ProcessRecord, node_folder
from cluster.process_info import ProcessInfo

_STOPPED_S = 6.0
"""How long a process may be stopped by a signal before that is reported."""
_IDLE_CORE_SHARE = 0.02
"""Processes that together take less than this share of one core count as idle."""
_LOG_TAIL_BYTES = 16 << 10
_STACK_WAIT_S = 0.5

log = logging.getLogger(__name__)


class EventKind(StrEnum):
    """What happened to a process."""

    DEAD = "dead"
    STOPPED = "stopped"
    """Stopped by a signal, for some seconds."""
    CONTINUED = "continued"
    """Continued, after STOPPED was reported."""


@dataclass(frozen=True)
class ProcessEvent:
    """Something that happened to a process."""

    process: ProcessInfo
    kind: EventKind
    cause: str = ""
    """The cause of a death, from what the node knows."""
    is_cause_certain: bool = True
    """False where SIGKILL is assumed because nothing else is known; Ray may know better."""
    log_tail: str = ""
    log_death: bool = False
    """`ProcessRecord.log_death`."""


class NodeReport(NamedTuple):
    """What is new on a node since the report before."""

    events: list[ProcessEvent]
    has_progress: bool
    """Whether a process has reached another step, begun or ended."""
    is_busy: bool
    """Whether the processes use the processor."""
    new_processes: Sequence[ProcessInfo] = ()
    """Those that were not monitored before, including any that have ended by now."""
    running_processes: Sequence[ProcessInfo] = ()
    """Those that are monitored now."""
    memory_use: MemoryUse | None = None
    """Use of the control group that is nearest to its limit; None without a limit."""


@dataclass
class _Monitored:
    """What is known of a process while it lives."""

    record: ProcessRecord
    handle: psutil.Process | None
    """None when it was gone before it was first looked at."""
    kills_at_first: dict[str, int] = field(default_factory=dict)
    """Kill counts of the memory control groups that it has been in, when first seen, by the group's folder."""
    peak_bytes: int = 0
    stopped_since_s: float | None = None
    is_stop_reported: bool = False

    @property
    def process(self) -> ProcessInfo:
        return self.record.process


class NodeMonitor:
    """Monitors the processes of this job on its node: a plain object on the driver's node, an actor on the others."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where the processes leave their records; None for this job's own on this node."""
        self.folder = folder or node_folder()
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:  # as in `heartbeat.register`: the work does not need a monitor
            log.warning("the processes of this node are not monitored, deaths would have no cause: %s", error)
        self._monitored: dict[int, _Monitored] = {}
        self._new_processes: list[ProcessInfo] = []
        self._progress: tuple[list[tuple[int, str]], list[tuple[str, float]]] = ([], [])
        self._cpu_s, self._polled_s = 0.0, time.monotonic()

    def poll(self) -> NodeReport:
        """What is new since the last call."""
        self._find_new()
        events = [event for pid in list(self._monitored) if (event := self._check(pid))]
        progress = (sorted((pid, str(one.process)) for pid, one in self._monitored.items()), self._beats())
        has_progress, self._progress = progress != self._progress, progress
        cpu_s, now = sum(map(_cpu_s, self._monitored.values())), time.monotonic()
        is_busy = cpu_s - self._cpu_s > _IDLE_CORE_SHARE * (now - self._polled_s)
        self._cpu_s, self._polled_s = cpu_s, now
        new_processes, self._new_processes = self._new_processes, []
        running = [one.process for one in self._monitored.values()]
        return NodeReport(events, has_progress, is_busy, new_processes, running, self._memory_use())

    def request_stop(self) -> None:
        """Ask the processes to save their work and stop (`heartbeat.stop_requested`)."""
        try:
            (self.folder / STOP_FILE).touch()
        except OSError as error:
            log.warning("the processes of this node cannot be asked to stop: %s", error)

    def read_stacks(self) -> list[tuple[ProcessInfo, str]]:
        """The Python stacks of all processes that can write theirs; empty for one that is stopped by a signal."""
        asked = [
            (one, file)
            for pid, one in self._monitored.items()
            if one.record.handles_stack_signal and (file := self.folder / f"{pid}.stack").exists()
        ]
        sizes = [file.stat().st_size for _, file in asked]
        for one, _ in asked:
            with contextlib.suppress(psutil.Error):
                if one.handle is not None:
                    one.handle.send_signal(STACK_SIGNAL)
        time.sleep(_STACK_WAIT_S)  # the handler runs at once in a process that runs at all
        return [(one.process, file.read_text()[size:]) for (one, file), size in zip(asked, sizes, strict=True)]

    def ignore_exits(self, role: str | None = None, index: int | None = None) -> None:
        """Stop monitoring the processes of a role, or all of them: they are about to be ended on purpose."""
        self._find_new()
        for pid, one in list(self._monitored.items()):
            if one.process.matches(role=role, index=index):
                (self.folder / f"{pid}.json").unlink(missing_ok=True)
                del self._monitored[pid]

    def close(self) -> None:
        """Remove the folder of records."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _find_new(self) -> None:
        for file in self.folder.glob("*.json"):
            pid = int(file.stem)
            if pid in self._monitored:
                continue
            try:
                record = ProcessRecord.read(file)
            except FileNotFoundError:
                continue  # it ended well between two calls
            handle = None
            with contextlib.suppress(psutil.NoSuchProcess):
                handle = psutil.Process(pid)
            self._monitored[pid] = _Monitored(record, handle)
            self._new_processes.append(record.process)

    def _check(self, pid: int) -> ProcessEvent | None:
        """What happened to one process since the last call; forget it when it has ended."""
        one, file = self._monitored[pid], self.folder / f"{pid}.json"
        try:
            record = ProcessRecord.read(file)
        except FileNotFoundError:
            del self._monitored[pid]
            return None
        if record.process != one.process:  # the process has ended one task and begun another
            self._new_processes.append(record.process)
        one.record = record
        if record.ended_with_exception or not _is_alive(one.handle):
            del self._monitored[pid]
            file.unlink(missing_ok=True)
            return None if record.ended_with_exception else self._death(one)
        one.peak_bytes = max(one.peak_bytes, peak_memory_of(pid))
        if (group := cgroup_of(pid)) and str(group) not in one.kills_at_first and (memory := read_memory_group(group)):
            one.kills_at_first[str(group)] = memory.kills
        return _stop_or_continue(one)

    def _beats(self) -> list[tuple[str, float]]:
        beats = []
        for path in self.folder.glob("*.beat"):
            with contextlib.suppress(FileNotFoundError):
                beats.append((path.name, path.stat().st_mtime))
        return sorted(beats)

    def _memory_use(self) -> MemoryUse | None:
        folders = {Path(folder) for one in self._monitored.values() for folder in one.kills_at_first}
        groups = {cgroup_of(os.getpid()), *folders}
        uses = [use for group in groups if group is not None and (use := memory_use_of(group)) is not None]
        return min(uses, key=lambda use: use.limit - use.used, default=None)

    def _death(self, one: _Monitored) -> ProcessEvent:
        log_tail = _log_tail(one.process.log, one.record.log_offset)
        cause, is_cause_certain = self._out_of_memory(one) or cause_in_log(log_tail), True
        if cause is None:
            cause, is_cause_certain = signal_cause(signal.SIGKILL), False
        return ProcessEvent(one.process, EventKind.DEAD, cause, is_cause_certain, log_tail, one.record.log_death)

    def _out_of_memory(self, one: _Monitored) -> str | None:
        """The cause where a control group of a dead process has counted another kill for want of memory, else None."""
        groups = [
            group
            for folder, kills in one.kills_at_first.items()
            if (group := read_memory_group(Path(folder))) and group.kills > kills
        ]
        if not groups:
            return None
        # This kill is accounted for; the death of another process in the group needs a further one.
        counts = {group.path: group.kills for group in groups}
        for other in self._monitored.values():
            other.kills_at_first.update({path: kills for path, kills in counts.items() if path in other.kills_at_first})
        return out_of_memory_cause(groups[0], limiting_group(Path(groups[0].path)), one.peak_bytes)


def _stop_or_continue(one: _Monitored) -> ProcessEvent | None:
    """The event that a living process was stopped by a signal for some seconds, or continued afterwards."""
    assert one.handle is not None, "only a living process can be stopped"
    try:
        is_stopped = one.handle.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return None  # it is gone, which the next call reports, or not ours to see
    if not is_stopped:
        was_reported, one.stopped_since_s, one.is_stop_reported = one.is_stop_reported, None, False
        return ProcessEvent(one.process, EventKind.CONTINUED) if was_reported else None
    one.stopped_since_s = one.stopped_since_s or time.monotonic()
    if one.is_stop_reported or time.monotonic() - one.stopped_since_s < _STOPPED_S:
        return None
    one.is_stop_reported = True
    return ProcessEvent(one.process, EventKind.STOPPED)


def out_of_memory_cause(group: MemoryGroup, limiting: MemoryGroup | None, peak_bytes: int) -> str:
    """The cause of a death by the kernel's memory killer.

    `group` is the process's control group; `limiting` that group or one above it whose limit was reached, None where
    the machine's memory is the only limit; `peak_bytes` the process's own peak.
    """
    limit, limited = "no limit but the machine's memory", limiting or group
    if limiting is not None and limiting.limit is not None:
        limit = f"limit {format_gib(limiting.limit)}" + (f" of {limiting.path}" if limiting.path != group.path else "")
    group_peak = f", its peak {format_gib(limited.peak)}" if limited.peak else ""
    own_peak = f"; this process's peak was {format_gib(peak_bytes)}" if peak_bytes > 0 else ""
    return f"ran out of memory: the kernel killed it in control group {group.path} ({limit}{group_peak}){own_peak}"


def _cpu_s(one: _Monitored) -> float:
    """Processor seconds that a process has used; 0 when it is gone."""
    try:
        times = one.handle.cpu_times() if one.handle else None
    except psutil.Error:
        return 0.0
    return times.user + times.system if times else 0.0


def _is_alive(handle: psutil.Process | None) -> bool:
    try:
        return handle is not None and handle.is_running() and handle.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _log_tail(path: str, start: int) -> str:
    """The end of what a process has written to its log since byte `start`; empty when the log cannot be read."""
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
