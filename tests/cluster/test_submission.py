"""Tests of sending jobs to a head that is starting, and of following their logs when the head or the stream fails."""

import asyncio
import http.server
import json
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster import submission as module
from cluster.storage import Storage
from cluster.submission import HeadFailed, Submission, job_client, query_job, send_when_agent_ready
from cluster.submission_status import record_submission

NO_AGENT = "Request failed with status code 500: No available agent to submit job, please try again later.."


def answering(*answers: str | None) -> tuple[Callable[[], None], list[str | None]]:
    """Return a `send` function that gets one of the answers in each call (None is success), and the answers so far."""
    remaining, given = list(answers), []

    def send() -> None:
        given.append(remaining.pop(0) if len(remaining) > 1 else remaining[0])
        if given[-1] is not None:
            raise RuntimeError(given[-1])

    return send, given


def test_sending_is_repeated_while_the_head_has_no_agent() -> None:
    send, given = answering(NO_AGENT, NO_AGENT, None)
    send_when_agent_ready(send, pause_s=0.0)
    assert given == [NO_AGENT, NO_AGENT, None]


def test_any_other_rejection_is_raised_at_once() -> None:
    send, given = answering("Request failed with status code 400: this id is taken", None)
    with pytest.raises(RuntimeError, match="this id is taken"):
        send_when_agent_ready(send, pause_s=0.0)
    assert len(given) == 1


def test_waiting_for_an_agent_ends_at_its_limit() -> None:
    send, given = answering(NO_AGENT)
    with pytest.raises(RuntimeError, match="No available agent"):
        send_when_agent_ready(send, limit_s=0.05, pause_s=0.01)
    assert len(given) > 1


class Head:
    """A Jobs API with one job, which ends with the last of five log pieces. The n-th stream breaks after 2n pieces."""

    pieces = ("one\n", "two\n", "three\nfour\n", "five\n", "six\n")

    def __init__(self) -> None:
        self.status, self.streams = JobStatus.RUNNING, 0
        self.stopped: list[str] = []

    def list_jobs(self) -> list[JobDetails]:
        message = f"Job is {self.status.value}"
        given = {"type": JobType.SUBMISSION, "submission_id": "a", "entrypoint": "raymill"}
        return [JobDetails(**given, status=self.status, message=message, driver_exit_code=3)]

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        self.streams += 1
        for number, piece in enumerate(self.pieces):
            if number == 2 * self.streams:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield piece
        self.status = JobStatus.SUCCEEDED

    def stop_job(self, id: str) -> bool:
        self.stopped.append(id)
        return True


@pytest.fixture
def use_head(monkeypatch: pytest.MonkeyPatch) -> Callable[[Head], Head]:
    """Return a function that makes a fake head the one that all calls use. Waits are short."""
    for name, value in {
        "_STATUS_POLL_S": 0.01,
        "_SILENT_HEAD_S": 0.3,
        "_QUIET_S": 0.1,
        "_QUIET_IN_LOG_S": 0.1,
    }.items():
        monkeypatch.setattr(module, name, value)

    def reach(head: Head) -> Head:
        monkeypatch.setattr(module, "job_client", lambda address: head)
        return head

    return reach


def test_a_broken_log_stream_is_reopened_and_continues_without_a_gap(
    use_head: Callable[[Head], Head], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    head = use_head(Head())
    assert "".join(Submission("a").logs()) == "".join(head.pieces)
    assert head.streams == 3
    assert caplog.text.count("the stream of the log broke (RuntimeError: WebSocket connection closed") == 2
    report = query_job(Submission("a"), None)
    assert report.exit_code == 0 and report.describe_outcome() == "job a succeeded"


def test_a_stream_that_always_breaks_is_given_up_even_if_the_job_has_failed(use_head: Callable[[Head], Head]) -> None:
    class Breaking(Head):
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            self.streams += 1
            raise RuntimeError("no such agent")
            yield

    for status in (JobStatus.RUNNING, JobStatus.FAILED):
        head = use_head(Breaking())
        head.status = status
        with pytest.raises(HeadFailed, match=r"the log of job a cannot be read: the stream broke 6 times in a row"):
            list(Submission("a").logs())
        assert head.streams == 6
    assert query_job(Submission("a"), None).describe_outcome() == "job a FAILED: Job is FAILED"
    assert query_job(Submission("a"), None).exit_code == 3


def test_a_stream_that_closes_at_once_or_stays_open_after_the_job_is_given_up(use_head: Callable[[Head], Head]) -> None:
    class Closed(Head):
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            return
            yield

    class Open(Head):
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            self.status = JobStatus.SUCCEEDED
            await asyncio.sleep(600)
            yield ""

    use_head(Closed())
    with pytest.raises(HeadFailed, match="it was closed although the job is RUNNING"):
        list(Submission("a").logs())
    use_head(Open())
    with pytest.raises(HeadFailed, match="it stayed open after the end of the job"):
        list(Submission("a").logs())


def test_a_dead_head_is_noticed_while_the_stream_is_silent(use_head: Callable[[Head], Head]) -> None:
    class Vanishing(Head):
        def list_jobs(self) -> list[JobDetails]:
            if self.streams:
                raise ConnectionError("timed out")
            return super().list_jobs()

        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            self.streams += 1
            await asyncio.sleep(600)
            yield ""

    use_head(Vanishing())
    with pytest.raises(HeadFailed, match="has not answered for 0 s; the head, and with it the driver of job a"):
        list(Submission("a").logs())


def test_a_failing_head_is_an_error_unless_the_store_knows_the_run(
    use_head: Callable[[Head], Head], tmp_path: Path
) -> None:
    class Troubled(Head):
        def list_jobs(self) -> list[JobDetails]:
            raise RuntimeError("Request failed with status code 500: Internal Server Error.")

    use_head(Troubled())
    store = Storage(str(tmp_path))
    for call in (lambda: query_job(Submission("a"), store), Submission("a").stop):
        with pytest.raises(HeadFailed, match=r"the cluster's head does not answer \(RuntimeError: .* 500"):
            call()
    record_submission(store, "a")
    report = query_job(Submission("a"), store)
    assert (report.status, report.exit_code, report.is_known_to_head) == ("UNKNOWN", 1, False)
    assert "status code 500" in report.describe_outcome() and "its run: sent, " in report.describe_outcome()


def test_stop_returns_what_has_happened(use_head: Callable[[Head], Head]) -> None:
    head = use_head(Head())
    assert Submission("a").stop().startswith("job a was asked to stop, which takes up to 20 s")
    assert head.stopped == ["a"]
    head.status = JobStatus.STOPPED
    assert Submission("a").stop() == "job a had already ended: STOPPED"
    assert head.stopped == ["a"]


def test_a_machine_that_accepts_a_connection_but_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CALL_LIMITS_S", (0.3, 0.3))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(ValueError, match="--address: the Jobs API at .* cannot be used"):
            job_client(f"127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 10


@pytest.fixture
def dashboard() -> Iterator[int]:
    """The port of a local server that answers with the version of Ray."""

    class Version(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": "2.60.0"}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Version) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_dashboard_on_this_machine_is_reached_without_the_proxy(
    dashboard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    job_client(f"127.0.0.1:{dashboard}")


@pytest.mark.parametrize("variable", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_a_given_address_is_used_instead_of_the_one_in_the_environment(
    dashboard: int, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert job_client(f"127.0.0.1:{dashboard}")._address == f"http://127.0.0.1:{dashboard}"
    assert os.environ[variable] == "http://127.0.0.1:9"
