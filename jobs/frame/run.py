"""Running a job: from what an earlier attempt left to a whole artifact."""

import contextlib
import dataclasses
import hashlib
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
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
    input_records,
    open_artifact,
    read_forgotten,
    read_record,
    read_unfinished,
    write_record,
)
from jobs.frame.precision import precisions_of, warn_of_emulation, with_precisions
from jobs.frame.record import Hardware, InputRecord, Measured, Record, Unfinished
from jobs.frame.same_code import code_digest
from jobs.frame.stage import Context, Job, Stage, inputs_of

_VERSIONED = ("ray", "torch", "transformers", "pyarrow", "numpy")
log = logging.getLogger(__name__)


def run_job(job: Job, store: Storage, *, group: str) -> Artifact:
    """Do the job unless its artifact is in the store, where its inputs must be. Returns the artifact.

    Raises ValueError for what is wrong with config or inputs, before any worker starts.
    """
    output, inputs = store / job.id, inputs_of(job, store)
    for path, need in job.needs.items():
        if path not in inputs:
            raise ValueError(
                f"{job.name}: {path}: {need.id} is not in {store.url}; "
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
            write_record(output, record)
            output.remove(UNFINISHED)
    # More documents may have been forgotten during the run.
    if job.stage.forget is not None and read_forgotten(store) != forgotten:
        renew(job.stage, output, store)
    artifact = open_artifact(output)
    assert artifact is not None, f"{output.url} is not whole"
    return artifact


def _do(job: Job, context: Context, unfinished: Unfinished | None) -> Record:
    """Run the stage, from where an earlier attempt left it. Returns the record of the artifact."""
    output, inputs = context.output, context.inputs
    started, start_s = time.time(), time.monotonic()
    with capacity_wait_limit(_wait_s(job.config)), ResourceUsage() as usage, _explaining_failures(job.name):
        groups = job.stage.groups(job.config)
        precisions = precisions_of(job.config, groups, unfinished.precision if unfinished else {})
        warn_of_emulation(job.config, groups)
        begun = Unfinished(inputs=input_records(inputs), precision=precisions)
        output.write_json(UNFINISHED, to_plain(begun))
        config = with_precisions(job.config, precisions)
        summary = job.stage.run(config, context)
    return Record(
        id=job.id,
        name=job.name,
        stage=job.stage.name,
        kind=job.stage.kind,
        stage_version=job.stage.version,
        config=to_plain(job.config),
        sources={path: dict(zip(job.source_urls[path], prints, strict=True)) for path, prints in job.sources.items()},
        inputs=input_records(inputs),
        summary=to_plain(summary),
        digest=content_digest(output),
        code_digest=code_digest(),
        versions={name: package_version(name) for name in _VERSIONED} | {"python": platform.python_version()},
        started=round(started, 3),
        wall_s=round(time.monotonic() - start_s, 3),  # not by a clock that may be set meanwhile
        precision=precisions,
        measured=Measured(
            work=None if job.stage.work is None else to_plain(job.stage.work(config, inputs)),
            resumed=unfinished is not None,
            machine=Hardware(processor=processor(), cores=num_cores()),
            cpu_s=usage.cpu_s,
            peak_memory_gib=None if usage.peak_bytes is None else round(usage.peak_bytes / 2**30, 3),
            disk_gib=round(output.num_bytes() / 2**30, 6),
        ),
    )


def _wait_s(config: Any) -> float:
    """How long a stage of this config waits until the cluster is large enough."""
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    return next((value.wait_s for value in values if isinstance(value, Execution)), 0.0)


@contextlib.contextmanager
def _explaining_failures(name: str) -> Iterator[None]:
    """Watch the processes of a stage, and say of a failure which process failed and why.

    Raises ValueError for mistakes of the user, also those that a worker found, and WorkFailed for everything else.
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
            if isinstance(inner, ValueError):  # found by a worker; the text of Ray's error is a traceback
                raise ValueError(f"{name}: {inner}") from error
            raise explain(error, stage=name).error() from error
        except KeyboardInterrupt as stop:
            raise (
                stop if isinstance(stop, StoppedBySignal) else StoppedBySignal(f"{name} resumes from what is done")
            ) from None


def renew(stage: Stage, output: Storage, store: Storage) -> bool:
    """Remove what its store has forgotten from an artifact, whole or half-changed by a kill.

    Returns whether anything changed. Raises ValueError when an older version of the stage made it.
    """
    changed = False
    with hold_lease(output) as require_lease:
        while _renew_once(stage, output, store, require_lease):
            changed = True  # and documents may have been forgotten meanwhile
    return changed


def _renew_once(stage: Stage, output: Storage, store: Storage, require_lease: Callable[[], None]) -> bool:
    assert stage.forget is not None
    is_whole = output.exists(RECORD)
    record = read_record(output, RECORD if is_whole else BEFORE)
    if is_whole:
        output.remove(BEFORE)
    if record.stage_version != stage.version:
        raise ValueError(
            f"{record.id} was made by version {record.stage_version} of {stage.name}, which cannot forget; "
            "remove it, or make it again"
        )
    inputs = {
        path: artifact
        for path, need in record.inputs.items()
        if (artifact := open_artifact(store / need.id) or open_artifact(need.url))
    }
    tracker = Tracker(storage=output, run_id=f"{record.id}-forget", name=record.name, group="forget")
    with contextlib.closing(tracker):
        context = Context(output=output, inputs=inputs, tracker=tracker, forgotten=read_forgotten(store))
        summary = stage.forget(from_plain(stage.config, record.config), context, Artifact(output, record))
    if summary is None:
        return False
    require_lease()
    changed_inputs = {**record.inputs, **input_records(inputs)}
    digest = content_digest(output)
    write_record(output, replace(record, summary=to_plain(summary), inputs=changed_inputs, digest=digest))
    output.remove(BEFORE)
    output.remove(WORK)
    return True


def _begin(output: Storage, inputs: Mapping[str, Artifact]) -> Unfinished | None:
    """What an earlier attempt left to continue from; None where there was none, or its files are of no use.

    They are kept only if they came from these very inputs and are no artifact in which something was to be forgotten.
    An input that was changed in place since (`raymill forget`) has other samples in another order: a training would
    skip some and repeat others, and what was made of the old input would still hold what is forgotten.
    """
    unfinished = read_unfinished(output)
    # Where the inputs are does not matter: a store may have been moved.
    is_other = unfinished is not None and _digests(unfinished.inputs) != _digests(input_records(inputs))
    if is_other or output.exists(BEFORE):
        log.info("%s: begun anew, because it or an input has changed since an earlier attempt", output.url)
        clear_output(output)
        return None
    return unfinished


def _digests(inputs: Mapping[str, InputRecord]) -> dict[str, str]:
    return {path: need.digest for path, need in inputs.items()}
