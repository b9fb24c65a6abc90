"""The command `raymill submit STAGE CONFIG`. It executes `raymill run STAGE CONFIG` as a job on a Ray cluster.

`jobs.commands.shipping` ships the configs and `.py` files that the job needs. In this file, "job" means a job of the
Ray cluster, which executes a whole command. The exception is `pipeline.jobs`, whose items are objects of the class
`Job`.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from cluster import submission_status
from cluster.progress import show_activity
from cluster.session import check_no_shadowed_packages
from cluster.storage import Storage
from cluster.submission import JobReport, Submission, SubmitResult, query_job, submit_once
from cluster.user_cache import UserCache
from jobs.commands.shipping import write_shipped_files
from jobs.frame.artifact import open_artifact
from jobs.frame.pipeline import Pipeline, find_errors, load
from jobs.frame.same_code import submission_variables

_MAX_START_WAIT_S = 30.0
"""Longest time that `follow_start` waits until the run begins."""
_POLL_INTERVAL_S = 1.0
"""Pause between two queries of a job's state."""
_submission_cache = UserCache("submissions")
"""Id of a job -> the store and address of the last `raymill submit` of this job from this machine, and the environment
variables that `pipeline.yaml` contained at that time."""


class RememberedSubmission(NamedTuple):
    """A submitted job and the store of its run."""

    submission: Submission
    store: Storage | None
    """The store of the run. None if the user did not give the store and the job was not submitted from this machine."""


def submit(
    stage: str, config: Path, overrides: Sequence[str], *, store: str | None, address: str | None
) -> SubmitResult:
    """Submit the command `raymill run` with these arguments as a job to the cluster whose dashboard is at `address`.

    If the same command was already submitted, its existing job is returned and the work is not repeated. The id of a
    job contains a hash of the command, the shipped files, Raymill's version and the ids of the artifacts. A changed
    data file leads to different artifact ids and therefore to a different job. A job is submitted again if it has
    failed, was stopped, or has succeeded but its artifacts were deleted.

    Raises ValueError for errors that can be detected on this machine, before anything is submitted. One message
    contains all errors that `find_errors` returns. Also raises the exceptions of `submit_once`.
    """
    # Workers run in a folder with copies of files of the working directory. In this folder, a user's file such as
    # `numpy.py` would be imported instead of the installed package.
    check_no_shadowed_packages()
    pipeline = load(stage, config, overrides, store=store)
    if errors := find_errors(pipeline):
        raise ValueError("\n".join(errors))
    with tempfile.TemporaryDirectory(prefix="raymill-submit-") as folder:
        command = write_shipped_files(stage, config, overrides, pipeline, Path(folder))
        result = submit_once(
            command,
            Path(folder),
            id=f"{stage}-{_job_digest(command, Path(folder), pipeline)[:12]}",
            address=address,
            env={**pipeline.environment, **submission_variables()},
            metadata={"raymill": version("raymill"), "store": pipeline.store.url},
            has_result=lambda: all(open_artifact(pipeline.store / job.id) for job in pipeline.jobs.values()),
            before_sending=lambda id: submission_status.record_submission(pipeline.store, id),
        )
    entry = {"store": pipeline.store.url, "address": address, "environment": dict(pipeline.environment)}
    _submission_cache.put(result.submission.id, entry)
    return result


def _job_digest(command: str, folder: Path, pipeline: Pipeline) -> str:
    """Return a hash of Raymill's version, the command, the shipped files, and the ids of the pipeline's artifacts.

    `command` is the command that the cluster runs. `folder` contains the shipped files, whose paths in the folder and
    content are hashed.
    """
    digest = hashlib.sha256(f"{version('raymill')}\0{command}\n".encode())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    digest.update("\n".join(job.id for job in pipeline.jobs.values()).encode())
    return digest.hexdigest()


def follow_start(submission: Submission, store: Storage) -> JobReport:
    """Wait until the run of a job has passed its checks or has ended, for at most `_MAX_START_WAIT_S`.

    Returns the state of the job at the end of the wait. The run does the checks on the cluster: that the cluster reads
    the same store and has the same source files of Raymill, and all checks of `run_pipeline`.
    """
    deadline = time.monotonic() + _MAX_START_WAIT_S
    with show_activity(lambda: f"waiting for job {submission.id} to begin"):
        while True:
            report = query_job(submission, store)
            is_running = report.run_status is not None and report.run_status.state == "running"
            if report.has_ended or is_running or time.monotonic() > deadline:
                return report
            time.sleep(_POLL_INTERVAL_S)


def find_submission(id: str, *, address: str | None, store: str | None) -> RememberedSubmission:
    """Return the submitted job with the id `id`, and its store.

    If `address` or `store` is None, the value is used that it had when this job was last submitted from this machine.
    The environment variables that `pipeline.yaml` contained at that time are set in this process, because access to the
    store may need them.
    """
    entry = _submission_cache.get(id) or {}
    store = store or entry.get("store")
    os.environ.update(entry.get("environment", {}))
    submission = Submission(id, address or entry.get("address"))
    return RememberedSubmission(submission, Storage(store) if store else None)
