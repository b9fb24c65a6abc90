"""The driver's monitor of all processes of a stage.

It finds processes that died, with the cause of death, and stages that make no progress (a stall).
"""

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
from cluster.progress import num_progress_changes
from cluster.remote_monitors import ClusterNodes, RayClusterNodes, RemoteMonitors
from cluster.signals import received_signal
from cluster.stall_detector import StallDetector

_POLL_INTERVAL_S = 1.0
_POP_DEATH_POLL_S = 0.2

log = logging.getLogger(__name__)

_current_monitor: "StageMonitor | None" = None


@contextlib.contextmanager
def monitor_stage(stage: str) -> Iterator[None]:
    """Monitor the processes of a stage within the block. Does nothing when this process is not connected to Ray.

    `stage` is the name of the job, such as `rlhf-large`, because a stage can occur several times in a pipeline.
    """
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
    """Return the monitor of the stage that this driver runs; None outside of `monitor_stage`."""
    return _current_monitor


def current_stage() -> str | None:
    """Return the name of the job whose stage is monitored, such as `rlhf-large`. None without a monitor."""
    return _current_monitor.stage if _current_monitor else None


def ignore_exits(role: str | None = None, index: int | None = None) -> None:
    """Call `StageMonitor.ignore_exits` of the current monitor. Does nothing when no stage is monitored."""
    if _current_monitor is not None:
        _current_monitor.ignore_exits(role, index)


def register_child(process: ProcessInfo, *, log_death: bool = False) -> None:
    """Monitor a child process that the driver started itself. Does nothing when no stage is monitored.

    With `log_death` the death of the process is logged. Use it if no exception will report the death.
    """
    if _current_monitor is not None:
        write_record(replace(process, ip=node_ip()), log_death=log_death)


class StageMonitor:
    """Monitors the processes of one stage on all nodes of the cluster.

    A thread polls the monitor of every node once a second, and logs warnings about processes that SIGSTOP has
    suspended, about a stage without progress, and about deaths that no exception reports. It also logs the messages of
    the processes (`heartbeat.log_on_driver`). Every death is kept until `pop_death` returns it.
    """

    def __init__(
        self, stage: str, *, own_monitor: NodeMonitor | None = None, nodes: ClusterNodes | None = None
    ) -> None:
        """`own_monitor` monitors this node, and `nodes` are the other nodes of the cluster.

        Tests pass their own. With None a new `NodeMonitor` and the nodes of the Ray cluster are used.
        """
        self.stage = stage
        self._lock = threading.RLock()
        self._deaths: list[ProcessEvent] = []
        """Deaths that `pop_death` has not returned yet, the newest last."""
        self._processes: dict[tuple[str, int], ProcessInfo] = {}
        """The latest `ProcessInfo` of every process, by (IP address of the node, process id), in order of start."""
        self._memory: dict[str, MemoryUse | None] = {}
        """The memory use that each node last reported, by the IP address of the node. None if no memory limit
        applies."""
        self._own_monitor = own_monitor or NodeMonitor()
        self._remote_monitors = RemoteMonitors(nodes or RayClusterNodes())
        self._stall_detector = StallDetector(time.monotonic())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll_until_closed, daemon=True, name="stage-monitor")
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
        """Return and forget the newest death of a matching process, or with `oldest_first` the oldest one.

        A process matches as in `ProcessInfo.matches`. Returns None when no matching death is found within `timeout_s`.
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
            time.sleep(_POP_DEATH_POLL_S)

    def find_process(
        self, *, role: str | None = None, index: int | None = None, pid: int | None = None, ip: str = ""
    ) -> ProcessInfo | None:
        """Return the newest process that matches as in `ProcessInfo.matches`, dead or alive. None without a match."""
        self._poll()
        with self._lock:
            newest_first = reversed(self._processes.values())
            return next((info for info in newest_first if info.matches(role=role, index=index, pid=pid, ip=ip)), None)

    def last_memory_use(self, ip: str) -> MemoryUse | None:
        """Return the memory use that the node with this IP address last reported.

        None if no memory limit applies on the node, or if it has reported nothing.
        """
        with self._lock:
            return self._memory.get(ip)

    def is_node_lost(self, ip: str) -> bool:
        """Whether the node with this IP address cannot be reached (see `RemoteMonitors.is_node_lost`)."""
        return self._remote_monitors.is_node_lost(ip)

    def wait_for_exit(self, role: str) -> None:
        """Wait until no process of this role runs any more. Nodes that do not answer are ignored."""
        while any(process.role == role for report in self._poll() for process in report.running_processes):
            time.sleep(0.1)

    def request_stop(self) -> None:
        """Ask all processes to save their work and stop."""
        self._own_monitor.request_stop()
        self._remote_monitors.call(NodeMonitor.request_stop)

    def ignore_exits(self, role: str | None = None, index: int | None = None) -> None:
        """Stop monitoring the processes with this role and index, because they are about to be ended on purpose.

        None stands for every role or every index.
        """
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

    def _poll_until_closed(self) -> None:
        """Poll all nodes once a second and report stalls. Runs in a thread."""
        last_failure = ""
        while not self._closed.wait(_POLL_INTERVAL_S):
            try:
                self._remote_monitors.update_nodes()
                self._warn_of_stall(self._poll())
            except Exception as error:  # any error, because without this thread no stall would be reported
                failure = f"{type(error).__name__}: {error}"
                if failure != last_failure:
                    log.warning("the processes of the stage could not be checked; trying again: %s", failure)
                    log.debug("traceback of the failed check", exc_info=True)
                last_failure = failure

    def _poll(self) -> list[NodeReport]:
        """Poll all nodes and return the reports of those that answer.

        The deaths in the reports are kept for `pop_death`, and the events and messages in the reports are logged.
        """
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
            for message in report.messages:
                log.log(message.level, "%s: %s", self.stage, message.text)
        return reports

    def _warn_of_stall(self, reports: Sequence[NodeReport]) -> None:
        if is_waiting_for_capacity():  # `wait_for_capacity` logs what it waits for
            self._stall_detector = StallDetector(time.monotonic())
            return
        pause_s = self._stall_detector.update(reports, num_progress_changes(), time.monotonic())
        if pause_s is None:
            return
        num_processes = sum(len(report.running_processes) for report in reports)
        subject = "1 process is" if num_processes == 1 else f"{num_processes or 'no'} processes are"
        missing = missing_capacity()
        suffix = f"; missing: {missing}" if missing else ""
        log.warning("%s: no progress for %.0f s; %s running%s", self.stage, pause_s, subject, suffix)
        for process, stack in self._stacks():
            log.warning("%s has made no progress for %.0f s; its Python stack:\n%s", process, pause_s, stack.strip())

    def _stacks(self) -> list[tuple[ProcessInfo, str]]:
        """Return the Python stack of each process that can report it."""
        with self._lock:
            stacks = [self._own_monitor.read_stacks(), *self._remote_monitors.call(NodeMonitor.read_stacks)]
        return [(process, stack) for stacks_of_node in stacks for process, stack in stacks_of_node if stack]


def _log_event(event: ProcessEvent) -> None:
    """Log an event, unless it is a death that some exception will report (`log_death` is false)."""
    if event.kind == EventKind.DEAD and event.log_death:
        log.warning("%s", event.process.sentence(event.cause))
    elif event.kind == EventKind.STOPPED:
        cause = "was stopped by a signal (SIGSTOP) and makes no progress; `kill -CONT` lets it continue"
        log.warning("%s", event.process.sentence(cause))
    elif event.kind == EventKind.CONTINUED:
        log.info("%s continues after it was stopped", event.process)
