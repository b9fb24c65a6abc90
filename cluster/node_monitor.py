"""Observes the monitored processes of one node and reports their deaths, stops and progress.

A death is reported with its cause. A stop means that a signal (SIGSTOP) has paused the process.

Some causes can be found only with observations from before the death. Once a process has ended, the kernel no longer
reports which memory control group (cgroup) the process was in or how much memory it had used. So every poll records
both. An OOM kill is a kill by the kernel's out-of-memory killer.
"""

import contextlib
import json
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
    peak_memory_of,
    read_memory_group,
    smallest_limit_use,
)
from cluster.death_causes import cause_in_log, signal_cause
from cluster.heartbeat import MESSAGE_SUFFIX, STACK_SIGNAL, STOP_FILE, DriverMessage, ProcessRecord, node_folder
from cluster.process_info import ProcessInfo

_MIN_STOP_S = 6.0
"""A process that a signal has stopped (SIGSTOP) is reported after this time."""
_IDLE_CORE_SHARE = 0.02
"""The processes count as idle if all of them together use less than this share of one CPU core between two polls."""
_LOG_TAIL_BYTES = 16 << 10
_STACK_WAIT_S = 0.5
"""The time that processes have to write their stacks after the signal."""

log = logging.getLogger(__name__)


class EventKind(StrEnum):
    """What can happen to a process."""

    DEAD = "dead"
    STOPPED = "stopped"
    """A signal (SIGSTOP) has stopped the process for some seconds."""
    CONTINUED = "continued"
    """The process runs again after STOPPED was reported."""


@dataclass(frozen=True)
class ProcessEvent:
    """The death, the stop or the continuation of a monitored process."""

    process: ProcessInfo
    kind: EventKind
    cause: str = ""
    """The cause of a death, as far as it can be known on the node. Empty for other events."""
    is_cause_certain: bool = True
    """False if SIGKILL is assumed because no cause was found. Ray's report may then state the real cause."""
    log_tail: str = ""
    """The end of the dead process's log."""
    log_death: bool = False
    """A copy of `ProcessRecord.log_death`."""


class NodeReport(NamedTuple):
    """What one poll of a node returns: the changes since the previous poll, and the present state."""

    events: list[ProcessEvent]
    has_progress: bool
    """Whether a process has sent a heartbeat, or a process has started or ended."""
    is_busy: bool
    """Whether the processes together have used more than `_IDLE_CORE_SHARE` of a CPU core since the previous poll."""
    new_processes: Sequence[ProcessInfo] = ()
    """The processes whose record was read for the first time since the previous poll, even if they have ended by now. A
    process that removes its record before the next poll is never read."""
    running_processes: Sequence[ProcessInfo] = ()
    """The processes that are monitored now."""
    memory_use: MemoryUse | None = None
    """The memory use of the control group that is nearest to its limit. One group is considered for each process and
    for the monitor itself: the one with the smallest limit among its own group and the ancestors. None if no limit
    applies."""
    messages: Sequence[DriverMessage] = ()
    """What the processes have asked the driver to log since the previous poll, the oldest first."""


@dataclass
class _MonitoredProcess:
    """The observations of one process while it lives."""

    record: ProcessRecord
    handle: psutil.Process | None
    """None if the process had ended before its record was read."""
    initial_oom_kills: dict[str, int] = field(default_factory=dict)
    """The keys are the folders of the memory control groups that the process has been in. The value is the group's
    number of OOM kills when the process was first seen in the group, plus the later kills that were attributed to other
    monitored processes."""
    peak_bytes: int = 0
    """The largest resident memory that the process has had, as of the last poll."""
    stopped_since_s: float | None = None
    """The time, by `time.monotonic`, of the first poll that found the process stopped. None while the process runs."""
    is_stop_reported: bool = False
    """Whether STOPPED was reported and CONTINUED was not yet."""

    @property
    def process(self) -> ProcessInfo:
        return self.record.process


