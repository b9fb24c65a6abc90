"""Running a pipeline: everything is checked and forecast first, then its jobs run in order in one Ray session."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence

from cluster.placement import check_fits, total_resources
from cluster.progress import working
from cluster.session import connect, max_cluster_resources
from cluster.shared_paths import require_shared_paths
from jobs.frame.artifact import Artifact, open_artifact
from jobs.frame.forecast import forecast_jobs
from jobs.frame.forecast_table import forecast_table
from jobs.frame.job import Job
from jobs.frame.job_run import run_job
from jobs.frame.pipeline import Pipeline, find_errors
from jobs.frame.references import find_functions
from jobs.frame.same_code import SUBMITTED_VERSION
from jobs.frame.shortages import find_missing_resources

log = logging.getLogger(__name__)


def run_pipeline(
    pipeline: Pipeline, *, address: str | None = None, on_begin: Callable[[], None] = lambda: None
) -> list[Artifact]:
    """Run every job whose artifact is not finished, in order, in one Ray session. Returns the artifacts of all jobs.

    Logs a forecast first; `on_begin` is called when all checks have passed.
    Raises ValueError, before anything is started, with every error of every stage, and for stages that this machine's
    memory or the store's disk cannot hold.
    """
    with working("checking the store, the sources and the inputs"):
        if not pipeline.errors:
            pipeline.store.check_writable()  # first, so that the error names the store if that refuses every request
        if errors := find_errors(pipeline):
            raise ValueError("\n".join(errors))
    finished = {
        name: artifact for name, job in pipeline.jobs.items() if (artifact := open_artifact(pipeline.store / job.id))
    }
    if len(finished) == len(pipeline.jobs):
        return list(finished.values())
    with working("forecasting time, memory and disk"):
        forecasts = forecast_jobs(pipeline.jobs, pipeline.store, address=address)
    for line in forecast_table(forecasts):
        log.info("%s", line)
    if shortages := find_missing_resources(pipeline, forecasts, address=address):
        raise ValueError("\n".join(shortages))
    # In a submitted job every worker has these already.
    environment = {} if os.environ.get(SUBMITTED_VERSION) else dict(pipeline.environment)
    pending = [job for name, job in pipeline.jobs.items() if name not in finished]
    sources = [url for job in pending for url in _urls_read(job)]
    with connect(address, environment=environment), require_shared_paths(pipeline.store, sources):
        _check_fits(pending)
        on_begin()
        return _run_jobs(pipeline, finished)


def _run_jobs(pipeline: Pipeline, finished: Mapping[str, Artifact]) -> list[Artifact]:
    artifacts: list[Artifact] = []
    for number, (name, job) in enumerate(pipeline.jobs.items(), start=1):
        if name in finished:
            artifacts.append(finished[name])
            continue
        position = f"[{number}/{len(pipeline.jobs)}]"
        log.info("%s %s", position, job.id)
        started = time.monotonic()
        with working(name):
            artifacts.append(run_job(job, pipeline.store, wandb_group=pipeline.name))
        log.info("%s %s done in %.1f s", position, job.id, time.monotonic() - started)
    return artifacts


def _urls_read(job: Job) -> list[str]:
    """Everything that the job reads and no stage of this pipeline makes, except programs, which are sent as text."""
    functions = find_functions(job.config)
    sources = [url for path, urls in job.source_urls.items() if path not in functions for url in urls]
    return sources + [need.storage.url for need in job.planned.values() if isinstance(need, Artifact)]


def _check_fits(jobs: Sequence[Job]) -> None:
    """Raises ValueError for the first job whose workers can never fit the cluster, new nodes included."""
    limits = max_cluster_resources()
    if limits is None:
        return
    for job in jobs:
        for groups in job.stage.placements(job.config):
            where = f"{job.name}: execution ({', '.join(groups)})"
            check_fits(total_resources(groups.values()), limits, where)
