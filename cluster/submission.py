"""Jobs on a Ray cluster through its Jobs API: submit a command, follow it, stop it.

The cluster's token comes from RAY_AUTH_TOKEN (with RAY_AUTH_MODE=token) or from the file that Ray keeps it in; Ray's
client sends it. Nothing secret enters a runtime environment, because job records show that to whoever may list jobs.
"""

import asyncio
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.failures import WorkFailed
from cluster.progress import working
from cluster.storage import Storage
from cluster.submission_status import SUBMISSION_VARIABLE, RunStatus, read_status

_UNDER_WAY = (JobStatus.PENDING, JobStatus.RUNNING)
_FINAL = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
_UNKNOWN = "UNKNOWN"
_STATUS_POLL_S = 0.5
_CALL_S = (5.0, 20.0)
"""Limits of one call, for a connection and for a silence in its answer: a machine that has vanished refuses nothing."""
_SILENT_HEAD_S = 30.0
_NO_AGENT_S = 300.0
"""How long a head may be up without the agent that starts its jobs."""
_MAX_BREAKS = 5
"""So often in a row a log's stream may break at once and bring nothing new."""
_LASTING_S = 10.0
"""A stream that has lasted so long was none that breaks at once."""
_QUIET_S = 5.0
"""So long a stream may bring nothing until the head is asked whether it is still there."""
_QUIET_IN_A_LOG_S = 26.0
"""So long until it is said where only whole lines can be; longer than a job itself is ever silent."""
_STOP_WAIT_S = 20
_DASHBOARD_PORT = ":8265"
_HOST_AND_PORT = re.compile(r"[^/\s]+:\d+")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

JOB_VARIABLES = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
"""For every job: Ray reads here how long after SIGTERM it sends SIGKILL. Its 3 s are less than an orderly end takes."""

log = logging.getLogger(__name__)
logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # how each stream was closed, we say


class HeadUnreachable(WorkFailed):
    """The cluster's head does not answer, or not with what was asked for."""


