"""Jobs on a Ray cluster through its Jobs API: submit a command, follow it, stop it.

The cluster's token comes from RAY_AUTH_TOKEN (with RAY_AUTH_MODE=token) or from the file that Ray keeps it in; Ray's
client sends it. Nothing secret enters a runtime environment, because job records show that to whoever may list jobs.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.ledger import SUBMISSION
from cluster.progress import working

_UNDER_WAY = (JobStatus.PENDING, JobStatus.RUNNING)
_FINAL = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
_STATUS_POLL_S = 0.5
_SILENT_HEAD_S = 30.0
_NO_AGENT_S = 300.0
"""How long a head may be up without the agent that starts its jobs."""
_DASHBOARD_PORT = ":8265"
_HOST_AND_PORT = re.compile(r"[^/\s]+:\d+")


@dataclass(frozen=True)
class Submission:
    """A job that was submitted: `id` is what `submit` returned."""

    id: str
    address: str | None = None
    """Of the cluster's dashboard, such as http://127.0.0.1:8265; None takes RAY_API_SERVER_ADDRESS or RAY_ADDRESS."""

    @cached_property
    def _client(self) -> JobSubmissionClient:
        return job_client(self.address)

    def status(self) -> str:
        """`PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`. Raises ValueError for an unknown id."""
        return self._known().value

    def logs(self) -> Iterator[str]:
        """The job's output in pieces, from its first line on, until the job has ended.

        A stream that breaks is taken up again where it broke. Raises ConnectionError when the head no longer answers.
        """
        given = 0
        while True:
            broken = ""
            skip = given
            try:
                for piece in self._stream():
                    new = piece[skip:] if skip < len(piece) else ""
                    skip = max(0, skip - len(piece))
                    given += len(new)
                    if new:
                        yield new
            except (RuntimeError, OSError, ClientError) as error:
                broken = f"{type(error).__name__}: {error}"
            if self._insist_on_status() in _FINAL and not broken:
                return
            time.sleep(_STATUS_POLL_S)

    def result(self) -> tuple[int, str]:
        """(exit code, one sentence) of a job that has ended: its own code, else 0 for success and 1 for all else."""
        job = self._details()
        code = job.driver_exit_code
        if job.status == JobStatus.SUCCEEDED:
            return 0, f"job {self.id} succeeded"
        return code if code and code > 0 else 1, f"job {self.id} {job.status.value}: {job.message or 'no reason given'}"

    def _stream(self) -> Iterator[str]:
        lines = self._client.tail_job_logs(self.id)
        with asyncio.Runner() as runner:
            while (piece := runner.run(_next_or_none(lines))) is not None:
                yield piece

    def _insist_on_status(self) -> JobStatus:
        """The status, asked for again while the head does not answer. Raises ConnectionError when it stays silent."""
        until = time.monotonic() + _SILENT_HEAD_S
        while True:
            try:
                return self._known()
            except (OSError, RuntimeError) as error:
                if time.monotonic() > until:
                    raise ConnectionError(
                        f"the cluster's head has not answered for {_SILENT_HEAD_S:.0f} s, so it is gone or cut off, "
                        f"and with it the driver of job {self.id}"
                    ) from error
                time.sleep(_STATUS_POLL_S)

    def stop(self) -> None:
        """End the job, with SIGTERM first; nothing happens to one that has ended already."""
        if self._known() not in _FINAL:
            self._client.stop_job(self.id)

    def wait(self, timeout_s: float) -> str:
        """The final status. Raises TimeoutError when the job has not ended by then."""
        until = time.monotonic() + timeout_s
        while (status := self._known()) not in _FINAL:
            if time.monotonic() > until:
                raise TimeoutError(f"job {self.id} is still {status.value} after {timeout_s:g} s")
            time.sleep(_STATUS_POLL_S)
        return status.value

    def _known(self) -> JobStatus:
        return self._details().status

    def _details(self) -> JobDetails:
        found = [job for job in self._client.list_jobs() if job.submission_id == self.id]
        if not found:
            raise ValueError(f"no job {self.id!r} on this cluster; `raymill submit` prints the id of what it sent")
        return found[0]


