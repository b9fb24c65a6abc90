"""Jobs on a Ray cluster through its Jobs API: submit a command, follow its log, stop it.

Ray's client sends the cluster's token, from RAY_AUTH_TOKEN (with RAY_AUTH_MODE=token) or from Ray's token file. Nothing
secret enters a runtime environment, which job records show to everybody who may list jobs.
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

from cluster.failures import JobFailed
from cluster.progress import working
from cluster.storage import Storage
from cluster.submission_status import SUBMISSION_VARIABLE, RunStatus, read_status

_UNDER_WAY = (JobStatus.PENDING, JobStatus.RUNNING)
_FINAL = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
_UNKNOWN = "UNKNOWN"
_STATUS_POLL_S = 0.5
_CALL_LIMITS_S = (5.0, 20.0)
"""Limits of one call, for connecting and for a pause in its answer: a machine that is gone refuses no connection."""
_SILENT_HEAD_S = 30.0
"""A head that has not answered for so long is taken to be gone."""
_NO_AGENT_S = 300.0
"""How long a head may be running without the agent that starts its jobs."""
_MAX_BREAKS = 5
"""How often in a row a log's stream may break without bringing anything new."""
_LASTING_S = 10.0
"""A stream that has lasted so long does not count as broken without anything new."""
_QUIET_S = 5.0
"""How long a stream may bring nothing until the head is asked whether it is still there."""
_QUIET_IN_LOG_S = 26.0
"""The same where stderr is no terminal; longer than a job itself is ever silent."""
_STOP_WAIT_S = 20
_DASHBOARD_PORT = ":8265"
_HOST_AND_PORT = re.compile(r"[^/\s]+:\d+")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

JOB_VARIABLES = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
"""Variables of every job: Ray waits so long from SIGTERM to SIGKILL; its 3 s are too short for an orderly shutdown."""

log = logging.getLogger(__name__)
logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # we log how each stream ended


class HeadUnreachable(JobFailed):
    """The cluster's head gives no answer, or not the requested one."""


