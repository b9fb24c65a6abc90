"""The driver's view of a stage's processes on all nodes: deaths with their causes, and what makes no progress."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cluster.capacity import is_waiting_for_capacity, missing_capacity
from cluster.cgroups import MemoryUse
from cluster.heartbeat import node_ip, write_record
from cluster.node_monitor import CONTINUED, DEAD, STOPPED, NodeMonitor, NodeReport, ProcessEvent
from cluster.process_info import ProcessInfo, sentence
from cluster.progress import num_changes
from cluster.remote_monitors import ClusterNodes, RayClusterNodes, RemoteMonitors
from cluster.signals import received_signal

_LOOK_S = 1.0
_IDLE_S, _BUSY_S = 180.0, 1800.0
"""How long a run may make no progress before it is told: while its processes sleep, and while they compute."""
_STILL_FACTOR = 10.0
"""And at least so many times its longest pause so far, so that a busy machine raises no alarm."""

log = logging.getLogger(__name__)

_current_monitor: "StageMonitor | None" = None


@contextlib.contextmanager
def monitoring(stage: str) -> Iterator[None]:
    """Watch the processes of a stage for the length of the block; nothing where there is no Ray."""
    global _current
    import ray

    if not ray.is_initialized():
        yield
        return
    _current_monitor = StageMonitor(stage)
    try:
        yield
    finally:
        over, _current_monitor = _current_monitor, None
        over.close()


def current_monitor() -> "StageMonitor | None":
    """The watch of the stage that runs in this driver."""
    return _current_monitor


def current_stage() -> str | None:
    """The name of the stage that is watched; what `watched` and `watched_class` take."""
    return _current_monitor.stage if _current_monitor else None


def register_child(place: ProcessInfo, *, log_death: bool = False) -> None:
    """Have a process watched that the driver has started itself; nothing where no stage is watched."""
    if _current_monitor is None:
        return
    write_record(replace(place, ip=node_ip()), log_death=log_death)


class StallDetector:
    """Judges by the clock whether a run makes no progress."""

    def __init__(self, now_s: float) -> None:
        self._moved_s = self._busy_s = now_s
        self._longest_s, self._num_changes, self._is_reported = 0.0, 0, False

    def note(self, looks: Sequence[NodeReport], num_changes: int, now_s: float) -> float | None:
        """How long there has been no progress, where that is to be told now; None where it is not, or was."""
        pause_s = now_s - self._moved_s
        if num_changes != self._num_changes or any(look.has_moved for look in looks):
            self._longest_s, self._num_changes, self._is_reported = max(self._longest_s, pause_s), num_changes, False
            self._moved_s = self._busy_s = now_s
            return None
        if any(look.is_busy for look in looks):
            self._busy_s = now_s
        is_long = pause_s > _BUSY_S or now_s - self._busy_s > _IDLE_S
        if self._is_reported or not is_long or pause_s <= _STILL_FACTOR * self._longest_s:
            return None
        self._is_reported = True
        return pause_s


class StageMonitor:
    """The driver's view of the watched processes of one stage, on all nodes.

    consumes: each node's sightings; waits for: a second to pass; is unblocked by: the clock; produces: warnings of what
    stands still and of deaths that nobody else tells, and the deaths for those who ask.
    """

    def __init__(self, stage: str, *, own: NodeMonitor | None = None, cluster: ClusterNodes | None = None) -> None:
        """`own` is the watch of this node, `cluster` the other nodes; None for those of the Ray session."""
        self.stage = stage
        self._lock = threading.RLock()
        self._deaths: list[ProcessEvent] = []
        self._places: dict[tuple[str, int], ProcessInfo] = {}
        """By address of the node and process id, the newest last: what each process does, or did last."""
        self._memory: dict[str, MemoryUse | None] = {}
        """By address of a node: what its control group used when it was last seen."""
        self._own = own or NodeMonitor()
        self._others = RemoteMonitors(cluster or RayClusterNodes())
        self._stillness = StallDetector(time.monotonic())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="watch")
        self._thread.start()

    def death_of(
        self,
        *,
        role: str | None = None,
        index: int | None = None,
        pid: int | None = None,
        ip: str = "",
        patience_s: float = 3.0,
        is_first: bool = False,
    ) -> ProcessEvent | None:
        """The newest death that fits and was not asked for, or the first; None when none is seen within the time."""
        deadline = time.monotonic() + patience_s
        while True:
            self._look()
            with self._lock:
                for death in self._deaths if is_first else reversed(self._deaths):
                    if death.place.fits(role=role, index=index, pid=pid, ip=ip):
                        self._deaths.remove(death)
                        return death
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)

    def place_of(
        self, *, role: str | None = None, index: int | None = None, pid: int | None = None, ip: str = ""
    ) -> ProcessInfo | None:
        """The newest process that fits, whether it still runs or not; None when there was none."""
        self._look()
        with self._lock:
            newest_first = reversed(self._places.values())
            return next((one for one in newest_first if one.fits(role=role, index=index, pid=pid, ip=ip)), None)

    def memory_of(self, ip: str) -> MemoryUse | None:
        """What the control group of a node's processes used when it was last seen; None without a limit."""
        with self._lock:
            return self._memory.get(ip)

    def is_lost(self, ip: str) -> bool:
        """Whether the node with this address is out of reach: its watch is gone, and no other has answered since."""
        return self._others.is_lost(ip)

    def wait_for_end(self, role: str) -> None:
        """Return when no process of a role is at work any more, on any node that answers."""
        while any(place.role == role for look in self._look() for place in look.at_work):
            time.sleep(0.1)

    def request_stop(self) -> None:
        """Ask all processes to come to a good end."""
        self._own.request_stop()
        self._others.ask(NodeMonitor.request_stop)

    def dismiss(self, role: str | None = None, index: int | None = None) -> None:
        """Say that the processes of a role, or all, are about to be ended on purpose, and forget deaths of theirs."""
        with self._lock:
            self._deaths = [death for death in self._deaths if not death.place.fits(role=role, index=index)]
            self._own.dismiss(role, index)
            self._others.dismiss(role, index)

    def close(self) -> None:
        """End the watch."""
        self._over.set()
        self._thread.join(2 if received_signal() else 10)
        self._own.close()
        self._others.close()

    def _follow(self) -> None:
        failure = ""
        while not self._over.wait(_LOOK_S):
            try:
                self._others.meet()
                self._tell_stillness(self._look())
            except Exception as error:  # whatever it was: without this thread no death and no stall would be told
                said, failure = failure, f"{type(error).__name__}: {error}"
                if said != failure:
                    log.warning("a look at the processes failed, the next one tries again: %s", failure)
                    log.debug("where", exc_info=True)

    def _look(self) -> list[NodeReport]:
        """What every node that answers has seen; deaths are kept, and what else is new is told."""
        with self._lock:
            looks = [self._own.look(), *self._others.looks()]
            for look in looks:
                self._deaths += [sighting for sighting in look.sightings if sighting.kind == DEAD]
                for place in look.found:
                    self._places.pop((place.ip, place.pid), None)
                    self._places[place.ip, place.pid] = place
                self._memory.update({place.ip: look.memory for place in look.at_work})
        for look in looks:
            for sighting in look.sightings:
                self._tell(sighting)
        return looks

    def _tell(self, sighting: ProcessEvent) -> None:
        if sighting.kind == DEAD and sighting.log_death:
            log.warning("%s", sentence(sighting.place, sighting.cause))
        elif sighting.kind == STOPPED:
            cause = "stands still: it was stopped by a signal (SIGSTOP); `kill -CONT` lets it go on"
            log.warning("%s", sentence(sighting.place, cause))
        elif sighting.kind == CONTINUED:
            log.info("%s goes on after its stop", sighting.place)

    def _tell_stillness(self, looks: Sequence[NodeReport]) -> None:
        if is_waiting_for_capacity():  # it says itself for what, and until when
            self._stillness = StallDetector(time.monotonic())
            return
        pause_s = self._stillness.note(looks, num_changes(), time.monotonic())
        if pause_s is None:
            return
        num = sum(len(look.at_work) for look in looks)
        who = "no process is at work" if num == 0 else f"{num} {'process is' if num == 1 else 'processes are'} at work"
        lacking = missing_capacity()
        log.warning(
            "%s: no progress for %.0f s; %s%s", self.stage, pause_s, who, f"; missing: {lacking}" if lacking else ""
        )
        for place, stack in self._stacks():
            log.warning("%s has made no progress for %.0f s; it stands at:\n%s", place, pause_s, stack.strip())

    def _stacks(self) -> list[tuple[ProcessInfo, str]]:
        with self._lock:
            stacks = [self._own.stacks(), *self._others.ask(NodeMonitor.stacks)]
        return [(place, stack) for node in stacks for place, stack in node if stack]
