"""Who of a run's processes is gone or stands still, on every node, and why.

Each process of ours leaves a small file in a folder of its node when it starts (`watched`) and takes it away when it
ends well. A `NodeWatch` on each node looks at these processes; the driver asks all of them once a second. What the
kernel does not tell any more of a process that is gone (its control group's kills, its peak of memory, what its log
says) has then been seen while it lived.
"""

import contextlib
import faulthandler
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil

from cluster.causes import Place, fatal_signal, killed_by, sentence
from cluster.memory import GroupMemory, gib, group_of, peak_of, read_group
from cluster.progress import num_changes

_LOOK_S = 1.0
_STOPPED_S = 6.0
"""How long a process may be stopped by a signal before it is told."""
_IDLE_S, _BUSY_S = 180.0, 1800.0
"""How long a run may make no progress before it is told: while its processes sleep, and while they compute."""
_STILL_FACTOR = 10.0
"""And at least so many times its longest pause so far, so that a busy machine raises no alarm."""
_ASLEEP = 0.02
"""Processes that take less than this share of one core are asleep."""
_BEAT_S = 1.0
_STACK_SIGNAL = signal.SIGUSR2
_TAIL_BYTES = 16 << 10
_STOP = "stop"
_DEAD, _STOPPED, _CONTINUED = "dead", "stopped", "continued"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting:
    """What a node's watch has seen of a process."""

    place: Place
    kind: str
    """`dead`, `stopped` or `continued`."""
    cause: str = ""
    """Of a death: what is to be said of it, from what the node knows."""
    is_certain: bool = True
    """False where SIGKILL is said because nothing else is known; Ray may know better."""
    log_tail: str = ""
    is_told: bool = False
    """Whether nobody but the watch will say that it died: Ray does the work of such a process again by itself."""


# In the processes that are watched.


class _Post:
    """This process's file in its node's folder."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.beat_s = 0.0
        self.stack: IO[str] | None = None


_post = _Post()


@contextlib.contextmanager
def watched(stage: str | None, role: str, index: int, *, is_told: bool = False) -> Iterator[None]:
    """Have this process watched for the length of the block; without a stage, nothing."""
    if stage is None:
        yield
        return
    file = register(stage, role, index, is_told=is_told)
    try:
        yield
    except BaseException:  # it is told by whoever gets it; the file stays, to say whose it was
        with contextlib.suppress(OSError):
            _write(file, json.dumps({**json.loads(file.read_text()), "has_raised": True}))
        raise
    with contextlib.suppress(OSError):
        file.unlink()


def register(stage: str, role: str, index: int, *, is_told: bool = False) -> Path:
    """Have this process watched from now on, until the file that is returned is gone or the process is."""
    folder = _node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    pid = os.getpid()
    if not (folder / f"{pid}.stack").exists():
        # By signal, for a thread that stands still in a call never comes to answer any other way.
        _post.stack = (folder / f"{pid}.stack").open("w")
        faulthandler.register(_STACK_SIGNAL, file=_post.stack, all_threads=True)
    error_log = os.readlink("/proc/self/fd/2") if os.path.exists("/proc/self/fd/2") else ""
    error_log = error_log if error_log.startswith("/") and os.path.isfile(error_log) else ""
    place = Place(stage=stage, role=role, index=index, node=socket.gethostname(), pid=pid, log=error_log)
    file = folder / f"{pid}.json"
    _write(file, _described(place, is_told, log_from=os.path.getsize(error_log) if error_log else 0))
    _post.folder = folder
    return file


def register_child(place: Place, *, is_told: bool = False) -> None:
    """Have a process watched that the driver has started itself; nothing where no stage is watched."""
    if _current is None:
        return
    folder = _node_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    _write(folder / f"{place.pid}.json", _described(place, is_told, log_from=0))


def beat(step: int) -> None:
    """Say that this process has come to a step. Cheap: written at most once a second."""
    now = time.monotonic()
    if _post.folder is not None and now - _post.beat_s > _BEAT_S:
        _post.beat_s = now
        with contextlib.suppress(OSError):  # the watch is over, or the disk is full: not this process's trouble
            _write(_post.folder / f"{os.getpid()}.beat", str(step))


def stop_requested() -> bool:
    """Whether the driver has been told to end and asks this process to come to a good end."""
    return _post.folder is not None and (_post.folder / _STOP).exists()


def watched_class(cls: type, stage: str | None, role: str, index: int, *, is_told: bool = False) -> type:
    """The class, for an actor that is watched for as long as it lives."""
    if stage is None:
        return cls

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        register(stage, role, index, is_told=is_told)
        cls.__init__(self, *arguments, **named)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__doc__": cls.__doc__, "__module__": cls.__module__})


def _node_folder() -> Path:
    """The folder of this job on this node; Ray's node id tells several nodes on one machine apart."""
    import ray  # late, as below: `plan` need not wait for it

    here = ray.get_runtime_context()
    return Path(tempfile.gettempdir()) / f"raymill-watch-{here.get_node_id()[:20]}-{here.get_job_id()}"