@dataclass(frozen=True)
class Sent:
    """What became of a submit."""

    submission: Submission
    how: Literal["started", "started again", "joined, it is under way", "done before, nothing to do"]


def submit_once(
    command: str,
    working_dir: Path,
    *,
    id: str,
    address: str | None,
    env: Mapping[str, str],
    metadata: Mapping[str, str],
    still_stands: Callable[[], bool],
    before_sending: Callable[[str], None] = lambda id: None,
) -> Sent:
    """Run `command` on the cluster, in a copy of `working_dir`, unless a job of this id runs, waits or succeeded.

    A job that failed or was stopped, or whose result no longer stands, is submitted again as `<id>-2`, `<id>-3`, …;
    the last of them is the one that counts. `still_stands` is asked only after a success; `before_sending` is told the
    id under which the job is about to be sent, which the job itself finds in RAYMILL_SUBMISSION.
    Raises ValueError when the cluster cannot be reached or refuses the token.
    """
    client = job_client(address)
    earlier = _tries(client.list_jobs(), id)
    if earlier:
        last = earlier[-1]
        if last.status in _UNDER_WAY:
            return Sent(Submission(str(last.submission_id), address), "joined, it is under way")
        if last.status == JobStatus.SUCCEEDED and still_stands():
            return Sent(Submission(str(last.submission_id), address), "done before, nothing to do")
    attempt = id if not earlier else f"{id}-{len(earlier) + 1}"
    runtime_env = {"working_dir": str(working_dir), "env_vars": {**env, SUBMISSION: attempt}}
    before_sending(attempt)
    send = partial(
        client.submit_job,
        entrypoint=command,
        submission_id=attempt,
        runtime_env=runtime_env,
        metadata=dict(metadata),
    )
    try:
        once_an_agent_is_up(send)
    except RuntimeError:
        # The same id twice is what the Jobs API refuses: then another submit was faster, and its job is ours.
        if not any(job.submission_id == attempt for job in client.list_jobs()):
            raise
        return Sent(Submission(attempt, address), "joined, it is under way")
    return Sent(Submission(attempt, address), "started again" if earlier else "started")


def once_an_agent_is_up(send: Callable[[], object], *, limit_s: float = _NO_AGENT_S, pause_s: float = 2.0) -> None:
    """Send a job to a head whose dashboard answers before its job agent is there, as one that comes up does.

    Raises RuntimeError when it is refused for another reason, or when no agent has come within the limit.
    """
    until = time.monotonic() + limit_s
    with working("sending the job"):
        while True:
            try:
                send()
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > until:
                    raise
            time.sleep(pause_s)


def job_client(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's Jobs API. Raises ValueError when nothing answers there or the token is refused."""
    try:
        return JobSubmissionClient(dashboard_address(address))
    except (OSError, RuntimeError, AuthenticationError) as error:
        where = address or "RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
        raise ValueError(
            f"--address: no Jobs API to be used at {where} ({error}); give the dashboard's address, such as "
            "http://127.0.0.1:8265, and the cluster's token in RAY_AUTH_TOKEN with RAY_AUTH_MODE=token"
        ) from error


def dashboard_address(address: str | None) -> str | None:
    """The address as a URL: Ray takes a bare `host:8265` for that of its own protocol and waits a minute for it."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address and os.environ.get("RAY_ADDRESS", "").endswith(_DASHBOARD_PORT):
        address = os.environ["RAY_ADDRESS"]
    return f"http://{address}" if address and _HOST_AND_PORT.fullmatch(address) else address


def _tries(jobs: list[JobDetails], id: str) -> list[JobDetails]:
    """The jobs of one id in the order of their attempts: `id`, `id-2`, `id-3`, …"""
    attempts: list[tuple[int, JobDetails]] = []
    for job in jobs:
        base, _, number = (job.submission_id or "").rpartition("-")
        if job.submission_id == id:
            attempts.append((1, job))
        elif base == id and number.isdigit():
            attempts.append((int(number), job))
    return [job for _, job in sorted(attempts, key=lambda attempt: attempt[0])]


async def _next_or_none(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)
