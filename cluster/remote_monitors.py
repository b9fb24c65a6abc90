"""The driver's connection to the node monitors on the other nodes of the cluster.

All monitors are polled at the same time. A report that arrives too late for one poll is returned by the next.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from cluster.node_monitor import NodeMonitor, NodeReport
from cluster.session import options_on_node, other_alive_nodes
from cluster.signals import received_signal

_ANSWER_LIMIT_S, _ANSWER_LIMIT_AFTER_SIGNAL_S = 5.0, 1.0
"""How long a poll waits for answers: normally, and after the driver has received a signal."""
_POLL_S = 0.2
"""How often a poll that waits for answers checks whether the driver has received a signal."""
_MAX_STARTS = 3
"""How many monitors are started on one node, one after another. When the last of them dies, the node is no longer
monitored."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class MonitorHandle(Protocol):
    """A handle of the `NodeMonitor` on another node."""

    def call(self, method: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Call a method of `NodeMonitor`.

        Reading the future's result raises RayTaskError when the method raised, and any other exception when the monitor
        is dead.
        """
        ...

    def end(self) -> None:
        """End the process of the monitor."""
        ...


class ClusterNodes(Protocol):
    """All nodes of the cluster except the driver's node."""

    def alive_ids(self) -> set[str]:
        """Return the ids of the nodes that are alive."""
        ...

    def start_monitor(self, node_id: str) -> MonitorHandle:
        """Start a `NodeMonitor` on a node."""
        ...


@dataclass
class _RemoteMonitor:
    """A monitor on another node, and its poll that has not been answered yet."""

    monitor: MonitorHandle
    pending: "Future[NodeReport] | None" = None
    """The answer to that poll, which the next `RemoteMonitors.poll` returns. None if no poll is waiting for an
    answer."""
    expected_ends: list[tuple[str | None, int | None]] = field(default_factory=list)
    """(role, index) of the processes that were ended on purpose while the poll was pending. None stands for every role
    or every index."""
    ip: str = ""
    """IP address of the node. Empty until the node has reported a process."""


class RemoteMonitors:
    """The monitors on all other nodes of the cluster.

    `poll` asks the monitors for reports, waits until they have answered or a few seconds have passed, and returns the
    reports that have arrived. A report that arrives later is returned by a later `poll`. Until then its monitor is not
    asked again.
    """

    def __init__(self, nodes: ClusterNodes) -> None:
        self._nodes = nodes
        self._remotes: dict[str, _RemoteMonitor] = {}
        """The monitors by node id."""
        self._num_starts: Counter[str] = Counter()
        """How often a monitor was started, by node id."""
        self._lost_ips: set[str] = set()
        """IP addresses of the nodes that have left the cluster or whose monitor is dead. An address is removed when a
        new monitor reports a process from there."""
        self._lock = threading.RLock()

    def update_nodes(self) -> None:
        """Start a monitor on every node that has none, and forget the nodes that have left the cluster.

        On a node on which `_MAX_STARTS` monitors were started already, no further one is started.
        """
        alive = self._nodes.alive_ids()
        with self._lock:
            for node_id in self._remotes.keys() - alive:
                self._lost_ips.add(self._remotes.pop(node_id).ip)
            for node_id in alive - self._remotes.keys():
                if self._num_starts[node_id] < _MAX_STARTS:
                    self._num_starts[node_id] += 1
                    self._remotes[node_id] = _RemoteMonitor(self._nodes.start_monitor(node_id))

    def poll(self) -> list[NodeReport]:
        """Return the reports of all nodes that answer within the time limit."""
        with self._lock:
            new_polls = []
            for remote in self._remotes.values():
                if remote.pending is None:
                    remote.pending, remote.expected_ends = remote.monitor.call(NodeMonitor.poll), []
                    new_polls.append(remote.pending)
            _wait_for_answers(new_polls)
            reports = [self._collect(node_id, remote) for node_id, remote in list(self._remotes.items())]
        return [report for report in reports if report is not None]

    def call(self, method: Callable[..., T], *arguments: Any) -> list[T]:
        """Call a method of `NodeMonitor` on all other nodes. Returns the answers that arrive within the time limit.

        A call that raised has no answer. Does not wait for nodes that have not answered an earlier poll yet.
        """
        with self._lock:
            calls = [(remote, remote.monitor.call(method, *arguments)) for remote in self._remotes.values()]
            _wait_for_answers([answer for remote, answer in calls if remote.pending is None])
            return [answer.result() for _, answer in calls if answer.done() and answer.exception() is None]

    def is_node_lost(self, ip: str) -> bool:
        """Whether the node with this IP address has left the cluster or its monitor is dead.

        The node no longer counts as lost when a new monitor reports a process from there.

        Ray notices the loss of a node only after several missed heartbeats. Until then it reports actors on the node as
        unavailable, not as dead.
        """
        with self._lock:
            return ip != "" and ip in self._lost_ips

    def ignore_exits(self, role: str | None, index: int | None) -> None:
        """Call `NodeMonitor.ignore_exits` on all nodes."""
        with self._lock:
            for remote in self._remotes.values():
                remote.expected_ends.append((role, index))
            self.call(NodeMonitor.ignore_exits, role, index)

    def close(self) -> None:
        """End all monitors."""
        with self._lock:
            self.call(NodeMonitor.close)
            for remote in self._remotes.values():
                remote.monitor.end()
            self._remotes = {}

    def _collect(self, node_id: str, remote: _RemoteMonitor) -> NodeReport | None:
        """Return the answer to the pending poll of a node. None if it has not arrived yet, or if the poll failed.

        A monitor that is dead is removed.
        """
        from ray.exceptions import RayTaskError

        if remote.pending is None or not remote.pending.done():
            return None
        answer, remote.pending = remote.pending, None
        error = answer.exception()
        if error is None:
            report = answer.result()
            remote.ip = next((process.ip for process in (*report.running_processes, *report.new_processes)), remote.ip)
            self._lost_ips.discard(remote.ip)
            return _without_expected_ends(report, remote.expected_ends)
        if isinstance(error, RayTaskError):  # the monitor is alive, but its method raised
            log.warning("the monitor of node %s failed; trying again at the next poll: %s", node_id, error)
            return None
        self._lost_ips.add(remote.ip)
        del self._remotes[node_id]  # `update_nodes` starts a new monitor if the node is still alive
        if self._num_starts[node_id] == _MAX_STARTS:
            log.warning(
                "node %s is no longer monitored, because its monitor died %d times (last: %s); if a process on this "
                "node dies, the cause will not be known",
                node_id,
                _MAX_STARTS,
                error,
            )
        return None


def _without_expected_ends(report: NodeReport, expected_ends: Sequence[tuple[str | None, int | None]]) -> NodeReport:
    """Return the report without the events of processes that were ended on purpose."""
    events = [
        event
        for event in report.events
        if not any(event.process.matches(role=role, index=index) for role, index in expected_ends)
    ]
    return report._replace(events=events)


def _wait_for_answers(answers: "Sequence[Future[Any]]") -> None:
    """Wait for the answers, up to the time limit. The limit is shorter after a signal."""
    started_s = time.monotonic()
    while answers and time.monotonic() - started_s < (
        _ANSWER_LIMIT_AFTER_SIGNAL_S if received_signal() else _ANSWER_LIMIT_S
    ):
        if not wait(answers, timeout=_POLL_S).not_done:
            return


class RayClusterNodes:
    """All nodes of the Ray cluster except the driver's node."""

    def alive_ids(self) -> set[str]:
        """Return Ray's ids of the nodes that are alive."""
        return set(other_alive_nodes())

    def start_monitor(self, node_id: str) -> MonitorHandle:
        """Start a `NodeMonitor` as an actor on the node."""
        import ray

        return _ActorHandle(ray.remote(NodeMonitor).options(**options_on_node(node_id)).remote())


class _ActorHandle:
    """A `MonitorHandle` of a `NodeMonitor` that runs as a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: Callable[..., T], *arguments: Any) -> "Future[T]":
        return self._actor.__ray_call__.remote(method, *arguments).future()

    def end(self) -> None:
        import ray

        ray.kill(self._actor)
