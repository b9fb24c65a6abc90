"""Runs commands as jobs on a Ray cluster through Ray's Jobs API: submits a command, follows its log, and stops it.

Ray's client reads the cluster's token from RAY_AUTH_TOKEN (with RAY_AUTH_MODE=token) or from Ray's token file, and
sends it with every request. Secrets must not be part of a runtime environment, because everybody who may list jobs can
read it in the job records.

The head is the cluster's head node. It runs the dashboard with the Jobs API, and records all jobs.
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
from cluster.progress import show_activity
from cluster.storage import Storage
from cluster.submission_status import SUBMISSION_VARIABLE, RunStatus, read_status

_UNFINISHED_STATUSES = (JobStatus.PENDING, JobStatus.RUNNING)
_FINAL_STATUSES = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
_UNKNOWN = "UNKNOWN"
"""Status in a `JobReport` when the head does not know the job or does not answer."""
_STATUS_POLL_S = 0.5
"""Interval at which a head that does not answer is asked again, and the first wait before a broken stream is opened
again."""
_CALL_LIMITS_S = (5.0, 20.0)
"""Time limits of a request: for connecting, and for a pause in the response. Without them, a request to a machine that
is down would wait for minutes."""
_SILENT_HEAD_S = 30.0
"""A head that has not answered for this long is considered dead."""
_NO_AGENT_S = 300.0
"""How long to wait until a new head has a job agent, the process of Ray that starts the jobs."""
_MAX_BREAKS = 5
"""How often in a row the stream of a log may break without new output."""
_STABLE_STREAM_S = 10.0
"""A stream that was open for this long resets the count of breaks, even without new output."""
_QUIET_S = 5.0
"""Where stderr is a terminal, the head is asked for the status of the job after this time without new output."""
_QUIET_IN_LOG_S = 26.0
"""The same time where stderr is not a terminal. It is longer than a running job is ever silent."""
_STOP_WAIT_S = 20
"""Seconds from SIGTERM to SIGKILL when a job is stopped."""
_DASHBOARD_PORT = ":8265"
_DASHBOARD_VARIABLE = "RAY_API_SERVER_ADDRESS"
_HOST_AND_PORT = re.compile(r"[^/\s]+:\d+")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

JOB_VARIABLES = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
"""Environment variables of every job. Ray's default wait of 3 s is too short for an orderly shutdown."""

log = logging.getLogger(__name__)
# Ray's client would also log how each stream of a log ended, as `Submission.logs` does.
logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)


class HeadFailed(JobFailed):
    """The cluster's head does not answer, answers with an error, or cannot deliver a log."""