class _Client(JobSubmissionClient):
    """Ray's client with a limit for every call, and without a proxy for what is on this machine."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        if urlsplit(self._address).hostname in _LOOPBACK:
            options["proxies"] = {"http": None, "https": None, "all": None}
        return super()._do_request(method, endpoint, timeout=_CALL_S, **options)


@dataclass(frozen=True)
class Submission:
    """A job that was submitted: `id` is what `submit` returned."""

    id: str
    address: str | None = None
    """Of the cluster's dashboard, such as http://127.0.0.1:8265; None takes RAY_API_SERVER_ADDRESS or RAY_ADDRESS."""

    @cached_property
    def _client(self) -> JobSubmissionClient:
        return job_client(self.address)

    def logs(self) -> Iterator[str]:
        """The job's output in pieces, from its first line on, until the job has ended.

        A stream that breaks is taken up again where it broke. Raises HeadSilent when the head no longer answers or the
        stream breaks again and again, and ValueError when the head does not know the job (any more).
        """
        given = num_breaks = 0
        while True:
            broken, skip, before, started_s = "", given, given, time.monotonic()
            try:
                for piece in self._stream():
                    new = piece[skip:] if skip < len(piece) else ""
                    skip = max(0, skip - len(piece))
                    given += len(new)
                    if new:
                        yield new
            except HeadUnreachable:
                raise
            except (RuntimeError, OSError, ClientError) as error:
                broken = f"{type(error).__name__}: {error}"
            status = self._insist().status
            has_ended = status in _FINAL
            if has_ended and not broken:
                return
            broken = broken or f"it was closed, though the job is {status.value}"
            is_new = given > before or (time.monotonic() - started_s > _LASTING_S and not has_ended)
            num_breaks = 0 if is_new else num_breaks + 1
            if num_breaks > _MAX_BREAKS:
                raise HeadUnreachable(
                    f"the log of job {self.id} cannot be read: its stream broke {num_breaks} times in a row ({broken})"
                )
            log.info("the stream of the log broke (%s); it is taken up again", broken)
            with working("waiting to take the log up again"):
                time.sleep(_STATUS_POLL_S * 2**num_breaks)

    def _stream(self) -> Iterator[str]:
        lines = self._client.tail_job_logs(self.id)
        with asyncio.Runner() as runner:
            while (piece := self._next_piece(runner, lines)) is not None:
                yield piece

    def _next_piece(self, runner: asyncio.Runner, lines: AsyncIterator[str]) -> str | None:
        """What the stream brings next; None at its end. A stream can be silent because the head has vanished, so that
        is asked meanwhile. Raises HeadSilent, and RuntimeError when the stream outlives the job."""
        task = runner.get_loop().create_task(_next_or_none(lines))
        if not _ends_within(runner, task, _QUIET_S if sys.stderr.isatty() else _QUIET_IN_A_LOG_S):
            job = self._insist()
            with working(lambda: f"job {self.id} is {job.status.value}, and its log brings nothing new"):
                while not _ends_within(runner, task, _QUIET_S):
                    if job.status in _FINAL:
                        raise RuntimeError("it stayed open after the end of the job")
                    job = self._insist()
        return task.result()

    def _insist(self) -> JobDetails:
        """`details`, asked for again while the head does not answer. Raises HeadSilent when it stays silent."""
        until = time.monotonic() + _SILENT_HEAD_S
        with working("asking the cluster's head"):
            while True:
                try:
                    return self.details()
                except HeadUnreachable as error:
                    if time.monotonic() > until:
                        raise HeadUnreachable(
                            f"the cluster's head has not answered for {_SILENT_HEAD_S:.0f} s, so it is gone or cut "
                            f"off, and with it the driver of job {self.id} (last: {error})"
                        ) from error
                time.sleep(_STATUS_POLL_S)

    def details(self) -> JobDetails:
        """What the head says of the job. Raises ValueError when it does not know it, or there is no head to be reached,
        and HeadSilent when it does not answer."""
        with _asking():
            jobs = self._client.list_jobs()
        found = [job for job in jobs if job.submission_id == self.id]
        if not found:
            raise ValueError(
                f"no job {self.id!r} on this cluster, or no longer: a head that was started anew has lost its jobs; "
                "`raymill submit` prints the id of what it sent"
            )
        return found[0]

    def stop(self) -> str:
        """End the job, with SIGTERM first; says what became of that. Raises as `details` does."""
        status = self.details().status
        if status in _FINAL:
            return f"job {self.id} had ended already: {status.value}"
        with _asking():
            self._client.stop_job(self.id)
        return (
            f"job {self.id} was asked to stop, which takes up to {_STOP_WAIT_S} s; `raymill status {self.id}` tells. "
            "The same submit goes on from what it has finished."
        )


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """A call to the head: it is said that one is made, and whatever it fails with is HeadSilent."""
    with working("asking the cluster's head"):
        try:
            yield
        except (OSError, RuntimeError, AuthenticationError) as error:
            raise HeadUnreachable(f"the cluster's head does not tell ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class JobReport:
    """What is known of a job."""

    id: str
    status: str
    """`PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`; `UNKNOWN` where only the store knows of it."""
    why: str
    """What the head says of the status, of a failure with the last lines of the log; or why it says nothing."""
    code: int
    """0 for a job that has succeeded, its own exit code for one that has failed, 1 for all else."""
    run: RunStatus | None
    """What its run has left in the store."""

    @property
    def has_ended(self) -> bool:
        return self.status in [status.value for status in _FINAL]

    @property
    def is_known(self) -> bool:
        """Whether the head tells of it."""
        return self.status != _UNKNOWN

    @property
    def has_failed(self) -> bool:
        """Whether it has ended before its work was done."""
        has_run_failed = self.run is not None and self.run.state in ("failed", "stopped")
        return has_run_failed or (self.has_ended and self.status != JobStatus.SUCCEEDED.value)

    def ending(self, *, is_log_shown: bool = False) -> str:
        """How it has ended and why: unless its log was shown, as the run has told it, else with the last lines of the
        log. Or how it stands, as far as that is known."""
        if self.status == JobStatus.SUCCEEDED.value:
            return f"job {self.id} succeeded"
        if self.has_failed and self.run and self.run.state in ("failed", "stopped") and not is_log_shown:
            return f"job {self.id} {self.status}: its run {self.run.state}: {self.run.says}"
        why = self.why.partition(", last available logs")[0] if is_log_shown else self.why
        lines = [f"job {self.id} {self.status}: {why or 'no reason given'}"]
        if not self.has_ended:
            lines.append(self.of_run())
        if not self.is_known and self.code:
            lines.append("The same submit goes on from what it has finished.")
        return "\n".join(filter(None, lines))

    def of_run(self) -> str:
        """What the run says, as one or two lines; empty where nothing is known of it."""
        if self.run is None:
            return ""
        if self.has_ended and self.run.state == "sent":
            return f"its run: it ended before it could say anything; see `raymill logs {self.id}`"
        return f"its run: {self.run}"


def query_job(submission: Submission, store: Storage | None) -> JobReport:
    """What the cluster's head says of a job, or where it does not, what the store does.

    Raises what `Submission.details` does when neither knows the job.
    """
    run = None
    try:
        run = read_status(store, submission.id) if store else None
    except OSError as error:
        log.warning("store: %s does not tell of the run (%s)", store.url if store else "", error)
    try:
        job = submission.details()
    except (ValueError, HeadUnreachable) as error:
        if run is None:
            raise
        return JobReport(submission.id, _UNKNOWN, str(error), 0 if run.state == "succeeded" else 1, run)
    code = 0 if job.status == JobStatus.SUCCEEDED else max(job.driver_exit_code or 0, 0) or 1
    return JobReport(submission.id, job.status.value, job.message or "", code, run)


@dataclass(frozen=True)
class SubmitResult:
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
) -> SubmitResult:
    """Run `command` on the cluster, in a copy of `working_dir`, unless a job of this id runs, waits or succeeded.

    A job that failed or was stopped, or whose result no longer stands, is submitted again as `<id>-2`, `<id>-3`, …;
    the last of them is the one that counts. `still_stands` is asked only after a success; `before_sending` is told the
    id under which the job is about to be sent, which the job itself finds in RAYMILL_SUBMISSION.
    Raises ValueError when the cluster cannot be reached or refuses the token.
    """
    client = job_client(address)
    with _asking():
        earlier = _tries(client.list_jobs(), id)
    if earlier:
        last = earlier[-1]
        if last.status in _UNDER_WAY:
            return SubmitResult(Submission(str(last.submission_id), address), "joined, it is under way")
        if last.status == JobStatus.SUCCEEDED and still_stands():
            return SubmitResult(Submission(str(last.submission_id), address), "done before, nothing to do")
    attempt = id if not earlier else f"{id}-{len(earlier) + 1}"
    runtime_env = {"working_dir": str(working_dir), "env_vars": {**env, **JOB_VARIABLES, SUBMISSION_VARIABLE: attempt}}
    before_sending(attempt)
    send = partial(
        client.submit_job,
        entrypoint=command,
        submission_id=attempt,
        runtime_env=runtime_env,
        metadata=dict(metadata),
    )
    try:
        send_when_agent_ready(send)
    except (RuntimeError, OSError) as error:
        # The same id twice is what the Jobs API refuses: then another submit was faster, and its job is ours. So it is
        # when only the answer was lost.
        with _asking():
            is_there = any(job.submission_id == attempt for job in client.list_jobs())
        if not is_there:
            raise HeadUnreachable(f"the cluster's head does not take the job ({error})") from error
        return SubmitResult(Submission(attempt, address), "joined, it is under way")
    return SubmitResult(Submission(attempt, address), "started again" if earlier else "started")


def send_when_agent_ready(send: Callable[[], object], *, limit_s: float = _NO_AGENT_S, pause_s: float = 2.0) -> None:
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
        with working("asking the cluster's head"):
            return _Client(dashboard_address(address))
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


def _ends_within(runner: asyncio.Runner, task: asyncio.Task[Any], seconds: float) -> bool:
    runner.run(asyncio.wait({task}, timeout=seconds))
    return task.done()


async def _next_or_none(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)
