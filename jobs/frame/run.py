"""Running a job: from where an earlier attempt left it to an artifact that is whole."""

import contextlib
import dataclasses
import hashlib
import logging
import platform
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version as package_version
from typing import Any

from cluster.capacity import capacity_wait_limit
from cluster.failures import WorkFailed, explain
from cluster.lease import hold_lease
from cluster.machine import num_cores, processor
from cluster.placement import Execution
from cluster.plain import from_plain, to_plain
from cluster.progress import working
from cluster.resource_usage import ResourceUsage
from cluster.signals import StoppedBySignal
from cluster.stage_monitor import monitoring
from cluster.storage import Storage
from cluster.tracking import Tracker
from cluster.wandb_mirror import mirrored
from cluster.worker_errors import original_error
from jobs.frame.artifact import (
    BEFORE,
    RECORD,
    UNFINISHED,
    WORK,
    Artifact,
    clear_output,
    content_digest,
    inputs_record,
    open_artifact,
    read_forgotten,
)
from jobs.frame.precision import precisions_of, warn_of_emulation, with_precisions
from jobs.frame.same_code import code_digest
from jobs.frame.stage import Context, Job, Stage, inputs_of

_VERSIONED = ("ray", "torch", "transformers", "pyarrow", "numpy")
log = logging.getLogger(__name__)


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
    with hold_lease(output) as require_lease:
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
    with capacity_wait_limit(_wait_s(job.config)), ResourceUsage() as footprint, _watched(job.name):
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
    with monitoring(name):
        try:
            yield
        except WorkFailed:
            raise
        except Exception as error:
            inner = original_error(error)
            if inner is error and isinstance(error, ValueError):
                raise
            if isinstance(inner, ValueError):  # a worker has found it; Ray's text would be its traceback
                raise ValueError(f"{name}: {inner}") from error
            raise explain(error, stage=name).error() from error
        except KeyboardInterrupt as stop:
            raise (
                stop
                if isinstance(stop, StoppedBySignal)
                else StoppedBySignal(f"{name} goes on from what is done of it")
            ) from None


def renew(stage: Stage, output: Storage, store: Storage) -> bool:
    """Have a whole artifact, or one that a kill has left on its way, forget what its store must not hold.

    Whether anything had to change. Raises ValueError when an older version of the stage has made it.
    """
    assert stage.forget is not None
    changed = False
    with hold_lease(output) as require_lease:
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
            more = {"summary": to_plain(summary), "inputs": record["inputs"] | inputs_record(present)}
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


def _digests(inputs: Mapping[str, Any]) -> dict[str, str]:
    return {field: need["digest"] for field, need in inputs.items()}


def _record(job: Job, inputs: Mapping[str, Artifact], output: Storage, summary: object) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "stage": job.stage.name,
        "kind": job.stage.kind,
        "stage_version": job.stage.version,
        "config": to_plain(job.config),
        "sources": {
            path: dict(zip(job.source_urls[path], prints, strict=True)) for path, prints in job.sources.items()
        },
        "inputs": inputs_record(inputs),
        "summary": to_plain(summary),
        "digest": content_digest(output),
        "code_digest": code_digest(),
        "versions": {name: package_version(name) for name in _VERSIONED} | {"python": platform.python_version()},
    }


def _measured(output: Storage, footprint: ResourceUsage) -> dict[str, Any]:
    """What the run took of this machine; with the work that it was for, `forecast.py` tells of later ones from it."""
    return {
        "machine": {"processor": processor(), "cores": num_cores()},
        "cpu_s": footprint.cpu_s,
        "peak_memory_gib": None if footprint.peak_bytes is None else round(footprint.peak_bytes / 2**30, 3),
        "disk_gib": round(output.num_bytes() / 2**30, 6),
    }