class _Client(JobSubmissionClient):
    """Ray's Jobs API client, with a time limit for every request and without a proxy for addresses of this machine."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        if urlsplit(self._address).hostname in _LOOPBACK:
            options["proxies"] = {"http": None, "https": None, "all": None}
        return super()._do_request(method, endpoint, timeout=_CALL_LIMITS_S, **options)


@dataclass(frozen=True)
class Submission:
    """A submitted job."""

    id: str
    """Ray's submission id of the job."""
    address: str | None = None
    """Address of the dashboard, such as http://127.0.0.1:8265. None if it was not given (`job_client`)."""

    @cached_property
    def _client(self) -> JobSubmissionClient:
        return job_client(self.address)

    def logs(self) -> Iterator[str]:
        """Yield the output of the job from its beginning, as pieces of text, until the job has ended.

        If the stream breaks, it is opened again and continues after the last character. Raises HeadFailed when the
        head no longer answers or the stream breaks repeatedly, and ValueError when the head does not know the job.
        """
        num_yielded = num_breaks = 0
        while True:
            # The stream begins again at the first character. `num_to_skip` is how many characters from here on were
            # yielded before and are still to be skipped.
            reason, num_to_skip, num_before, started_s = "", num_yielded, num_yielded, time.monotonic()
            try:
                for text in self._stream():
                    new = text[num_to_skip:] if num_to_skip < len(text) else ""
                    num_to_skip = max(0, num_to_skip - len(text))
                    num_yielded += len(new)
                    if new:
                        yield new
            except HeadFailed:
                raise
            except (RuntimeError, OSError, ClientError) as error:
                reason = f"{type(error).__name__}: {error}"
            status = self._details_with_retries().status
            has_ended = status in _FINAL_STATUSES
            if has_ended and not reason:
                return
            reason = reason or f"it was closed although the job is {status.value}"
            is_stable = time.monotonic() - started_s > _STABLE_STREAM_S and not has_ended
            has_advanced = num_yielded > num_before or is_stable
            num_breaks = 0 if has_advanced else num_breaks + 1
            if num_breaks > _MAX_BREAKS:
                raise HeadFailed(
                    f"the log of job {self.id} cannot be read: the stream broke {num_breaks} times in a row ({reason})"
                )
            log.info("the stream of the log broke (%s); opening it again", reason)
            with show_activity("waiting to open the log again"):
                time.sleep(_STATUS_POLL_S * 2**num_breaks)

    def _stream(self) -> Iterator[str]:
        """Yield the output of the job from its beginning until the stream ends or breaks."""
        lines = self._client.tail_job_logs(self.id)
        with asyncio.Runner() as runner:
            while (text := self._next_text(runner, lines)) is not None:
                yield text

    def _next_text(self, runner: asyncio.Runner, lines: AsyncIterator[str]) -> str | None:
        """Return the next text of the stream, or None at its end.

        While the stream is silent, the head is asked for the status of the job, because the head may be dead. Raises
        HeadFailed when the head is dead, and RuntimeError when the stream stays open although the job has ended.
        """
        task = runner.get_loop().create_task(_next_or_none(lines))
        if not _ends_within(runner, task, _QUIET_S if sys.stderr.isatty() else _QUIET_IN_LOG_S):
            job = self._details_with_retries()
            with show_activity(lambda: f"job {self.id} is {job.status.value}; waiting for new output"):
                while not _ends_within(runner, task, _QUIET_S):
                    if job.status in _FINAL_STATUSES:
                        raise RuntimeError("it stayed open after the end of the job")
                    job = self._details_with_retries()
        return task.result()

    def _details_with_retries(self) -> JobDetails:
        """Return `details`. Repeats the request, and raises HeadFailed after `_SILENT_HEAD_S` of failures."""
        deadline_s = time.monotonic() + _SILENT_HEAD_S
        with show_activity("asking the cluster's head"):
            while True:
                try:
                    return self.details()
                except HeadFailed as error:
                    if time.monotonic() > deadline_s:
                        raise HeadFailed(
                            f"the cluster's head has not answered for {_SILENT_HEAD_S:.0f} s; the head, and with "
                            f"it the driver of job {self.id}, has died or cannot be reached (last error: {error})"
                        ) from error
                time.sleep(_STATUS_POLL_S)

    def details(self) -> JobDetails:
        """Return the head's record of the job.

        Raises ValueError when the head does not know the job or when `job_client` cannot connect to the head, and
        HeadFailed when the head does not answer after a connection was made.
        """
        with _asking_head():
            jobs = self._client.list_jobs()
        matching = [job for job in jobs if job.submission_id == self.id]
        if not matching:
            raise ValueError(
                f"no job {self.id!r} on this cluster; check the id, which `raymill submit` has printed (a "
                "head that is restarted forgets its jobs)"
            )
        return matching[0]

    def stop(self) -> str:
        """Ask the head to stop the job, first with SIGTERM. Returns a message for the user.

        Raises the exceptions of `details`.
        """
        status = self.details().status
        if status in _FINAL_STATUSES:
            return f"job {self.id} had already ended: {status.value}"
        with _asking_head():
            self._client.stop_job(self.id)
        return (
            f"job {self.id} was asked to stop, which takes up to {_STOP_WAIT_S} s; `raymill status {self.id}` shows "
            "whether it has stopped. Submit the same command again to resume it."
        )


