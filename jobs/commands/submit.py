"""`raymill submit STAGE CONFIG`: run the same command as a job on a Ray cluster, with the files that it needs."""

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from cluster import submission_status
from cluster.progress import working
from cluster.session import check_no_shadowed_packages
from cluster.storage import Storage
from cluster.submission import JobReport, Submission, SubmitResult, query_job, submit_once
from cluster.user_cache import UserCache
from jobs.commands.shipping import write_shipped_files
from jobs.frame.artifact import open_artifact
from jobs.frame.pipeline import Pipeline, find_errors, load
from jobs.frame.same_code import submission_variables

_START_S = 30.0
"""`follow_start` waits this long for the run to begin."""
_POLL_S = 1.0
_remembered = UserCache("submissions")


class RememberedSubmission(NamedTuple):
    """A job that was submitted, and the store of its run as far as it is known."""

    submission: Submission
    store: Storage | None


def submit(
    stage: str, config: Path, overrides: Sequence[str], *, store: str | None, address: str | None
) -> SubmitResult:
    """The job that runs this command on the cluster whose dashboard is at `address`.

    The same work is never done twice: the job's id is a hash of the command, the shipped files, Raymill's version and
    the ids of the artifacts, so a changed data file makes another job. A job whose artifacts no longer exist is sent
    again. Raises ValueError, before anything is sent, with every mistake that shows on this machine.
    """
    check_no_shadowed_packages()  # the folder of the shipped files is the workers' directory, as this one is here
    pipeline = load(stage, config, overrides, store=store)
    if errors := find_errors(pipeline):
        raise ValueError("\n".join(errors))
    with tempfile.TemporaryDirectory(prefix="raymill-submit-") as folder:
        command = write_shipped_files(stage, config, overrides, pipeline, Path(folder))
        result = submit_once(
            command,
            Path(folder),
            id=f"{stage}-{_digest(command, Path(folder), pipeline)[:12]}",
            address=address,
            env={**pipeline.environment, **submission_variables()},
            metadata={"raymill": version("raymill"), "store": pipeline.store.url},
            has_result=lambda: all(open_artifact(pipeline.store / job.id) for job in pipeline.jobs.values()),
            before_sending=lambda id: submission_status.record_submission(pipeline.store, id),
        )
    remembered = {"store": pipeline.store.url, "address": address, "environment": dict(pipeline.environment)}
    _remembered.put(result.submission.id, remembered)
    return result


def _digest(command: str, folder: Path, pipeline: Pipeline) -> str:
    """A hash of everything that a job depends on."""
    digest = hashlib.sha256(f"{version('raymill')}\0{command}\n".encode())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    digest.update("\n".join(job.id for job in pipeline.jobs.values()).encode())
    return digest.hexdigest()


def follow_start(submission: Submission, store: Storage) -> JobReport:
    """The state of a job once its run has passed all checks, or has ended, or after `_START_S` seconds.

    A run that is refused, because the cluster sees another store or has another Raymill, ends within seconds.
    """
    until = time.monotonic() + _START_S
    with working(lambda: f"waiting for job {submission.id} to begin"):
        while True:
            report = query_job(submission, store)
            is_running = report.run_status is not None and report.run_status.state == "running"
            if report.has_ended or is_running or time.monotonic() > until:
                return report
            time.sleep(_POLL_S)


def find_submission(id: str, *, address: str | None, store: str | None) -> RememberedSubmission:
    """A job that was submitted. An address or store that is not given is the one of the last submit of this job from
    this machine, if there was one.

    The environment variables of that submit are set in this process, because the store may need them.
    """
    remembered = _remembered.get(id) or {}
    store = store or remembered.get("store")
    os.environ.update(remembered.get("environment", {}))
    submission = Submission(id, address or remembered.get("address"))
    return RememberedSubmission(submission, Storage(store) if store else None)
