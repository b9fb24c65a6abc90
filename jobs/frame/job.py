"""The frame that every stage stands on: what a stage, a job and an artifact are, and how one becomes the next.

    Stage (what can be done) + config + inputs = Job (what shall be done) -> Artifact (what was done)

A job's identity is a hash of what changes its result and of nothing else, so a job whose artifact stands is never
done again, and an artifact can name every byte that it came from.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from cluster.causes import original
from cluster.failures import WorkFailed, explain
from cluster.fingerprints import fingerprint, fingerprints
from cluster.footprint import Footprint, num_cores, processor
from cluster.placement import Execution, Placement
from cluster.progress import working
from cluster.room import waiting_for_room
from cluster.signals import Stopped
from cluster.storage import Storage, expand
from cluster.tracking import METRICS_LOG, Tracker
from cluster.wandb_mirror import mirrored
from cluster.watch import watching
from jobs.frame.config import changed_fields, from_plain, to_plain
from jobs.frame.precision import precisions_of, warn_of_emulation, with_precisions
from jobs.frame.user_code import beside, read_siblings
from jobs.frame.work import Work
from model.precision import ComputePrecision

RECORD = "artifact.json"
WORK = "work"
"""In an output: what its tasks leave for each other; removed at the end."""
BEFORE = "forgetting.json"
"""The record of an artifact whose files are being changed, for as long as it has no other."""
UNFINISHED = "unfinished.json"
"""In an output that is being made: the inputs that it is made from, and what `precision: auto` became."""
FORGOTTEN = "forgotten.jsonl"
"""In a store: the ids of documents that no artifact in it may hold, one a line."""
_LEASE = "lease.json"
_LEASE_BEAT_S = 5.0
_LEASE_STALE_S = 30.0
_LEASE_SETTLE_S = 0.5
_NOT_CONTENT = (RECORD, BEFORE, UNFINISHED, _LEASE, METRICS_LOG, f"{WORK}/", "checkpoints/", "wandb/", "logs/")
_VERSIONED = ("ray", "torch", "transformers", "pyarrow", "numpy")

log = logging.getLogger(__name__)


def input_artifact(*stages: str, default: Any = dataclasses.MISSING) -> Any:
    """A config field whose value is an artifact: a sibling stage's name, or the location of an artifact.

    Where a stage takes any Hugging Face folder as well, that folder's path will do. With `dict[str, str]` or
    `list[str]` as the field's type every value is an artifact.
    """
    return dataclasses.field(default=default, metadata={"stages": stages})


def source_files(default: Any = dataclasses.MISSING) -> Any:
    """A config field of file paths or globs whose content, not whose place, is part of the identity.

    A value such as `path/to/verifier.py:function` names a function in a file; the file is fingerprinted.
    """
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default, metadata={"source": True})
    return dataclasses.field(default=default, metadata={"source": True})


@dataclass(frozen=True)
class Artifact:
    """A whole, finished directory: its place and the record that was written last."""

    storage: Storage
    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.record["id"]

    @property
    def stage(self) -> str:
        return self.record["stage"]

    @property
    def summary(self) -> Mapping[str, Any]:
        """The counts and measures that the stage's `run` returned."""
        return self.record["summary"]

    @property
    def model(self) -> Storage:
        """The Hugging Face folder of a model artifact (a foreign folder is one itself)."""
        return self.storage if self.stage in (FOREIGN, FOREIGN_TOKENIZER) else self.storage / "model"


FOREIGN = "huggingface"
"""The stage name of a Hugging Face folder that came from elsewhere."""

FOREIGN_TOKENIZER = "tokenizer"
"""The stage name of a folder with a tokenizer and no model."""


@dataclass(frozen=True)
class Context:
    """What a run is given and is no part of its identity."""

    output: Storage
    inputs: Mapping[str, Artifact]
    """By config field; an entry of a dict or list field is `field.key`, such as `models.sft` or `models.0`."""
    tracker: Tracker
    forgotten: frozenset[str] = frozenset()
    """Ids of documents that must not be in the output (`raymill forget`)."""


