"""The driver's monitor of all processes of a stage: deaths with their causes, and stalls."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cluster.capacity import is_waiting_for_capacity, missing_capacity
from cluster.cgroups import MemoryUse
from cluster.heartbeat import node_ip, write_record
from cluster.node_monitor import EventKind, NodeMonitor, NodeReport, ProcessEvent
from cluster.process_info import ProcessInfo
from cluster.progress import num_changes
from cluster.remote_monitors import ClusterNodes, RayClusterNodes, RemoteMonitors
from cluster.signals import received_signal

_POLL_INTERVAL_S = 1.0
_IDLE_LIMIT_S, _BUSY_LIMIT_S = 180.0, 1800.0
"""How long a run may make no progress before that is reported: while its processes are idle, and while they compute."""
_STALL_FACTOR = 10.0
"""A pause is only a stall when it is also this many times the longest pause so far: a slow machine raises no alarm."""
_TAKE_DEATH_POLL_S = 0.2

log = logging.getLogger(__name__)

_current_monitor: "StageMonitor | None" = None


@contextlib.contextmanager
def monitor_stage(stage: str) -> Iterator[None]:
    """Monitor the processes of a stage for the length of the block; do nothing without a Ray session."""
    global _current_monitor
    import ray

    if not ray.is_initialized():
        yield
        return
    _current_monitor = StageMonitor(stage)
    try:
        yield
    finally:
        monitor, _current_monitor = _current_monitor, None
        monitor.close()


def current_monitor() -> "StageMonitor | None":
    """The monitor of the stage that runs in this driver."""
    return _current_monitor


def current_stage() -> str | None:
    """The name of the stage that is monitored, which `heartbeat.monitored` takes."""
    return _current_monitor.stage if _current_monitor else None


def ignore_exits(role: str | None = None, index: int | None = None) -> None:
    """`StageMonitor.ignore_exits` of the stage that runs in this driver; nothing where no stage is monitored."""
    if _current_monitor is not None:
        _current_monitor.ignore_exits(role, index)


def register_child(process: ProcessInfo, *, log_death: bool = False) -> None:
    """Have a process monitored that the driver itself has started; nothing where no stage is monitored."""
    if _current_monitor is not None:
        write_record(replace(process, ip=node_ip()), log_death=log_death)


class StallDetector:
    """Decides from the clock whether a run makes no progress."""

    def __init__(self, now_s: float) -> None:
        self._progress_s = self._busy_s = now_s
        """When there was last progress, and when the processes last computed or progressed."""
        self._longest_pause_s, self._num_changes, self._is_reported = 0.0, 0, False

    def update(self, reports: Sequence[NodeReport], num_changes: int, now_s: float) -> float | None:
        """Seconds without progress, once, when they amount to a stall; None otherwise.

        `num_changes` counts the driver's own progress (`progress.num_changes`).
        """
        pause_s = now_s - self._progress_s
        if num_changes != self._num_changes or any(report.has_progress for report in reports):
            self._longest_pause_s = max(self._longest_pause_s, pause_s)
            self._num_changes, self._is_reported = num_changes, False
            self._progress_s = self._busy_s = now_s
            return None
        if any(report.is_busy for report in reports):
            self._busy_s = now_s
        is_over_limit = pause_s > _BUSY_LIMIT_S or now_s - self._busy_s > _IDLE_LIMIT_S
        if self._is_reported or not is_over_limit or pause_s <= _STALL_FACTOR * self._longest_pause_s:
            return None
        self._is_reported = True
        return pause_s


class StageMonitor:
    """The monitored processes of one stage, on all nodes.

    consumes: each node's report; waits for: a second to pass; is unblocked by: the clock; produces: warnings of
    processes that are stopped or stalled and of deaths that nobody else reports; the other deaths for those who ask.
    """

    def __init__(
        self, stage: str, *, own_monitor: NodeMonitor | None = None, nodes: ClusterNodes | None = None
    ) -> None:
        """`own_monitor` monitors this node, `nodes` are the others; None for those of the Ray session."""
        self.stage = stage
        self._lock = threading.RLock()
        self._deaths: list[ProcessEvent] = []
        self._processes: dict[tuple[str, int], ProcessInfo] = {}
        """What each process does, or did last, by (address of the node, process id); the newest last."""
        self._memory: dict[str, MemoryUse | None] = {}
        """What a node's control group used when it was last seen, by the node's address."""
        self._own_monitor = own_monitor or NodeMonitor()
        self._remote_monitors = RemoteMonitors(nodes or RayClusterNodes())
        self._stall_detector = StallDetector(time.monotonic())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="stage-monitor")
        self._thread.start()

    def pop_death(
        self,
        *,
        role: str | None = None,
        index: int | None = None,
        pid: int | None = None,
        ip: str = "",
        timeout_s: float = 3.0,
        oldest_first: bool = False,
    ) -> ProcessEvent | None:
        """The newest death of a matching process (the first with `oldest_first`) that was not returned before.

        Returns None when none is seen within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._poll()
            with self._lock:
                for death in self._deaths if oldest_first else reversed(self._deaths):
                    if death.process.matches(role=role, index=index, pid=pid, ip=ip):
                        self._deaths.remove(death)
                        return death
            if time.monotonic() > deadline:
                return None
            time.sleep(_TAKE_DEATH_POLL_S)

    def find_process(
        self, *, role: str | None = None, index: int | None = None, pid: int | None = None, ip: str = ""
    ) -> ProcessInfo | None:
        """The newest matching process, whether it still runs or not; None when there was none."""
        self._poll()
        with self._lock:
            newest_first = reversed(self._processes.values())
            return next((one for one in newest_first if one.matches(role=role, index=index, pid=pid, ip=ip)), None)

    def last_memory_use(self, ip: str) -> MemoryUse | None:
        """What the control group of a node's processes used when it was last seen; None without a limit."""
        with self._lock:
            return self._memory.get(ip)

    def is_node_lost(self, ip: str) -> bool:
        """Whether the node with this address is out of reach: its monitor is gone and no other has answered since."""
        return self._remote_monitors.is_node_lost(ip)

    def wait_for_exit(self, role: str) -> None:
        """Return when no process of a role runs any more, on any node that answers."""
        while any(process.role == role for report in self._poll() for process in report.running_processes):
            time.sleep(0.1)

    def request_stop(self) -> None:
        """Ask all processes to save their work and stop."""
        self._own_monitor.request_stop()
        self._remote_monitors.call(NodeMonitor.request_stop)

    def ignore_exits(self, role: str | None = None, index: int | None = None) -> None:
        """Stop monitoring the processes of a role, or all, which are about to be ended on purpose."""
        with self._lock:
            self._deaths = [death for death in self._deaths if not death.process.matches(role=role, index=index)]
            self._own_monitor.ignore_exits(role, index)
            self._remote_monitors.ignore_exits(role, index)

    def close(self) -> None:
        """End the monitors on all nodes."""
        self._closed.set()
        self._thread.join(2 if received_signal() else 10)
        self._own_monitor.close()
        self._remote_monitors.close()

    def _run(self) -> None:
        last_failure = ""
        while not self._closed.wait(_POLL_INTERVAL_S):
            try:
                self._remote_monitors.update_nodes()
                self._warn_of_stall(self._poll())
            except Exception as error:  # whatever it is: without this thread no death and no stall would be reported
                failure = f"{type(error).__name__}: {error}"
                if failure != last_failure:
                    log.warning("the processes could not be checked, the next check tries again: %s", failure)
                    log.debug("where", exc_info=True)
                last_failure = failure

    def _poll(self) -> list[NodeReport]:
        """The reports of all nodes that answer; their deaths are kept, their other events logged."""
        with self._lock:
            reports = [self._own_monitor.poll(), *self._remote_monitors.poll()]
            for report in reports:
                self._deaths += [event for event in report.events if event.kind == EventKind.DEAD]
                for process in report.new_processes:
                    self._processes.pop((process.ip, process.pid), None)
                    self._processes[process.ip, process.pid] = process
                self._memory.update({process.ip: report.memory_use for process in report.running_processes})
        for report in reports:
            for event in report.events:
                _log_event(event)
        return reports

    def _warn_of_stall(self, reports: Sequence[NodeReport]) -> None:
        if is_waiting_for_capacity():  # which says itself for what, and until when
            self._stall_detector = StallDetector(time.monotonic())
            return
        pause_s = self._stall_detector.update(reports, num_changes(), time.monotonic())
        if pause_s is None:
            return
        number = sum(len(report.running_processes) for report in reports)
        workers = "1 process is" if number == 1 else f"{number} processes are" if number else "no process is"
        missing = missing_capacity()
        suffix = f"; missing: {missing}" if missing else ""
        log.warning("%s: no progress for %.0f s; %s at work%s", self.stage, pause_s, workers, suffix)
        for process, stack in self._stacks():
            log.warning("%s has made no progress for %.0f s; its stack:\n%s", process, pause_s, stack.strip())

    def _stacks(self) -> list[tuple[ProcessInfo, str]]:
        with self._lock:
            stacks = [self._own_monitor.read_stacks(), *self._remote_monitors.call(NodeMonitor.read_stacks)]
        return [(process, stack) for node in stacks for process, stack in node if stack]


def _log_event(event: ProcessEvent) -> None:
    if event.kind == EventKind.DEAD and event.log_death:
        log.warning("%s", event.process.sentence(event.cause))
    elif event.kind == EventKind.STOPPED:
        cause = "was stopped by a signal (SIGSTOP) and makes no progress; `kill -CONT` lets it continue"
        log.warning("%s", event.process.sentence(cause))
    elif event.kind == EventKind.CONTINUED:
        log.info("%s continues after its stop", event.process)
