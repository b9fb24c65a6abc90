"""Runs a pipeline: checks everything, prints a forecast, and then runs the jobs in order in one Ray session."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence

from cluster.placement import check_fits, total_resources
from cluster.progress import show_activity
from cluster.session import connect, hub_env, max_cluster_resources
from cluster.shared_paths import require_shared_paths
from jobs.frame.artifact import Artifact, open_artifact
from jobs.frame.forecast import forecast_jobs
from jobs.frame.forecast_table import forecast_table
from jobs.frame.job import Job
from jobs.frame.job_run import run_job
from jobs.frame.pipeline import Pipeline, find_errors
from jobs.frame.references import find_functions
from jobs.frame.same_code import SUBMITTED_VERSION_VARIABLE
from jobs.frame.shortages import find_shortages

log = logging.getLogger(__name__)


def run_pipeline(
    pipeline: Pipeline, *, address: str | None = None, on_begin: Callable[[], None] = lambda: None
) -> list[Artifact]:
    """Run every job whose artifact is not finished, in order, in one Ray session. Returns the artifacts of all jobs.

    Logs a forecast of all jobs first. Calls `on_begin` after all checks have passed and before the first job. If all
    artifacts are finished already, returns them at once: there is no forecast and no call of `on_begin`.

    Raises ValueError before any job starts if a stage has an error, needs more memory or disk than there is, or has
    workers that do not fit the cluster, and if the store or a source cannot be accessed. The message has the errors of
    all stages or, if there are none, the shortages (`find_shortages`). For workers that do not fit, it has only those
    of the first such job.

    `address` is the address of the Ray cluster to join. If `address` is None, the cluster of RAY_ADDRESS is joined, or
    a local one is started.
    """
    with show_activity("checking the store, the sources and the inputs"):
        if not pipeline.errors:
            # Checked before `find_errors`, which also accesses the store but would raise an error that does not name
            # it. Skipped if configs have errors, which are reported first.
            pipeline.store.check_writable()
        if errors := find_errors(pipeline):
            raise ValueError("\n".join(errors))
    finished = {
        name: artifact for name, job in pipeline.jobs.items() if (artifact := open_artifact(pipeline.store / job.id))
    }
    if len(finished) == len(pipeline.jobs):
        return list(finished.values())
    with show_activity("forecasting time, memory and disk"):
        forecasts = forecast_jobs(pipeline.jobs, pipeline.store, address=address)
    for line in forecast_table(forecasts):
        log.info("%s", line)
    if shortages := find_shortages(pipeline, forecasts, address=address):
        raise ValueError("\n".join(shortages))
    # If `raymill submit` or a manifest of `raymill manifest` started this process, every worker has the environment
    # variables already.
    is_submitted_run = SUBMITTED_VERSION_VARIABLE in os.environ
    environment = {} if is_submitted_run else dict(pipeline.environment)
    pending = [job for name, job in pipeline.jobs.items() if name not in finished]
    sources = [url for job in pending for url in _required_urls(job)]
    with connect(address, environment=hub_env(sources) | environment), require_shared_paths(pipeline.store, sources):
        _check_fits(pending)
        on_begin()
        return _run_jobs(pipeline, finished)


def _run_jobs(pipeline: Pipeline, finished: Mapping[str, Artifact]) -> list[Artifact]:
    """Run the jobs that are not in `finished`, in order. Returns the artifacts of all jobs.

    `finished` maps the names of jobs to their finished artifacts.
    """
    artifacts: list[Artifact] = []
    for number, (name, job) in enumerate(pipeline.jobs.items(), start=1):
        if name in finished:
            artifacts.append(finished[name])
            continue
        position = f"[{number}/{len(pipeline.jobs)}]"
        log.info("%s %s", position, job.id)
        started = time.monotonic()
        with show_activity(name):
            artifacts.append(run_job(job, pipeline.store, wandb_group=pipeline.name))
        log.info("%s %s done in %.1f s", position, job.id, time.monotonic() - started)
    return artifacts


def _required_urls(job: Job) -> list[str]:
    """Return the URLs that the workers must be able to read: those of the job's source files and of its artifact
    inputs.

    Inputs that jobs of this pipeline make are left out, because they are in the store, which is checked separately.
    User-provided code is left out, because it is sent to the workers as text.
    """
    user_code = find_functions(job.config)
    source_urls = [url for field_path, urls in job.source_urls.items() if field_path not in user_code for url in urls]
    artifacts = [planned_input for planned_input in job.planned.values() if isinstance(planned_input, Artifact)]
    return source_urls + [artifact.storage.url for artifact in artifacts]


def _check_fits(jobs: Sequence[Job]) -> None:
    """Raises ValueError for the first job whose workers do not fit the cluster even when the cluster has its largest
    size.

    Checks nothing if the largest size to which the cluster can be scaled up is unknown.
    """
    limits = max_cluster_resources()
    if limits is None:
        return
    for job in jobs:
        for concurrent_groups in job.stage.placements(job.config):
            label = f"{job.name}: execution ({', '.join(concurrent_groups)})"
            check_fits(total_resources(concurrent_groups.values()), limits, label)