@dataclass(frozen=True)
class Stage:
    """One stage of the road."""

    name: str
    version: int
    """Raised when the same config would now give another result."""
    config: type
    run: Callable[[Any, Context], Mapping[str, Any]]
    """May be entered again after a kill, with part of its output there."""
    check: Callable[[Any], None]
    """Raises ValueError for every mistake that the config shows by itself."""
    check_sources: Callable[[Any], None] = lambda config: None
    """The same for the source files, where they can be read: a missing column, a malformed record."""
    check_needs: "Callable[[Any, Needs], None]" = lambda config, needs: None
    """The same for what the configs up the road tell of the inputs, made or not: sizes that do not fit."""
    check_inputs: Callable[[Any, Mapping[str, Artifact]], None] = lambda config, inputs: None
    """The same once the inputs stand: a tokenizer of another model, too little text."""
    estimate: "Callable[[Any, Needs], Mapping[str, float]]" = lambda config, needs: {}
    """What `plan` prints: tokens, FLOP, memory; keys end in their unit. The needs may not be made yet."""
    work: "Callable[[Any, Needs], Work] | None" = None
    """What its work amounts to, for the forecast of its time, memory and disk. The needs may not be made yet."""
    forget: "Callable[[Any, Context, Artifact], Mapping[str, Any] | None] | None" = None
    """Make `context.output`, which the given artifact is, what a run would make of it now that more documents are
    forgotten; returns the summary, or None where nothing has to change. Calls `open_for_change` before it changes
    anything and after whatever can go wrong; without a record it is entered again after a kill."""
    groups: "Callable[[Any], Sequence[Mapping[str, Placement]]]" = lambda config: ()
    """Its groups of workers by name, in sets that run at the same time: the cluster must have room for each set."""


def match_sources(config: Any) -> dict[str, list[str]]:
    """The files that the config's source fields match, by path. Raises ValueError naming one that matches nothing."""
    found: dict[str, list[str]] = {}
    for path, value in _marked(config, "source"):
        try:
            found[path] = expand([file_of(value)])
            if file_of(value) != value:  # a program: what it imports from beside it is part of it
                siblings = read_siblings(file_of(value))
                found[path] += [url for name in siblings for url in expand([beside(file_of(value), name)])]
        except Exception as error:  # every file system has errors of its own: no key, no bucket, no archive
            raise ValueError(f"{path}: {error}") from error
    return found


