"""Running a job until its artifact is finished, from the beginning or from what an earlier attempt has written."""

import contextlib
import hashlib
import logging
import platform
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version as package_version

from cluster.capacity import capacity_wait_limit
from cluster.failures import JobFailed, explain
from cluster.lease import hold_lease
from cluster.machine import num_cores, processor_name
from cluster.plain import to_plain
from cluster.progress import working
from cluster.resource_usage import ResourceUsage
from cluster.signals import StoppedBySignal
from cluster.stage_monitor import monitor_stage
from cluster.storage import Storage
from cluster.tracking import Tracker
from cluster.wandb_mirror import mirror_to_wandb
from cluster.worker_errors import original_error
from jobs.frame.artifact import (
    BACKUP,
    UNFINISHED,
    Artifact,
    clear_output,
    content_digest,
    input_records,
    open_artifact,
    read_unfinished,
    write_record,
)
from jobs.frame.config import find_execution
from jobs.frame.forgetting import read_forgotten, remove_forgotten
from jobs.frame.job import Job, finished_inputs
from jobs.frame.precision import resolve_precisions, warn_if_bfloat16_is_emulated, with_precisions
from jobs.frame.record import Hardware, InputRecord, Measured, Record, Unfinished
from jobs.frame.same_code import code_digest
from jobs.frame.stage import Context

_VERSIONED = ("ray", "torch", "transformers", "pyarrow", "numpy")
"""Libraries whose versions are recorded."""

log = logging.getLogger(__name__)


def run_job(job: Job, store: Storage, *, group: str) -> Artifact:
    """The artifact of the job, which runs unless the store holds it already. The store must hold the job's inputs.

    Raises ValueError for mistakes in the config or the inputs, before any worker starts. `group` is W&B's name for
    the runs of one pipeline.
    """
    output, inputs = store / job.id, finished_inputs(job, store)
    for path, need in job.planned.items():
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
        with mirror_to_wandb(tracker):
            with contextlib.closing(tracker):
                context = Context(output=output, inputs=inputs, tracker=tracker, forgotten=forgotten)
                record = _run(job, context, unfinished)
            # Before the upload to W&B ends: it may take half a minute, in which a signal must not cost the stage.
            require_lease()
            write_record(output, record)
            output.remove(UNFINISHED)
    # More documents may have been forgotten during the run.
    if job.stage.forget is not None and read_forgotten(store) != forgotten:
        remove_forgotten(job.stage, output, store)
    artifact = open_artifact(output)
    assert artifact is not None, f"{output.url} is not finished"
    return artifact


def _run(job: Job, context: Context, unfinished: Unfinished | None) -> Record:
    """Run the stage, resuming from an unfinished attempt if there is one. Returns the record of the artifact."""
    output, inputs = context.output, context.inputs
    started, start_s = time.time(), time.monotonic()
    execution = find_execution(job.config)
    with (
        capacity_wait_limit(execution.wait_s if execution else 0.0),
        ResourceUsage() as usage,
        _explaining_failures(job.name),
    ):
        groups = job.stage.placements(job.config)
        precisions = resolve_precisions(job.config, groups, unfinished.precision if unfinished else {})
        warn_if_bfloat16_is_emulated(job.config, groups)
        output.write_json(UNFINISHED, to_plain(Unfinished(inputs=input_records(inputs), precision=precisions)))
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
        wall_s=round(time.monotonic() - start_s, 3),  # monotonic: the clock of `started` may be set meanwhile
        precision=precisions,
        measured=Measured(
            workload=None if job.stage.workload is None else to_plain(job.stage.workload(config, inputs)),
            resumed=unfinished is not None,
            machine=Hardware(processor=processor_name(), cores=num_cores()),
            cpu_s=usage.cpu_s,
            peak_memory_gib=None if usage.peak_bytes is None else round(usage.peak_bytes / 2**30, 3),
            disk_gib=round(output.num_bytes() / 2**30, 6),
        ),
    )


@contextlib.contextmanager
def _explaining_failures(name: str) -> Iterator[None]:
    """Watch the processes of a stage; an error then says which process failed and why.

    Raises ValueError for mistakes of the user, those found by a worker included, and WorkFailed for everything else.
    """
    with monitor_stage(name):
        try:
            yield
        except JobFailed:
            raise
        except Exception as error:
            inner = original_error(error)
            if inner is error and isinstance(error, ValueError):
                raise
            if isinstance(inner, ValueError):  # found by a worker; the text of Ray's error is a traceback
                raise ValueError(f"{name}: {inner}") from error
            raise explain(error, stage=name).to_error() from error
        except KeyboardInterrupt as stop:
            raise (
                stop if isinstance(stop, StoppedBySignal) else StoppedBySignal(f"{name} resumes from what is done")
            ) from None


def _begin(output: Storage, inputs: Mapping[str, Artifact]) -> Unfinished | None:
    """The unfinished attempt in the output from which the run resumes; None where it begins with an empty output.

    An attempt with other inputs is removed. `raymill forget` changes an input in place: its samples then have another
    order, so a training would skip some and repeat others, and files made from the old input would still hold
    forgotten documents. For that reason a half-changed artifact is removed too.
    """
    unfinished = read_unfinished(output)
    # Digests, not locations: a store may have been moved.
    is_other = unfinished is not None and _digests(unfinished.inputs) != _digests(input_records(inputs))
    if is_other or output.exists(BACKUP):
        log.info("%s: starts from nothing, because it or an input has changed since an earlier attempt", output.url)
        clear_output(output)
        return None
    return unfinished


def _digests(inputs: Mapping[str, InputRecord]) -> dict[str, str]:
    return {path: need.digest for path, need in inputs.items()}
