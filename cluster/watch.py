"""The driver's view of a stage's processes on all nodes: deaths with their causes, and what makes no progress."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.causes import Place, sentence
from cluster.node_watch import CONTINUED, DEAD, STOPPED, Look, NodeWatch, Sighting
from cluster.progress import num_changes
from cluster.watched import leave_file

_LOOK_S = 1.0
_IDLE_S, _BUSY_S = 180.0, 1800.0
"""How long a run may make no progress before it is told: while its processes sleep, and while they compute."""
_STILL_FACTOR = 10.0
"""And at least so many times its longest pause so far, so that a busy machine raises no alarm."""

log = logging.getLogger(__name__)

_current: "Watch | None" = None


@contextlib.contextmanager
def watching(stage: str) -> Iterator[None]:
    """Watch the processes of a stage for the length of the block; nothing where there is no Ray."""
    global _current
    import ray

    if not ray.is_initialized():
        yield
        return
    _current = Watch(stage)
    try:
        yield
    finally:
        over, _current = _current, None
        over.close()


def current() -> "Watch | None":
    """The watch of the stage that runs in this driver."""
    return _current


def current_stage() -> str | None:
    """The name of the stage that is watched; what `watched` and `watched_class` take."""
    return _current.stage if _current else None


def register_child(place: Place, *, is_told: bool = False) -> None:
    """Have a process watched that the driver has started itself; nothing where no stage is watched."""
    if _current is None:
        return
    leave_file(place, is_told=is_told)


class Stillness:
    """Judges by the clock whether a run makes no progress."""

    def __init__(self, now_s: float) -> None:
        self._moved_s = self._busy_s = now_s
        self._longest_s, self._num_changes, self._is_told = 0.0, 0, False

    def note(self, looks: Sequence[Look], num_changes: int, now_s: float) -> float | None:
        """How long there has been no progress, where that is to be told now; None where it is not, or was."""
        pause_s = now_s - self._moved_s
        if num_changes != self._num_changes or any(look.has_moved for look in looks):
            self._longest_s, self._num_changes, self._is_told = max(self._longest_s, pause_s), num_changes, False
            self._moved_s = self._busy_s = now_s
            return None
        if any(look.is_busy for look in looks):
            self._busy_s = now_s
        is_long = pause_s > _BUSY_S or now_s - self._busy_s > _IDLE_S
        if self._is_told or not is_long or pause_s <= _STILL_FACTOR * self._longest_s:
            return None
        self._is_told = True
        return pause_s


class Watch:
    """The driver's view of the watched processes of one stage, on all nodes.

    consumes: each node's sightings; waits for: a second to pass; is unblocked by: the clock; produces: warnings of what
    stands still and of deaths that nobody else tells, and the deaths for those who ask.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._deaths: list[Sighting] = []
        self._lock = threading.Lock()
        self._own = NodeWatch()
        self._nodes: dict[str, Any] = {}
        self._stillness = Stillness(time.monotonic())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="watch")
        self._thread.start()

    def death_of(
        self,
        *,
        role: str | None = None,
        index: int | None = None,
        pid: int | None = None,
        patience_s: float = 3.0,
        is_first: bool = False,
    ) -> Sighting | None:
        """The newest death that fits and was not asked for, or the first; None when none is seen within the time."""
        deadline = time.monotonic() + patience_s
        while True:
            self._look()
            with self._lock:
                for death in self._deaths if is_first else reversed(self._deaths):
                    place = death.place
                    if pid in (None, place.pid) and role in (None, place.role) and index in (None, place.index):
                        self._deaths.remove(death)
                        return death
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)

    def place_of(self, pid: int) -> Place | None:
        """Whose process it is or was; None when it was never watched."""
        self._look()
        return next((places[pid] for places in self._on_all(NodeWatch.places) if pid in places), None)

    def place_at(self, role: str, index: int) -> Place | None:
        """The newest process of a role and index; None when there was none."""
        self._look()
        found = [place for places in self._on_all(NodeWatch.places) for place in places.values()]
        return next((place for place in reversed(found) if (place.role, place.index) == (role, index)), None)

    def wait_for_end(self, role: str) -> None:
        """Return when no process of a role is at work any more."""
        while any(role in roles for roles in self._on_all(NodeWatch.roles_at_work)):
            time.sleep(0.1)
            self._look()

    def request_stop(self) -> None:
        """Ask all processes to come to a good end."""
        self._on_all(NodeWatch.request_stop)

    def dismiss(self, role: str | None = None, index: int | None = None) -> None:
        """Say that the processes of a role, or all, are about to be ended on purpose, and forget deaths of theirs."""
        with self._lock:
            self._deaths = [one for one in self._deaths if role not in (None, one.place.role)]
        self._on_all(NodeWatch.dismiss, role, index)

    def close(self) -> None:
        """End the watch."""
        import ray

        self._over.set()
        self._thread.join(10)
        self._on_all(NodeWatch.close)
        for node in self._nodes.values():
            ray.kill(node)

    def _follow(self) -> None:
        from ray.exceptions import RayError

        while not self._over.wait(_LOOK_S):
            try:
                self._meet_nodes()
                looks = self._look()
            except (RayError, OSError) as error:
                log.debug("a look at the processes failed: %s", error)  # the next one tries again
                continue
            self._tell_stillness(looks)

    def _meet_nodes(self) -> None:
        """Start a watch on every node that has come since the last look, and forget those that are gone."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        own = ray.get_runtime_context().get_node_id()
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {own}
        self._nodes = {name: watch for name, watch in self._nodes.items() if name in alive}
        for name in alive - self._nodes.keys():
            strategy = NodeAffinitySchedulingStrategy(name, soft=False)
            self._nodes[name] = ray.remote(NodeWatch).options(num_cpus=0, scheduling_strategy=strategy).remote()

    def _look(self) -> list[Look]:
        """What every node that answers has seen; deaths are kept, and what else is new is told."""
        import ray
        from ray.exceptions import RayError

        with self._lock:
            asked = [node.look.remote() for node in self._nodes.values()]
            answers = [self._own.look()]
            if asked:
                ready, _ = ray.wait(asked, num_returns=len(asked), timeout=5.0)
                for answer in ready:
                    with contextlib.suppress(RayError):  # the node is gone; Ray says so to whoever waits for its work
                        answers.append(ray.get(answer))
            sightings = [sighting for look in answers for sighting in look.sightings]
            self._deaths += [sighting for sighting in sightings if sighting.kind == DEAD]
        for sighting in sightings:
            self._tell(sighting)
        return answers

    def _tell(self, sighting: Sighting) -> None:
        if sighting.kind == DEAD and sighting.is_told:
            log.warning("%s", sentence(sighting.place, sighting.cause))
        elif sighting.kind == STOPPED:
            cause = "stands still: it was stopped by a signal (SIGSTOP); `kill -CONT` lets it go on"
            log.warning("%s", sentence(sighting.place, cause))
        elif sighting.kind == CONTINUED:
            log.info("%s goes on after its stop", sighting.place)

    def _tell_stillness(self, looks: Sequence[Look]) -> None:
        pause_s = self._stillness.note(looks, num_changes(), time.monotonic())
        if pause_s is not None:
            for place, stack in self._all_stacks():
                log.warning("%s has made no progress for %.0f s; it stands at:\n%s", place, pause_s, stack.strip())

    def _all_stacks(self) -> list[tuple[Place, str]]:
        found: list[tuple[Place, str]] = []
        for places, stacks in zip(self._on_all(NodeWatch.places), self._on_all(NodeWatch.stacks), strict=True):
            found += [(places[pid], stack) for pid, stack in stacks.items() if pid in places and stack]
        return found

    def _on_all(self, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The answers of every node's watch that answers to a method of `NodeWatch`."""
        import ray
        from ray.exceptions import RayError

        with self._lock:
            asked = [node.__ray_call__.remote(method, *arguments) for node in self._nodes.values()]
            answers = [method(self._own, *arguments)]
            for answer in asked:
                with contextlib.suppress(RayError):
                    answers.append(ray.get(answer, timeout=5.0))
        return answers