class NodeMonitor:
    """The monitor of the processes of the current Ray job on one node.

    It is a plain object on the driver's node and a Ray actor on each other node.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` contains the processes' records; None means `heartbeat.node_folder()`."""
        self.folder = folder or node_folder()
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:  # The work can run without a monitor.
            log.warning(
                "the processes of this node are not monitored; if one dies, the cause will be unknown: %s", error
            )
        self._monitored: dict[int, _MonitoredProcess] = {}
        self._new_processes: list[ProcessInfo] = []
        # The identities of the processes and the times of their heartbeats at the last poll; a change is progress.
        self._progress: tuple[list[tuple[int, str]], list[tuple[str, float]]] = ([], [])
        # The CPU seconds of all processes at the last poll, and the time of that poll.
        self._cpu_s, self._polled_s = 0.0, time.monotonic()

    def poll(self) -> NodeReport:
        """Observe the processes and return what is new since the previous call."""
        self._add_new_processes()
        events = [event for pid in list(self._monitored) if (event := self._observe(pid))]
        identities = sorted((pid, str(monitored.process)) for pid, monitored in self._monitored.items())
        progress = (identities, self._heartbeat_times())
        has_progress, self._progress = progress != self._progress, progress
        cpu_s, now = sum(map(_cpu_s, self._monitored.values())), time.monotonic()
        is_busy = cpu_s - self._cpu_s > _IDLE_CORE_SHARE * (now - self._polled_s)
        self._cpu_s, self._polled_s = cpu_s, now
        new_processes, self._new_processes = self._new_processes, []
        running = [monitored.process for monitored in self._monitored.values()]
        return NodeReport(
            events, has_progress, is_busy, new_processes, running, self._memory_use(), self._pop_messages()
        )

    def request_stop(self) -> None:
        """Ask the processes to save their work and end. They learn of the request by `heartbeat.stop_requested`."""
        try:
            (self.folder / STOP_FILE).touch()
        except OSError as error:
            log.warning("the processes of this node cannot be asked to stop: %s", error)

    def read_stacks(self) -> list[tuple[ProcessInfo, str]]:
        """Return each process that handles the stack signal, with the text of its Python stacks.

        The text is empty for a process that has ended, and for a process that cannot handle the signal because SIGSTOP
        has stopped it.
        """
        requested = [
            (monitored, file)
            for pid, monitored in self._monitored.items()
            if monitored.record.handles_stack_signal and (file := self.folder / f"{pid}.stack").exists()
        ]
        offsets = [file.stat().st_size for _, file in requested]
        for monitored, _ in requested:
            with contextlib.suppress(psutil.Error):
                if monitored.handle is not None:
                    monitored.handle.send_signal(STACK_SIGNAL)
        time.sleep(_STACK_WAIT_S)  # A process that is not stopped handles the signal at once.
        return [
            (monitored.process, file.read_text()[offset:])
            for (monitored, file), offset in zip(requested, offsets, strict=True)
        ]

    def ignore_exits(self, role: str | None = None, index: int | None = None) -> None:
        """Stop monitoring the processes with this role and index, because they are about to be ended on purpose.

        `role=None` matches all roles and `index=None` all indices.
        """
        self._add_new_processes()
        for pid, monitored in list(self._monitored.items()):
            if monitored.process.matches(role=role, index=index):
                (self.folder / f"{pid}.json").unlink(missing_ok=True)
                del self._monitored[pid]

    def close(self) -> None:
        """Remove the folder with the records."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _add_new_processes(self) -> None:
        """Start to monitor the processes that have written a record since the last call."""
        for file in self.folder.glob("*.json"):
            pid = int(file.stem)
            if pid in self._monitored:
                continue
            try:
                record = ProcessRecord.read(file)
            except FileNotFoundError:
                continue  # The process has ended without an exception since the folder was listed.
            handle = None
            with contextlib.suppress(psutil.NoSuchProcess):
                handle = psutil.Process(pid)
            self._monitored[pid] = _MonitoredProcess(record, handle)
            self._new_processes.append(record.process)

    def _observe(self, pid: int) -> ProcessEvent | None:
        """Observe one process and return what happened to it since the last call. None if there is nothing to report.

        Stops monitoring the process if it has ended.
        """
        monitored, file = self._monitored[pid], self.folder / f"{pid}.json"
        try:
            record = ProcessRecord.read(file)
        except FileNotFoundError:
            del self._monitored[pid]
            return None
        if record.process != monitored.process:  # The worker process has ended one task and started another.
            self._new_processes.append(record.process)
        monitored.record = record
        if record.ended_with_exception or not _is_alive(monitored.handle):
            del self._monitored[pid]
            file.unlink(missing_ok=True)
            return None if record.ended_with_exception else self._death_event(monitored)
        monitored.peak_bytes = max(monitored.peak_bytes, peak_memory_of(pid))
        folder = cgroup_of(pid)
        if folder and str(folder) not in monitored.initial_oom_kills and (group := read_memory_group(folder)):
            monitored.initial_oom_kills[str(folder)] = group.num_oom_kills
        return _stop_event(monitored)

    def _heartbeat_times(self) -> list[tuple[str, float]]:
        """The name and the time of each process's latest heartbeat file."""
        times = []
        for path in self.folder.glob("*.beat"):
            with contextlib.suppress(FileNotFoundError):
                times.append((path.name, path.stat().st_mtime))
        return sorted(times)

    def _pop_messages(self) -> list[DriverMessage]:
        """Return the messages of the processes to the driver, and remove their files."""
        messages = []
        for file in sorted(self.folder.glob(f"*{MESSAGE_SUFFIX}")):  # the names begin with the time
            messages.append(DriverMessage(**json.loads(file.read_text())))
            file.unlink()
        return messages

    def _memory_use(self) -> MemoryUse | None:
        """The value of `NodeReport.memory_use`."""
        folders = {Path(path) for monitored in self._monitored.values() for path in monitored.initial_oom_kills}
        groups = {cgroup_of(os.getpid()), *folders}
        uses = [use for group in groups if group is not None and (use := smallest_limit_use(group)) is not None]
        return min(uses, key=lambda use: use.limit_bytes - use.used_bytes, default=None)

    def _death_event(self, monitored: _MonitoredProcess) -> ProcessEvent:
        record = monitored.record
        log_tail = _log_tail(record.process.log, record.log_offset)
        cause, is_certain = self._out_of_memory(monitored) or cause_in_log(log_tail), True
        if cause is None:
            cause, is_certain = signal_cause(signal.SIGKILL), False
        return ProcessEvent(record.process, EventKind.DEAD, cause, is_certain, log_tail, record.log_death)

    def _out_of_memory(self, dead: _MonitoredProcess) -> str | None:
        """The cause of death if a control group of the dead process has counted a new OOM kill, else None."""
        groups = [
            group
            for path, num_oom_kills in dead.initial_oom_kills.items()
            if (group := read_memory_group(Path(path))) and group.num_oom_kills > num_oom_kills
        ]
        if not groups:
            return None
        # Attribute the kill to this process only: the other processes of the group start from the new count.
        counts = {group.path: group.num_oom_kills for group in groups}
        for monitored in self._monitored.values():
            kills = monitored.initial_oom_kills
            kills.update({path: count for path, count in counts.items() if path in kills})
        return out_of_memory_cause(groups[0], limiting_group(Path(groups[0].path)), dead.peak_bytes)