def _described(place: Place, is_told: bool, *, log_from: int) -> str:
    return json.dumps({"place": asdict(place), "is_told": is_told, "log_from": log_from, "has_raised": False})


def _write(path: Path, text: str) -> None:
    half = path.with_suffix(f"{path.suffix}.tmp")
    half.write_text(text)
    half.replace(path)


# On each node.


@dataclass
class _Seen:
    """What is known of a process while it lives."""

    place: Place
    is_told: bool
    log_from: int
    process: psutil.Process | None
    """None when it was gone before it was first looked at."""
    groups: dict[str, int] = field(default_factory=dict)
    """By folder of a memory control group that it has been in: the kills that were counted when it was first seen."""
    peak: int = 0
    stopped_s: float | None = None
    """Since when it is stopped."""
    is_stop_told: bool = False


class Look(NamedTuple):
    """What a node's watch has seen since its last look."""

    sightings: list[Sighting]
    has_moved: bool
    """Whether a process has come to another step, begun or ended."""
    is_busy: bool
    """Whether the processes compute."""


class NodeWatch:
    """Looks at the watched processes of its node; a plain class, in the driver for its own node, an actor elsewhere."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where the processes leave their files; None for this job's own on this node."""
        self.folder = folder or _node_folder()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._seen: dict[int, _Seen] = {}
        self._places: dict[int, Place] = {}
        self._moves: tuple[Any, ...] = ()
        self._cpu_s, self._looked_s = 0.0, time.monotonic()

    def look(self) -> Look:
        """What is new since the last look."""
        self._find_new()
        sightings = [found for pid in list(self._seen) if (found := self._look_at(pid))]
        beats = sorted((path.name, path.stat().st_mtime) for path in self.folder.glob("*.beat"))
        moves = (tuple(sorted(self._seen)), tuple(beats))
        has_moved, self._moves = moves != self._moves, moves
        cpu_s, now = sum(map(_cpu_s, self._seen.values())), time.monotonic()
        is_busy = cpu_s - self._cpu_s > _ASLEEP * (now - self._looked_s)
        self._cpu_s, self._looked_s = cpu_s, now
        return Look(sightings, has_moved, is_busy)

    def request_stop(self) -> None:
        """Ask the processes to come to a good end (`stop_requested`)."""
        (self.folder / _STOP).touch()

    def stacks(self) -> dict[int, str]:
        """The Python stacks of all watched processes, by process id; one that is stopped by a signal has none."""
        asked = {pid: seen for pid, seen in self._seen.items() if (self.folder / f"{pid}.stack").exists()}
        sizes = {pid: (self.folder / f"{pid}.stack").stat().st_size for pid in asked}
        for pid in asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, _STACK_SIGNAL)
        time.sleep(0.5)  # the handler runs at once in a process that runs at all
        return {pid: (self.folder / f"{pid}.stack").read_text()[sizes[pid] :] for pid in asked}

    def places(self) -> dict[int, Place]:
        """Who is or was watched, by process id."""
        return self._places

    def roles_at_work(self) -> list[str]:
        """The role of each process that is watched now."""
        return [seen.place.role for seen in self._seen.values()]

    def dismiss(self, role: str | None = None, index: int | None = None) -> None:
        """Forget the processes of a role, or all of them: what ends them now is meant to."""
        self._find_new()
        for pid, seen in list(self._seen.items()):
            if role in (None, seen.place.role) and index in (None, seen.place.index):
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
                said = json.loads(file.read_text())
            except FileNotFoundError:
                continue  # it ended well between two calls
            self._places[pid] = place = Place(**said["place"])
            process = None
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
            self._seen[pid] = _Seen(place, said["is_told"], said["log_from"], process)

    def _look_at(self, pid: int) -> Sighting | None:
        seen, file = self._seen[pid], self.folder / f"{pid}.json"
        try:
            has_raised = json.loads(file.read_text())["has_raised"]
        except FileNotFoundError:
            del self._seen[pid]
            return None
        if has_raised or not _lives(seen.process):
            del self._seen[pid]
            file.unlink(missing_ok=True)
            return None if has_raised else self._death(seen)
        seen.peak = max(seen.peak, peak_of(pid))
        if (group := group_of(pid)) and str(group) not in seen.groups and (memory := read_group(group)):
            seen.groups[str(group)] = memory.kills
        return self._stopped(seen)

    def _stopped(self, seen: _Seen) -> Sighting | None:
        assert seen.process is not None, "it lives"
        try:
            is_stopped = seen.process.status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return None  # the next look says it
        if not is_stopped:
            was_told, seen.stopped_s, seen.is_stop_told = seen.is_stop_told, None, False
            return Sighting(seen.place, _CONTINUED) if was_told else None
        seen.stopped_s = seen.stopped_s or time.monotonic()
        if seen.is_stop_told or time.monotonic() - seen.stopped_s < _STOPPED_S:
            return None
        seen.is_stop_told = True
        return Sighting(seen.place, _STOPPED)

    def _death(self, seen: _Seen) -> Sighting:
        tail = _tail(seen.place.log, seen.log_from)
        killers = [
            memory
            for folder, kills in seen.groups.items()
            if (memory := read_group(Path(folder))) and memory.kills > kills
        ]
        if killers:
            # Another process of the group may die of the next one; this kill is accounted for.
            for other in self._seen.values():
                other.groups.update({memory.path: memory.kills for memory in killers if memory.path in other.groups})
            return Sighting(
                seen.place, _DEAD, out_of_memory(killers[0], seen.peak), log_tail=tail, is_told=seen.is_told
            )
        if cause := fatal_signal(tail):
            return Sighting(seen.place, _DEAD, cause, log_tail=tail, is_told=seen.is_told)
        cause = killed_by(signal.SIGKILL)
        return Sighting(seen.place, _DEAD, cause, is_certain=False, log_tail=tail, is_told=seen.is_told)


def out_of_memory(group: GroupMemory, peak: int) -> str:
    """What is said of a process that the kernel killed for want of memory."""
    limit = f"limit {gib(group.limit)}" if group.limit else "no limit of its own"
    group_peak = f", its peak {gib(group.peak)}" if group.peak else ""
    own = f"; this process's peak was {gib(peak)}" if peak > 0 else ""
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


# In the driver.

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
            self._deaths += [sighting for sighting in sightings if sighting.kind == _DEAD]
        for sighting in sightings:
            self._tell(sighting)
        return answers

    def _tell(self, sighting: Sighting) -> None:
        if sighting.kind == _DEAD and sighting.is_told:
            log.warning("%s", sentence(sighting.place, sighting.cause))
        elif sighting.kind == _STOPPED:
            cause = "stands still: it was stopped by a signal (SIGSTOP); `kill -CONT` lets it go on"
            log.warning("%s", sentence(sighting.place, cause))
        elif sighting.kind == _CONTINUED:
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