@dataclass(frozen=True)
class Job:
    """A stage bound to its config and inputs. `needs` are jobs still to be done or artifacts that stand."""

    stage: Stage
    name: str
    config: Any
    needs: "Needs"

    @cached_property
    def id(self) -> str:
        """`<name>-<hash>`: equal wherever the same thing is made from the same bytes."""
        identity = {
            "stage": self.stage.name,
            "version": self.stage.version,
            "config": changed_fields(self.config),
            "sources": self.sources,
            "functions": self.functions,
            "inputs": {field: need.id for field, need in sorted(self.needs.items())},
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"

    @cached_property
    def sources(self) -> dict[str, list[str]]:
        """Fingerprints of the source files by config path, in the order of their paths."""
        return {path: fingerprints(urls, label=self.name) for path, urls in self.source_urls.items()}

    @property
    def functions(self) -> dict[str, str]:
        """`:function` of each program, `path/file.py:function`, by config path. Identity needs it beside the file's
        fingerprint, which does not tell which function it is."""
        named = {path: value[len(file_of(value)) :] for path, value in _marked(self.config, "source")}
        return {path: function for path, function in named.items() if function}

    @cached_property
    def source_urls(self) -> dict[str, list[str]]:
        """`match_sources` of the config."""
        try:
            return match_sources(self.config)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


Needs = Mapping[str, Job | Artifact]
"""By config field, as `Context.inputs`."""


def _marked(config: Any, mark: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, value) of every string under a field that carries `mark` in its metadata, nested dataclasses included."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        if mark in field.metadata:
            yield from ((at, text) for at, text in _strings(value, path))
        elif dataclasses.is_dataclass(value):
            yield from _marked(value, mark, f"{path}.")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from _marked(item, mark, f"{path}.{index}.")


def marked_inputs(config: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    """(config path, value, stages that may make it) of every input that is set."""
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for field in dataclasses.fields(config):
        if "stages" in field.metadata:
            strings = _strings(getattr(config, field.name), field.name)
            found += [(path, value, field.metadata["stages"]) for path, value in strings]
    return found


def marked_sources(config: Any) -> list[str]:
    """The value of every source field: a path, a glob, or `path/file.py:function`."""
    return [value for _, value in _marked(config, "source")]


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}.{index}")


def file_of(value: str) -> str:
    """`path/file.py:function`, which makes it a program, -> `path/file.py`; any other value is a path as it stands."""
    path, colon, name = value.rpartition(":")
    return path if colon and path.endswith(".py") and name.isidentifier() else value


def open_artifact(location: str | Storage) -> Artifact | None:
    """The artifact at a location; a foreign Hugging Face folder too; None where neither stands whole."""
    storage = location if isinstance(location, Storage) else Storage(location)
    if storage.exists(RECORD):
        return Artifact(storage, storage.read_json(RECORD))
    stage = _foreign_stage(storage)
    if stage is None:
        return None
    names = [name for name in storage.files() if "/" not in name and name.endswith((".json", ".safetensors", ".jinja"))]
    content = {name: fingerprint(f"{storage.url.rstrip('/')}/{name}") for name in names}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    record = {"id": f"{stage}-{digest[:12]}", "stage": stage, "inputs": {}, "summary": {}, "digest": digest}
    return Artifact(storage, record)


def _foreign_stage(storage: Storage) -> str | None:
    """What a folder from elsewhere holds: a model, a tokenizer alone, or nothing of use."""
    if storage.exists("config.json"):
        return FOREIGN if storage.glob("*.safetensors") else None
    return FOREIGN_TOKENIZER if storage.exists("tokenizer.json") else None


def run_job(job: Job, store: Storage, *, group: str) -> Artifact:
    """Do the job unless its artifact stands; needs must stand. Returns the artifact.

    Raises ValueError for what is wrong with config or inputs, before any worker starts.
    """
    output, inputs = store / job.id, inputs_of(job, store)
    for field, need in job.needs.items():
        if field not in inputs:
            raise ValueError(
                f"{job.name}: {field}: {need.id} does not stand in {store.url}; "
                f"run it first: raymill run {need.id.partition('-')[0]} <its config>, or the pipeline"
            )
    with working("checking the inputs"):
        job.stage.check_inputs(job.config, inputs)
    with lease(output) as require_lease:
        if artifact := open_artifact(output):
            return artifact  # another run made it while this one waited
        forgotten = read_forgotten(store)
        unfinished = _begin(output, inputs)
        tracker = Tracker(
            storage=output,
            run_id=f"{job.id}-{hashlib.sha256(store.url.encode()).hexdigest()[:6]}",
            name=job.name,
            group=group,
            config=to_plain(job.config),
        )
        with mirrored(tracker):
            with contextlib.closing(tracker):
                context = Context(output=output, inputs=inputs, tracker=tracker, forgotten=forgotten)
                record = _do(job, context, unfinished)
            # Before W&B has all of it, which may take half a minute in which a signal would cost the stage.
            require_lease()
            output.write_json(RECORD, record)
            output.remove(UNFINISHED)
    # Somebody may have forgotten more while this run was under way.
    if job.stage.forget is not None and read_forgotten(store) != forgotten:
        renew(job.stage, output, store)
    artifact = open_artifact(output)
    assert artifact is not None, f"{output.url} does not stand"
    return artifact


def _do(job: Job, context: Context, unfinished: Mapping[str, Any]) -> dict[str, Any]:
    """Run the stage, from where an earlier attempt has left it; what its record says."""
    output, inputs = context.output, context.inputs
    started, start_s = time.time(), time.monotonic()
    with waiting_for_room(_wait_s(job.config)), Footprint() as footprint, _watched(job.name):
        groups = job.stage.groups(job.config)
        precisions = precisions_of(job.config, groups, unfinished.get("precision", {}))
        warn_of_emulation(job.config, groups)
        output.write_json(UNFINISHED, {"inputs": inputs_record(inputs), "precision": precisions})
        config = with_precisions(job.config, precisions)
        summary = job.stage.run(config, context)
    wall_s = time.monotonic() - start_s  # not by a clock that may be set meanwhile
    measured = {
        "work": None if job.stage.work is None else to_plain(job.stage.work(config, inputs)),
        "resumed": "precision" in unfinished,
        **_measured(output, footprint),
    }
    times = {"started": round(started, 3), "wall_s": round(wall_s, 3)}
    return {**_record(job, inputs, output, summary), **times, "precision": precisions, "measured": measured}


def _wait_s(config: Any) -> float:
    """How long a stage of this config waits for room; one without execution settings takes none."""
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    return next((value.wait_s for value in values if isinstance(value, Execution)), 0.0)


@contextlib.contextmanager
def _watched(name: str) -> Iterator[None]:
    """Watch the processes of a stage, and tell what ends its work in a sentence that names process and cause.

    Raises ValueError for mistakes of the user, also for those found in a worker, WorkFailed for everything else.
    """
    with watching(name):
        try:
            yield
        except WorkFailed:
            raise
        except Exception as error:
            inner = original(error)
            if inner is error and isinstance(error, ValueError):
                raise
            if isinstance(inner, ValueError):  # a worker has found it; Ray's text would be its traceback
                raise ValueError(f"{name}: {inner}") from error
            raise explain(error, stage=name).error() from error
        except KeyboardInterrupt as stop:
            raise (stop if isinstance(stop, Stopped) else Stopped(f"{name} goes on from what is done of it")) from None


def renew(stage: Stage, output: Storage, store: Storage) -> bool:
    """Have a whole artifact, or one that a kill has left on its way, forget what its store must not hold.

    Whether anything had to change. Raises ValueError when an older version of the stage has made it.
    """
    assert stage.forget is not None
    changed = False
    with lease(output) as require_lease:
        while True:
            standing = output.exists(RECORD)
            record = output.read_json(RECORD if standing else BEFORE)
            if standing:
                output.remove(BEFORE)
            if record["stage_version"] != stage.version:
                raise ValueError(
                    f"{record['id']} was made by version {record['stage_version']} of {stage.name}, which cannot "
                    "forget; remove it, or make it again"
                )
            inputs = {
                field: open_artifact(store / need["id"]) or open_artifact(need["url"])
                for field, need in record["inputs"].items()
            }
            present = {field: artifact for field, artifact in inputs.items() if artifact is not None}
            tracker = Tracker(storage=output, run_id=f"{record['id']}-forget", name=record["name"], group="forget")
            context = Context(output=output, inputs=present, tracker=tracker, forgotten=read_forgotten(store))
            try:
                summary = stage.forget(from_plain(stage.config, record["config"]), context, Artifact(output, record))
            finally:
                tracker.close()
            if summary is None:
                return changed
            require_lease()
            more = {"summary": dict(summary), "inputs": record["inputs"] | inputs_record(present)}
            output.write_json(RECORD, record | more | {"digest": content_digest(output)})
            output.remove(BEFORE)
            output.remove(WORK)
            changed = True


def _begin(output: Storage, inputs: Mapping[str, Artifact]) -> Mapping[str, Any]:
    """What an earlier attempt wrote in UNFINISHED; empty where there was none, or none to go on from.

    What a killed run has left here is kept only if it came from these very inputs and is no artifact that was to
    forget something.
    An input that was rebuilt in place since (`raymill forget`) has other samples in another order, so a training that
    went on would skip some and repeat others, and what was made of the old one would still hold what is forgotten.
    """
    now = inputs_record(inputs)
    before = output.read_json(UNFINISHED) if output.exists(UNFINISHED) else {"inputs": now}
    # Where they stand is no matter: a store may have moved.
    is_other = _digests(before["inputs"]) != _digests(now)
    if is_other or output.exists(BEFORE):
        log.info("%s: it, or an input, has changed since this was begun; it begins anew", output.url)
        clear_output(output)
        return {}
    return before


def recorded_precisions(output: Storage) -> Mapping[str, ComputePrecision]:
    """What `precision: auto` became for an artifact, finished or begun; empty for one that is neither."""
    record = next((name for name in (RECORD, UNFINISHED) if output.exists(name)), None)
    return output.read_json(record).get("precision", {}) if record else {}


def _digests(inputs: Mapping[str, Any]) -> dict[str, str]:
    return {field: need["digest"] for field, need in inputs.items()}


def clear_output(output: Storage) -> None:
    """Remove all that an unfinished output holds but for the lease on it."""
    for name in dict.fromkeys(name.partition("/")[0] for name in output.files()):
        if name != _LEASE:
            output.remove(name)


def open_for_change(artifact: Artifact) -> None:
    """Take an artifact's record away for as long as its files change, so that nobody takes it for whole."""
    artifact.storage.write_json(BEFORE, dict(artifact.record))
    artifact.storage.remove(RECORD)


def read_forgotten(store: Storage) -> frozenset[str]:
    """Ids of the documents that a store must not hold."""
    return frozenset(store.read_jsonl(FORGOTTEN)) if store.exists(FORGOTTEN) else frozenset()


def inputs_of(job: Job, store: Storage) -> dict[str, Artifact]:
    """The job's inputs that stand, by config field."""
    found = {
        field: need if isinstance(need, Artifact) else open_artifact(store / need.id)
        for field, need in job.needs.items()
    }
    return {field: artifact for field, artifact in found.items() if artifact is not None}


def _record(job: Job, inputs: Mapping[str, Artifact], output: Storage, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "stage": job.stage.name,
        "stage_version": job.stage.version,
        "config": to_plain(job.config),
        "sources": {
            path: dict(zip(job.source_urls[path], prints, strict=True)) for path, prints in job.sources.items()
        },
        "inputs": inputs_record(inputs),
        "summary": dict(summary),
        "digest": content_digest(output),
        "code_digest": code_digest(),
        "versions": {name: package_version(name) for name in _VERSIONED} | {"python": platform.python_version()},
    }


def _measured(output: Storage, footprint: Footprint) -> dict[str, Any]:
    """What the run took of this machine; with the work that it was for, `forecast.py` tells of later ones from it."""
    return {
        "machine": {"processor": processor(), "cores": num_cores()},
        "cpu_s": footprint.cpu_s,
        "peak_memory_gib": None if footprint.peak_bytes is None else round(footprint.peak_bytes / 2**30, 3),
        "disk_gib": round(output.num_bytes() / 2**30, 6),
    }


def inputs_record(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """What a record says of the inputs, by config field."""
    return {
        field: {"id": artifact.id, "digest": artifact.record["digest"], "url": artifact.storage.url}
        for field, artifact in inputs.items()
    }


def content_digest(storage: Storage) -> str:
    """One hash over the names and bytes of everything in an artifact that is its result (no logs, no checkpoints)."""
    digest = hashlib.sha256()
    for name in storage.files():
        if not name.startswith(_NOT_CONTENT):
            content = hashlib.sha256()
            with working(f"hashing {name}"), storage.open(name, read_ahead=True) as file:
                while block := file.read(1 << 22):
                    content.update(block)
            digest.update(f"{name}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def code_digest() -> str:
    """A hash over Raymill's own sources, to tell afterwards which code made an artifact."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in ("actors", "cluster", "data", "jobs", "model"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


SUBMITTED_VERSION = "RAYMILL_SUBMITTED_VERSION"
"""The variable in which a job finds the version of Raymill that submitted it."""
_SUBMITTED_CODE = "RAYMILL_SUBMITTED_CODE"


def code_variables(*, with_digest: bool = True) -> dict[str, str]:
    """The variables by which `require_same_code` knows, in a job, the Raymill that has submitted it.

    With the digest of its sources for a job that is sent at once. A manifest is a file that is kept, and its image is
    built from any checkout of the version, so there the version alone must agree.
    """
    digest = {_SUBMITTED_CODE: code_digest()} if with_digest else {}
    return {SUBMITTED_VERSION: package_version("raymill"), **digest}


def require_same_code() -> None:
    """Raises ValueError when this process was submitted by another Raymill than it runs."""
    theirs, ours = os.environ.get(SUBMITTED_VERSION), package_version("raymill")
    code, own_code = os.environ.get(_SUBMITTED_CODE), code_digest()
    if theirs and theirs != ours:
        raise ValueError(
            f"submitted by raymill {theirs}, but the cluster runs {ours}; install the same version on both"
        )
    if code and code != own_code:
        raise ValueError(
            f"submitted by raymill {theirs} with sources {code[:12]}, but the cluster's raymill {ours} has sources "
            f"{own_code[:12]}; install the same sources on both"
        )


@contextlib.contextmanager
def lease(output: Storage) -> Iterator[Callable[[], None]]:
    """Hold the only right to write an artifact; wait while another living run holds it.

    What it yields raises RuntimeError when the right was lost meanwhile; to be called before the artifact is declared.

    A lease is a small file that its holder renews. It is taken over at once when the holder was a process of this
    machine that is gone, and after `_LEASE_STALE_S` without renewal otherwise, so a killed run blocks nobody for long.
    """
    holder = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}:{time.time_ns()}"
    if not _take_lease(output, holder):
        other = _holder(output)
        log.info("waiting: another run%s is making %s", other, output.url)
        with working(f"waiting for another run{other}, which is making {output.url}"):
            while not _take_lease(output, holder):
                time.sleep(1.0)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_LEASE_BEAT_S):
            with contextlib.suppress(OSError):  # a store that fails for a while; the next beat tries again
                if not _holds(output, holder):
                    return
                output.write_bytes(_LEASE, _lease_of(holder))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield partial(_require_lease, output, holder)
    finally:
        stop.set()
        thread.join()
        if _holds(output, holder):
            output.remove(_LEASE)


def _require_lease(output: Storage, holder: str) -> None:
    """Raise RuntimeError when another run has taken the lease over, so that only one says what the artifact is."""
    if not _holds(output, holder):
        raise RuntimeError(
            f"this run stood still for more than {_LEASE_STALE_S:.0f} s and another one has taken {output.url} over; "
            "wait for that one"
        )


def _holds(output: Storage, holder: str) -> bool:
    try:
        return output.read_json(_LEASE)["holder"] == holder
    except FileNotFoundError:
        return False


def _holder(output: Storage) -> str:
    """` (pid 17 on node-1)`: who holds the lease, for a reader; empty when it is free by now."""
    try:
        lease = output.read_json(_LEASE)
    except FileNotFoundError:
        return ""
    return f" (pid {lease['pid']} on {lease['host']})"


def _take_lease(output: Storage, holder: str) -> bool:
    """Whether `holder` now holds the lease: it was free, or its holder is gone."""
    if output.create_bytes(_LEASE, _lease_of(holder)):
        return True
    try:
        lease = output.read_json(_LEASE)
        if not _abandoned(lease):
            return False
        output.write_bytes(_LEASE, _lease_of(holder))
        time.sleep(_LEASE_SETTLE_S)  # of several that take it over at once the last writer has it
        return output.read_json(_LEASE)["holder"] == holder
    except FileNotFoundError:  # released or taken over between two looks
        return False


def _lease_of(holder: str) -> bytes:
    lease = {"holder": holder, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    return json.dumps(lease).encode()


def _abandoned(lease: Mapping[str, Any]) -> bool:
    if time.time() - lease["time"] > _LEASE_STALE_S:
        return True
    return lease["host"] == socket.gethostname() and not _process_lives(lease["pid"])


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
