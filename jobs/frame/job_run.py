"""Runs a job until its artifact is finished. If an earlier attempt was interrupted, the run resumes from the files of
that attempt."""

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
from cluster.progress import show_activity
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
from jobs.frame.config_loader import find_execution
from jobs.frame.forgetting import read_forgotten, remove_forgotten_documents
from jobs.frame.job import Job, finished_inputs
from jobs.frame.precision import resolve_precisions, warn_if_bfloat16_is_emulated, with_precisions
from jobs.frame.record import Hardware, InputRecord, Measured, Record, Unfinished
from jobs.frame.same_code import code_digest
from jobs.frame.stage import Context
from jobs.frame.stages import stage_name_of

_RECORDED_LIBRARIES = ("ray", "torch", "transformers", "pyarrow", "numpy")
"""The libraries whose versions are written into the record of an artifact."""

log = logging.getLogger(__name__)


def run_job(job: Job, store: Storage, *, wandb_group: str) -> Artifact:
    """Return the job's artifact. Runs the job first if the store does not contain the finished artifact.

    Raises ValueError for an unfinished input or an error in the config or in the inputs. Most of these errors are
    raised before any worker starts. On Weights & Biases the runs of one pipeline have the same `wandb_group`.
    """
    output, inputs = store / job.id, finished_inputs(job, store)
    for path, planned_input in job.planned.items():
        if path not in inputs:
            stage_name = stage_name_of(planned_input.id)
            raise ValueError(
                f"{job.name}: {path}: the input {planned_input.id} is not in {store.url}; make it first with "
                f"`raymill run {stage_name} <its config>`, or run the pipeline"
            )
    with show_activity("checking the inputs"):
        job.stage.check_inputs(job.config, inputs)
    with hold_lease(output) as require_lease:
        if artifact := open_artifact(output):
            return artifact  # another process finished the artifact while this process waited for the lease
        forgotten = read_forgotten(store)
        unfinished = _prepare_output(output, inputs)
        tracker = Tracker(
            storage=output,
            run_id=f"{job.id}-{hashlib.sha256(store.url.encode()).hexdigest()[:6]}",
            name=job.name,
            group=wandb_group,
            config=to_plain(job.config),
        )
        with mirror_to_wandb(tracker):
            with contextlib.closing(tracker):
                context = Context(output=output, inputs=inputs, tracker=tracker, forgotten=forgotten)
                record = _run(job, context, unfinished)
            # The record is written before `mirror_to_wandb` waits for the end of the upload to W&B. The upload may take
            # half a minute, and a signal during this time must not lose the finished stage.
            require_lease()
            write_record(output, record)
            output.remove(UNFINISHED)
    # Documents that were forgotten during the run are removed now, because `raymill forget` could not remove them: it
    # changes only finished artifacts.
    if job.stage.forget is not None and read_forgotten(store) != forgotten:
        remove_forgotten_documents(job.stage, output, store)
    artifact = open_artifact(output)
    assert artifact is not None, f"{output.url} is not finished"
    return artifact


def _run(job: Job, context: Context, unfinished: Unfinished | None) -> Record:
    """Call the stage's `run` and return the record of the artifact.

    `unfinished` describes the earlier attempt whose files are in the output, or is None if the output is empty.
    """
    output, inputs = context.output, context.inputs
    started, start_s = time.time(), time.monotonic()
    execution = find_execution(job.config)
    with (
        capacity_wait_limit(execution.wait_s if execution else 0.0),
        ResourceUsage() as usage,
        _explain_failures(job.name),
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
        sources={
            path: dict(zip(job.source_urls[path], file_fingerprints, strict=True))
            for path, file_fingerprints in job.source_fingerprints.items()
        },
        inputs=input_records(inputs),
        summary=to_plain(summary),
        digest=content_digest(output),
        code_digest=code_digest(),
        versions={name: package_version(name) for name in _RECORDED_LIBRARIES} | {"python": platform.python_version()},
        started=round(started, 3),
        wall_s=round(time.monotonic() - start_s, 3),  # the clock behind `started` may be adjusted during the run
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
def _explain_failures(name: str) -> Iterator[None]:
    """Monitor the stage's processes during the block, so that errors name the process that failed and the cause.

    `name` is the name of the job. Raises only three types of errors: ValueError for an error of the user, which the
    driver or a worker has found; StoppedBySignal instead of KeyboardInterrupt; and JobFailed for every other error.
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
            if isinstance(inner, ValueError):  # a worker raised it; Ray's `error` has a traceback in its message
                raise ValueError(f"{name}: {inner}") from error
            raise explain(error, stage=name).to_error() from error
        except KeyboardInterrupt as stop:
            if isinstance(stop, StoppedBySignal):
                raise
            raise StoppedBySignal(f"{name} resumes from its finished files") from None


def _prepare_output(output: Storage, inputs: Mapping[str, Artifact]) -> Unfinished | None:
    """Return the interrupted attempt whose files are in the output. Returns None if no attempt can be resumed.

    The files of an attempt are deleted if the content of an input has changed since the attempt, for example because
    `raymill forget` has removed documents from the input. Otherwise a resumed training would skip some samples and
    repeat others, because the order of the input's samples is now different, and files that were made from the old
    input would still contain the forgotten documents. The files are also deleted if `raymill forget` was killed while
    it changed this artifact.
    """
    unfinished = read_unfinished(output)
    # Inputs are compared by digest and not by location, because the store may have been moved.
    inputs_changed = unfinished is not None and _digests(unfinished.inputs) != _digests(input_records(inputs))
    if inputs_changed or output.exists(BACKUP):
        log.info(
            "%s: deleting the files of an earlier attempt, because the artifact or one of its inputs has changed since",
            output.url,
        )
        clear_output(output)
        return None
    return unfinished


def _digests(inputs: Mapping[str, InputRecord]) -> dict[str, str]:
    """Return the digest of each input. The keys, also those of `inputs`, are paths of config fields."""
    return {path: input_record.digest for path, input_record in inputs.items()}