@contextlib.contextmanager
def _asking_head() -> Iterator[None]:
    """Show a request to the head as the current activity. Its failures are raised as HeadFailed."""
    with show_activity("asking the cluster's head"):
        try:
            yield
        except (OSError, RuntimeError, AuthenticationError) as error:
            raise HeadFailed(f"the cluster's head does not answer ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class JobReport:
    """The state of a job, from the head and the store."""

    id: str
    status: str
    """`PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`. `UNKNOWN` if the head does not know the job or does not
    answer."""
    message: str
    """The head's message about the status, or why there is none. After a failure it includes the end of the log."""
    exit_code: int
    """0 if the job has succeeded. Otherwise the exit code of the job's command, or 1 if the head reports none."""
    run_status: RunStatus | None
    """What the run of the job last reported to the store."""

    @property
    def has_ended(self) -> bool:
        """Whether the head reports that the job has ended."""
        return self.status in [status.value for status in _FINAL_STATUSES]

    @property
    def is_known_to_head(self) -> bool:
        """Whether the head has answered and knows the job."""
        return self.status != _UNKNOWN

    @property
    def has_failed(self) -> bool:
        """Whether the job has ended without success, by the report of its run or of the head."""
        has_run_failed = self.run_status is not None and self.run_status.state in ("failed", "stopped")
        return has_run_failed or (self.has_ended and self.status != JobStatus.SUCCEEDED.value)

    def describe_outcome(self, *, is_log_shown: bool = False) -> str:
        """Return how the job ended and why, or its current state, as a message for the user.

        If the run reported a failure or a stop, that report is the reason. Otherwise, and always with `is_log_shown`,
        the reason is the head's message. With `is_log_shown`, the log lines at the end of that message are left out,
        because the user has seen them.
        """
        if self.status == JobStatus.SUCCEEDED.value:
            return f"job {self.id} succeeded"
        if self.has_failed and self.run_status and self.run_status.state in ("failed", "stopped") and not is_log_shown:
            return f"job {self.id} {self.status}: its run {self.run_status.state}: {self.run_status.says}"
        reason = self.message.partition(", last available logs")[0] if is_log_shown else self.message
        lines = [f"job {self.id} {self.status}: {reason or 'no reason given'}"]
        if not self.has_ended:
            lines.append(self.format_run_status())
        if not self.is_known_to_head and self.exit_code:
            lines.append("Submit the same command again to resume.")
        return "\n".join(filter(None, lines))

    def format_run_status(self) -> str:
        """Return the last report of the run as one or two lines; empty if there is none."""
        if self.run_status is None:
            return ""
        if self.has_ended and self.run_status.state == "sent":
            return f"its run: ended before it reported anything; see `raymill logs {self.id}`"
        return f"its run: {self.run_status}"


def query_job(submission: Submission, store: Storage | None) -> JobReport:
    """Return the state of a job, from the cluster's head and the store.

    Raises the exceptions of `Submission.details` if neither the head nor the store knows the job.
    """
    run_status = None
    try:
        run_status = read_status(store, submission.id) if store else None
    except OSError as error:
        log.warning("store: the status of the run cannot be read from %s (%s)", store.url if store else "", error)
    try:
        job = submission.details()
    except (ValueError, HeadFailed) as error:
        if run_status is None:
            raise
        return JobReport(submission.id, _UNKNOWN, str(error), 0 if run_status.state == "succeeded" else 1, run_status)
    exit_code = 0 if job.status == JobStatus.SUCCEEDED else max(job.driver_exit_code or 0, 0) or 1
    return JobReport(submission.id, job.status.value, job.message or "", exit_code, run_status)


@dataclass(frozen=True)
class SubmitResult:
    """The job of a `submit_once` call, and whether the call has started it."""

    submission: Submission
    outcome: Literal["started", "started again", "already running", "already succeeded"]
    """`started`: the call has started the first attempt. `started again`: the call has started a further attempt.
    `already running`: an attempt exists that is pending or running. `already succeeded`: the last attempt has succeeded
    and its result exists."""


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
    """Submit `command` as a job that runs in a copy of `working_dir`, unless a job of this id exists.

    A job that is pending or running, or has succeeded, is not submitted again. A job that has failed or was stopped, or
    that succeeded but whose result no longer exists, is submitted again as `<id>-2`, `<id>-3`, and so on. The state of
    the last attempt decides whether another one is submitted.

    address: as in `Submission.address`.
    env: environment variables of the job.
    metadata: names and values that the head shows in its record of the job.
    has_result: called when the last attempt has succeeded. Returns whether its result still exists.
    before_sending: called with the id of the new attempt before it is sent. The job reads this id from the environment
        variable RAYMILL_SUBMISSION.

    Raises ValueError when the cluster cannot be reached or rejects the token, and HeadFailed when the head no
    longer answers or does not accept the job.
    """
    client = job_client(address)
    with _asking_head():
        attempts = _find_attempts(client.list_jobs(), id)
    if attempts:
        last = attempts[-1]
        if last.status in _UNFINISHED_STATUSES:
            return SubmitResult(Submission(str(last.submission_id), address), "already running")
        if last.status == JobStatus.SUCCEEDED and has_result():
            return SubmitResult(Submission(str(last.submission_id), address), "already succeeded")
    attempt_id = id if not attempts else f"{id}-{len(attempts) + 1}"
    runtime_env = {
        "working_dir": str(working_dir),
        "env_vars": {**env, **JOB_VARIABLES, SUBMISSION_VARIABLE: attempt_id},
    }
    before_sending(attempt_id)
    send = partial(
        client.submit_job,
        entrypoint=command,
        submission_id=attempt_id,
        runtime_env=runtime_env,
        metadata=dict(metadata),
    )
    try:
        send_when_agent_ready(send)
    except (RuntimeError, OSError) as error:
        # The Jobs API rejects an id that exists. The job exists if another `raymill submit` has sent it in the
        # meantime, or if the head accepted this request and only the response was lost.
        with _asking_head():
            exists = any(job.submission_id == attempt_id for job in client.list_jobs())
        if not exists:
            raise HeadFailed(f"the cluster's head did not accept the job ({error})") from error
        return SubmitResult(Submission(attempt_id, address), "already running")
    return SubmitResult(Submission(attempt_id, address), "started again" if attempts else "started")


def send_when_agent_ready(send: Callable[[], object], *, limit_s: float = _NO_AGENT_S, pause_s: float = 2.0) -> None:
    """Call `send`, and repeat it every `pause_s` seconds while the head has no job agent yet.

    A new head starts its job agent after its dashboard. Raises RuntimeError when the job is rejected for another
    reason, or when there is no agent after `limit_s` seconds.
    """
    deadline_s = time.monotonic() + limit_s
    with show_activity("sending the job"):
        while True:
            try:
                send()
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline_s:
                    raise
            time.sleep(pause_s)


def job_client(address: str | None) -> JobSubmissionClient:
    """Return a client of the cluster's Jobs API. `address` is as in `Submission.address`.

    Without any address (`dashboard_address`), Ray's client looks for a cluster on this machine.

    Raises ValueError when the API cannot be reached or rejects the token.
    """
    try:
        with show_activity("asking the cluster's head"), _overriding_dashboard_address(dashboard_address(address)):
            return _Client()
    except (OSError, RuntimeError, AuthenticationError) as error:
        location = dashboard_address(address) or os.environ.get("RAY_ADDRESS") or "this machine's cluster"
        raise ValueError(
            f"--address: the Jobs API at {location} cannot be used ({error}); pass the dashboard's address, such as "
            "http://127.0.0.1:8265, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token"
        ) from error


@contextlib.contextmanager
def _overriding_dashboard_address(address: str | None) -> Iterator[None]:
    """Set RAY_API_SERVER_ADDRESS of this process to the address within the block, if there is one.

    Ray's client uses this variable, or else RAY_ADDRESS, instead of the address that it is given.
    """
    if address is None:
        yield
        return
    before = os.environ.get(_DASHBOARD_VARIABLE)
    os.environ[_DASHBOARD_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_DASHBOARD_VARIABLE]
        else:
            os.environ[_DASHBOARD_VARIABLE] = before


def dashboard_address(address: str | None) -> str | None:
    """Return the address of the dashboard as a URL.

    This is `address` if it is given, or else RAY_API_SERVER_ADDRESS, or else RAY_ADDRESS if it ends in `:8265`, the
    dashboard's usual port. Returns None if there is none of these.

    Ray would read `host:8265` without `http://` as an address of Ray's own protocol, and wait a minute for an answer.
    """
    address = address or os.environ.get(_DASHBOARD_VARIABLE)
    if not address and os.environ.get("RAY_ADDRESS", "").endswith(_DASHBOARD_PORT):
        address = os.environ["RAY_ADDRESS"]
    return f"http://{address}" if address and _HOST_AND_PORT.fullmatch(address) else address


def _find_attempts(jobs: list[JobDetails], id: str) -> list[JobDetails]:
    """Return the jobs that are attempts of one id, in order: `id`, `id-2`, `id-3`, …"""
    attempts: list[tuple[int, JobDetails]] = []
    for job in jobs:
        base, _, number = (job.submission_id or "").rpartition("-")
        if job.submission_id == id:
            attempts.append((1, job))
        elif base == id and number.isdigit():
            attempts.append((int(number), job))
    return [job for _, job in sorted(attempts, key=lambda attempt: attempt[0])]


def _ends_within(runner: asyncio.Runner, task: asyncio.Task[Any], seconds: float) -> bool:
    """Wait for a task, at most for some seconds. Returns whether it has ended."""
    runner.run(asyncio.wait({task}, timeout=seconds))
    return task.done()


async def _next_or_none(texts: AsyncIterator[str]) -> str | None:
    return await anext(texts, None)
