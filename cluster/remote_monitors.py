"""The watches on the cluster's other nodes, asked all at once: a slow node delays nobody twice and nothing is lost."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.node_monitor import NodeMonitor, NodeReport
from cluster.session import options_on_node, other_alive_nodes
from cluster.signals import received_signal

_ANSWER_S, _HURRY_S = 5.0, 1.0
"""How long an answer is waited for, and how long once a signal has come."""
_POLL_S = 0.2
_MAX_STARTS = 3
"""How often the watch of a node is started: where it always dies, no further processes are spent on it."""

log = logging.getLogger(__name__)


class MonitorHandle(Protocol):
    """The watch on one node."""

    def ask(self, method: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """The answer of a method of `NodeMonitor`; an exception in it other than RayTaskError when it is gone."""
        ...

    def end(self) -> None:
        """End the watch."""
        ...


class ClusterNodes(Protocol):
    """Which other nodes there are."""

    def alive(self) -> set[str]:
        """Their names."""
        ...

    def watch(self, name: str) -> MonitorHandle:
        """Start a watch on one of them."""
        ...


@dataclass
class _Known:
    node: MonitorHandle
    look: "Future[NodeReport] | None" = None
    """What it was asked and has not answered yet; the next look collects it."""
    dismissed: list[tuple[str | None, int | None]] = field(default_factory=list)
    """Whose processes were ended on purpose while that look was under way."""
    ip: str = ""
    """Its address, once a process was seen there."""


class RemoteMonitors:
    """The watches on the other nodes.

    consumes: each node's answers; waits for: those asked now, some seconds in all; is unblocked by: the answers or the
    clock; produces: what has come, also of what was asked before.
    """

    def __init__(self, cluster: ClusterNodes) -> None:
        self._cluster = cluster
        self._nodes: dict[str, _Known] = {}
        self._starts: Counter[str] = Counter()
        self._lost: set[str] = set()
        self._lock = threading.RLock()

    def meet(self) -> None:
        """Start a watch on every node that has none, and forget the nodes that are gone."""
        alive = self._cluster.alive()
        with self._lock:
            for name in self._nodes.keys() - alive:
                self._lost.add(self._nodes.pop(name).ip)
            for name in alive - self._nodes.keys():
                if self._starts[name] < _MAX_STARTS:
                    self._starts[name] += 1
                    self._nodes[name] = _Known(self._cluster.watch(name))

    def looks(self) -> list[NodeReport]:
        """What the nodes have seen."""
        with self._lock:
            asked = []
            for known in self._nodes.values():
                if known.look is None:
                    known.look, known.dismissed = known.node.ask(NodeMonitor.look), []
                    asked.append(known.look)
            _wait(asked)
            answers = [self._collect(name, known) for name, known in list(self._nodes.items())]
        return [look for look in answers if look is not None]

    def ask(self, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The answers of a method of `NodeMonitor`; a node that still owes a report is not waited for."""
        with self._lock:
            asked = [(known, known.node.ask(method, *arguments)) for known in self._nodes.values()]
            _wait([answer for known, answer in asked if known.look is None])
            return [answer.result() for _, answer in asked if answer.done() and answer.exception() is None]

    def is_lost(self, ip: str) -> bool:
        """Whether the watch of the node with this address is gone and no other has answered since.

        Ray itself knows only after some missed heartbeats; until then it calls an actor there unavailable.
        """
        with self._lock:
            return ip != "" and ip in self._lost

    def dismiss(self, role: str | None, index: int | None) -> None:
        """`NodeWatch.dismiss` on all nodes."""
        with self._lock:
            for known in self._nodes.values():
                known.dismissed.append((role, index))
            self.ask(NodeMonitor.dismiss, role, index)

    def close(self) -> None:
        """End all watches."""
        with self._lock:
            self.ask(NodeMonitor.close)
            for known in self._nodes.values():
                known.node.end()
            self._nodes = {}

    def _collect(self, name: str, known: _Known) -> NodeReport | None:
        from ray.exceptions import RayTaskError

        if known.look is None or not known.look.done():
            return None
        answer, known.look = known.look, None
        error = answer.exception()
        if error is None:
            look: NodeReport = answer.result()
            known.ip = next((place.ip for place in (*look.at_work, *look.found)), known.ip)
            self._lost.discard(known.ip)
            return _without(look, known.dismissed)
        if isinstance(error, RayTaskError):  # the watch is there
            log.warning("the watch of node %s failed, the next look asks it again: %s", name, error)
            return None
        self._lost.add(known.ip)
        del self._nodes[name]  # `meet` starts another where the node is still there
        if self._starts[name] == _MAX_STARTS:
            log.warning("node %s is watched no more, deaths there would have no cause: %s", name, error)
        return None


def _without(look: NodeReport, dismissed: Sequence[tuple[str | None, int | None]]) -> NodeReport:
    sightings = [
        sighting
        for sighting in look.sightings
        if not any(sighting.place.fits(role=role, index=index) for role, index in dismissed)
    ]
    return look._replace(sightings=sightings)


def _wait(answers: "Sequence[Future[Any]]") -> None:
    began = time.monotonic()
    while answers and time.monotonic() - began < (_HURRY_S if received_signal() else _ANSWER_S):
        if not wait(answers, timeout=_POLL_S).not_done:
            return


class RayClusterNodes:
    """The nodes of the Ray cluster that this driver is in."""

    def alive(self) -> set[str]:
        """Ray's ids of the other nodes."""
        return set(other_alive_nodes())

    def watch(self, name: str) -> MonitorHandle:
        """Start a `NodeMonitor` there, as an actor."""
        import ray

        return _Actor(ray.remote(NodeMonitor).options(**options_on_node(name)).remote())


class _Actor:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def ask(self, method: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        return self._actor.__ray_call__.remote(method, *arguments).future()

    def end(self) -> None:
        import ray

        ray.kill(self._actor)