def _stop_event(monitored: _MonitoredProcess) -> ProcessEvent | None:
    """The STOPPED or CONTINUED event of a living process. None if there is no event to report."""
    assert monitored.handle is not None, "only a living process can be stopped"
    try:
        is_stopped = monitored.handle.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return None  # The process has ended, which the next call reports, or we may not read its status.
    if not is_stopped:
        was_reported, monitored.stopped_since_s, monitored.is_stop_reported = monitored.is_stop_reported, None, False
        return ProcessEvent(monitored.process, EventKind.CONTINUED) if was_reported else None
    monitored.stopped_since_s = monitored.stopped_since_s or time.monotonic()
    if monitored.is_stop_reported or time.monotonic() - monitored.stopped_since_s < _MIN_STOP_S:
        return None
    monitored.is_stop_reported = True
    return ProcessEvent(monitored.process, EventKind.STOPPED)


def out_of_memory_cause(group: MemoryGroup, limiting: MemoryGroup | None, peak_bytes: int) -> str:
    """The cause of a death by the kernel's out-of-memory (OOM) killer.

    `group` is the process's control group. `limiting` is the group whose limit was reached: `group` or an ancestor, or
    None if the machine's memory is the only limit. `peak_bytes` is the most memory that the process itself has used.
    """
    limit, limited_group, subject = "no limit but the machine's memory", limiting or group, "the group's"
    if limiting is not None and limiting.limit_bytes is not None:
        owner = f" of {limiting.path}" if limiting.path != group.path else ""
        limit, subject = f"limit {format_gib(limiting.limit_bytes)}{owner}", "its"
    group_peak = f", {subject} peak {format_gib(limited_group.peak_bytes)}" if limited_group.peak_bytes else ""
    process_peak = f"; this process's peak was {format_gib(peak_bytes)}" if peak_bytes > 0 else ""
    return f"ran out of memory: the kernel killed it in control group {group.path} ({limit}{group_peak}){process_peak}"


def _cpu_s(monitored: _MonitoredProcess) -> float:
    """The CPU time that a process has used, in seconds. 0 if the process has ended."""
    try:
        times = monitored.handle.cpu_times() if monitored.handle else None
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
    """The end of a log, without the bytes before offset `start`. Empty if the log cannot be read."""
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