class _Client(JobSubmissionClient):
    """Ray's client with a time limit for every call, and without a proxy for addresses of this machine."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        if urlsplit(self._address).hostname in _LOOPBACK:
            options["proxies"] = {"http": None, "https": None, "all": None}
        return super()._do_request(method, endpoint, timeout=_CALL_LIMITS_S, **options)


@dataclass(frozen=True)
class Submission:
    """A job that was submitted."""

    id: str
    address: str | None = None
    """Of the dashboard, such as http://127.0.0.1:8265; None takes RAY_API_SERVER_ADDRESS or RAY_ADDRESS."""

    @cached_property
    def _client(self) -> JobSubmissionClient:
        return job_client(self.address)

    def logs(self) -> Iterator[str]:
        """The job's output, from its first line until the job has ended.

        A stream that breaks is opened again and continues where it broke. Raises HeadUnreachable when the head no
        longer answers or the stream keeps breaking, and ValueError when the head does not know the job.
        """
        num_yielded = num_breaks = 0
        while True:
            reason, skip, before, started_s = "", num_yielded, num_yielded, time.monotonic()
            try:
                for text in self._stream():
                    new = text[skip:] if skip < len(text) else ""
                    skip = max(0, skip - len(text))
                    num_yielded += len(new)
                    if new:
                        yield new
            except HeadUnreachable:
                raise
            except (RuntimeError, OSError, ClientError) as error:
                reason = f"{type(error).__name__}: {error}"
            status = self._details_with_patience().status
            has_ended = status in _FINAL
            if has_ended and not reason:
                return
            reason = reason or f"it was closed, though the job is {status.value}"
            has_advanced = num_yielded > before or (time.monotonic() - started_s > _LASTING_S and not has_ended)
            num_breaks = 0 if has_advanced else num_breaks + 1
            if num_breaks > _MAX_BREAKS:
                raise HeadUnreachable(
                    f"the log of job {self.id} cannot be read: its stream broke {num_breaks} times in a row ({reason})"
                )
            log.info("the stream of the log broke (%s); opening it again", reason)
            with working("waiting to open the log again"):
                time.sleep(_STATUS_POLL_S * 2**num_breaks)

    def _stream(self) -> Iterator[str]:
        lines = self._client.tail_job_logs(self.id)
        with asyncio.Runner() as runner:
            while (text := self._next_text(runner, lines)) is not None:
                yield text

    def _next_text(self, runner: asyncio.Runner, lines: AsyncIterator[str]) -> str | None:
        """The next text of the stream; None at its end.

        A silent stream may mean that the head is gone, so the head is asked meanwhile. Raises HeadUnreachable when it
        is, and RuntimeError when the stream stays open after the end of the job.
        """
        task = runner.get_loop().create_task(_next_or_none(lines))
        if not _ends_within(runner, task, _QUIET_S if sys.stderr.isatty() else _QUIET_IN_LOG_S):
            job = self._details_with_patience()
            with working(lambda: f"job {self.id} is {job.status.value}, and its log brings nothing new"):
                while not _ends_within(runner, task, _QUIET_S):
                    if job.status in _FINAL:
                        raise RuntimeError("it stayed open after the end of the job")
                    job = self._details_with_patience()
        return task.result()

    def _details_with_patience(self) -> JobDetails:
        """`details`, asked again while the head does not answer. Raises HeadUnreachable when it stays silent."""
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
        """The head's record of the job.

        Raises ValueError when it knows no such job or cannot be connected to, HeadUnreachable when it does not answer.
        """
        with _asking_head():
            jobs = self._client.list_jobs()
        matching = [job for job in jobs if job.submission_id == self.id]
        if not matching:
            raise ValueError(
                f"no job {self.id!r} on this cluster, or no longer: a restarted head has lost its jobs; "
                "`raymill submit` prints the id of what it sent"
            )
        return matching[0]

    def stop(self) -> str:
        """Ask the job to stop, by SIGTERM first; a message about the result. Raises what `details` raises."""
        status = self.details().status
        if status in _FINAL:
            return f"job {self.id} had ended already: {status.value}"
        with _asking_head():
            self._client.stop_job(self.id)
        return (
            f"job {self.id} was asked to stop, which takes up to {_STOP_WAIT_S} s; `raymill status {self.id}` shows "
            "whether it has. Submit the same command again to resume."
        )


