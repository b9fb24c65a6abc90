"""The node monitors on the other nodes, polled all at once; a late report is kept for the next poll."""

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

_ANSWER_S, _HURRIED_ANSWER_S = 5.0, 1.0
"""How long an answer is waited for, and how long once a signal has come."""
_POLL_S = 0.2
_MAX_STARTS = 3
"""How often the monitor of a node is started: where it always dies, no further processes are spent on it."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class MonitorHandle(Protocol):
    """The monitor on one node."""

    def call(self, method: Callable[..., T], *arguments: Any) -> "Future[T]":
        """The answer of a method of `NodeMonitor`; an exception other than RayTaskError when the monitor is gone."""
        ...

    def end(self) -> None:
        """End the monitor."""
        ...


class ClusterNodes(Protocol):
    """The other nodes of the cluster."""

    def alive_ids(self) -> set[str]:
        """Ids of the nodes that are alive."""
        ...

    def start_monitor(self, node_id: str) -> MonitorHandle:
        """Start a monitor on a node."""
        ...


@dataclass
class _Remote:
    """A node's monitor and what it still owes."""

    monitor: MonitorHandle
    pending: "Future[NodeReport] | None" = None
    """A poll without an answer so far; the next poll collects it."""
    expected_ends: list[tuple[str | None, int | None]] = field(default_factory=list)
    """(role, index) of the processes that were ended on purpose while that poll was under way."""
    ip: str = ""
    """Its address, once a process was seen there."""


class RemoteMonitors:
    """The monitors on the other nodes.

    consumes: each node's answers; waits for: the answers to this poll, some seconds in all; is unblocked by: the
    answers or the clock; produces: the reports that have come, including late ones to earlier polls.
    """

    def __init__(self, nodes: ClusterNodes) -> None:
        self._nodes = nodes
        self._remotes: dict[str, _Remote] = {}
        self._num_starts: Counter[str] = Counter()
        self._lost_ips: set[str] = set()
        self._lock = threading.RLock()

    def update_nodes(self) -> None:
        """Start a monitor on every node that has none, and forget the nodes that are gone."""
        alive = self._nodes.alive_ids()
        with self._lock:
            for node_id in self._remotes.keys() - alive:
                self._lost_ips.add(self._remotes.pop(node_id).ip)
            for node_id in alive - self._remotes.keys():
                if self._num_starts[node_id] < _MAX_STARTS:
                    self._num_starts[node_id] += 1
                    self._remotes[node_id] = _Remote(self._nodes.start_monitor(node_id))

    def poll(self) -> list[NodeReport]:
        """The reports of all nodes that answer in time."""
        with self._lock:
            asked = []
            for remote in self._remotes.values():
                if remote.pending is None:
                    remote.pending, remote.expected_ends = remote.monitor.call(NodeMonitor.poll), []
                    asked.append(remote.pending)
            _wait(asked)
            reports = [self._collect(node_id, remote) for node_id, remote in list(self._remotes.items())]
        return [report for report in reports if report is not None]

    def call(self, method: Callable[..., T], *arguments: Any) -> list[T]:
        """The answers of a method of `NodeMonitor`; a node that still owes a report is not waited for."""
        with self._lock:
            asked = [(remote, remote.monitor.call(method, *arguments)) for remote in self._remotes.values()]
            _wait([answer for remote, answer in asked if remote.pending is None])
            return [answer.result() for _, answer in asked if answer.done() and answer.exception() is None]

    def is_node_lost(self, ip: str) -> bool:
        """Whether the monitor of the node with this address is gone and no other has answered since.

        Ray itself knows only after some missed heartbeats; until then it calls an actor there unavailable.
        """
        with self._lock:
            return ip != "" and ip in self._lost_ips

    def ignore_exits(self, role: str | None, index: int | None) -> None:
        """`NodeMonitor.ignore_exits` on all nodes."""
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

    def _collect(self, node_id: str, remote: _Remote) -> NodeReport | None:
        """The report that a node owed; None when it has not answered, or its monitor failed or is gone."""
        from ray.exceptions import RayTaskError

        if remote.pending is None or not remote.pending.done():
            return None
        answer, remote.pending = remote.pending, None
        error = answer.exception()
        if error is None:
            report = answer.result()
            remote.ip = next((process.ip for process in (*report.running_processes, *report.new_processes)), remote.ip)
            self._lost_ips.discard(remote.ip)
            return _without(report, remote.expected_ends)
        if isinstance(error, RayTaskError):  # the monitor is there
            log.warning("the monitor of node %s failed, the next poll asks it again: %s", node_id, error)
            return None
        self._lost_ips.add(remote.ip)
        del self._remotes[node_id]  # `update_nodes` starts another where the node is still there
        if self._num_starts[node_id] == _MAX_STARTS:
            log.warning("node %s is not monitored any more, deaths there would have no cause: %s", node_id, error)
        return None


def _without(report: NodeReport, expected_ends: Sequence[tuple[str | None, int | None]]) -> NodeReport:
    """The report without events of processes that were ended on purpose."""
    events = [
        event
        for event in report.events
        if not any(event.process.matches(role=role, index=index) for role, index in expected_ends)
    ]
    return report._replace(events=events)


def _wait(answers: "Sequence[Future[Any]]") -> None:
    """Wait for the answers, less patiently once a signal has come."""
    started_s = time.monotonic()
    while answers and time.monotonic() - started_s < (_HURRIED_ANSWER_S if received_signal() else _ANSWER_S):
        if not wait(answers, timeout=_POLL_S).not_done:
            return


class RayClusterNodes:
    """The other nodes of the Ray cluster that this driver is in."""

    def alive_ids(self) -> set[str]:
        """Ray's ids of the other nodes."""
        return set(other_alive_nodes())

    def start_monitor(self, node_id: str) -> MonitorHandle:
        """Start a `NodeMonitor` there, as an actor."""
        import ray

        return _ActorHandle(ray.remote(NodeMonitor).options(**options_on_node(node_id)).remote())


class _ActorHandle:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: Callable[..., T], *arguments: Any) -> "Future[T]":
        return self._actor.__ray_call__.remote(method, *arguments).future()

    def end(self) -> None:
        import ray

        ray.kill(self._actor)