@contextlib.contextmanager
def _asking_head() -> Iterator[None]:
    """Report a call to the head as the current activity, and raise its failures as HeadUnreachable."""
    with working("asking the cluster's head"):
        try:
            yield
        except (OSError, RuntimeError, AuthenticationError) as error:
            raise HeadUnreachable(f"the cluster's head gives no answer ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class JobReport:
    """What the head and the store know of a job."""

    id: str
    status: str
    """`PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`; `UNKNOWN` where only the store knows of it."""
    message: str
    """The head's message about the status (with the last lines of the log after a failure), or why it has none."""
    exit_code: int
    """0 for a job that has succeeded, its own exit code for one that has failed, 1 otherwise."""
    run_status: RunStatus | None
    """What its run last reported to the store."""

    @property
    def has_ended(self) -> bool:
        return self.status in [status.value for status in _FINAL]

    @property
    def is_known_to_head(self) -> bool:
        """Whether the head knows the job."""
        return self.status != _UNKNOWN

    @property
    def has_failed(self) -> bool:
        """Whether it ended before its work was done."""
        has_run_failed = self.run_status is not None and self.run_status.state in ("failed", "stopped")
        return has_run_failed or (self.has_ended and self.status != JobStatus.SUCCEEDED.value)

    def describe_outcome(self, *, is_log_shown: bool = False) -> str:
        """How the job ended and why, or its present state.

        The cause is the run's own report, or else the head's message; the log's last lines are left out when the log
        was shown.
        """
        if self.status == JobStatus.SUCCEEDED.value:
            return f"job {self.id} succeeded"
        if self.has_failed and self.run_status and self.run_status.state in ("failed", "stopped") and not is_log_shown:
            return f"job {self.id} {self.status}: its run {self.run_status.state}: {self.run_status.says}"
        why = self.message.partition(", last available logs")[0] if is_log_shown else self.message
        lines = [f"job {self.id} {self.status}: {why or 'no reason given'}"]
        if not self.has_ended:
            lines.append(self.format_run_status())
        if not self.is_known_to_head and self.exit_code:
            lines.append("Submit the same command again to resume.")
        return "\n".join(filter(None, lines))

    def format_run_status(self) -> str:
        """The run's last report, as one or two lines; empty where there is none."""
        if self.run_status is None:
            return ""
        if self.has_ended and self.run_status.state == "sent":
            return f"its run: it ended before it reported anything; see `raymill logs {self.id}`"
        return f"its run: {self.run}"


def query_job(submission: Submission, store: Storage | None) -> JobReport:
    """What the cluster's head and the store know of a job.

    Raises what `Submission.details` raises when neither knows it.
    """
    run = None
    try:
        run = read_status(store, submission.id) if store else None
    except OSError as error:
        log.warning("store: %s cannot be asked for the run (%s)", store.url if store else "", error)
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
    """The job of a submit, and whether it was started."""

    submission: Submission
    outcome: Literal["started", "started again", "joined, it is under way", "done before, nothing to do"]


def submit_once(
    command: str,
    working_dir: Path,
    *,
    id: str,
    address: str | None,
    env: Mapping[str, str],
    metadata: Mapping[str, str],
    has_result: Callable[[], bool],
    before_sending: Callable[[str], None] = lambda id: None,
) -> SubmitResult:
    """Run `command` on the cluster, in a copy of `working_dir`, unless a job of this id runs, waits or succeeded.

    A job that failed or was stopped, or whose result no longer exists, is submitted again as `<id>-2`, `<id>-3`, …;
    the last of them counts. `has_result` is called only after a success. `before_sending` receives the id under which
    the job is about to be sent, which the job itself finds in RAYMILL_SUBMISSION. Raises ValueError when the cluster
    cannot be reached or refuses the token.
    """
    client = job_client(address)
    with _asking_head():
        earlier = _tries(client.list_jobs(), id)
    if earlier:
        last = earlier[-1]
        if last.status in _UNDER_WAY:
            return SubmitResult(Submission(str(last.submission_id), address), "joined, it is under way")
        if last.status == JobStatus.SUCCEEDED and has_result():
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
        # The Jobs API refuses the same id twice: then another submit was faster, and its job is ours. So it is when the
        # job was accepted and only the answer was lost.
        with _asking_head():
            is_there = any(job.submission_id == attempt for job in client.list_jobs())
        if not is_there:
            raise HeadUnreachable(f"the cluster's head did not accept the job ({error})") from error
        return SubmitResult(Submission(attempt, address), "joined, it is under way")
    return SubmitResult(Submission(attempt, address), "started again" if earlier else "started")


def send_when_agent_ready(send: Callable[[], object], *, limit_s: float = _NO_AGENT_S, pause_s: float = 2.0) -> None:
    """Call `send` until the head has an agent that starts jobs, which comes up later than its dashboard.

    Raises RuntimeError when the job is refused for another reason, or when there is no agent within the limit.
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
            f"--address: the Jobs API at {where} cannot be used ({error}); give the dashboard's address, such as "
            "http://127.0.0.1:8265, and the cluster's token in RAY_AUTH_TOKEN with RAY_AUTH_MODE=token"
        ) from error


def dashboard_address(address: str | None) -> str | None:
    """The address as a URL. Ray takes a bare `host:8265` for one of its own protocol and waits a minute for it."""
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


async def _next_or_none(texts: AsyncIterator[str]) -> str | None:
    return await anext(texts, None)
