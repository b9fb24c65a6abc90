"""A job is sent to a head that is still coming up, and followed however the head or its streams fail."""

import asyncio
import http.server
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster import submission as module
from cluster.storage import Storage
from cluster.submission import HeadUnreachable, Submission, job_client, query_job, send_when_agent_ready
from cluster.submission_status import record_submission

NO_AGENT = "Request failed with status code 500: No available agent to submit job, please try again later.."


def answering(*answers: str | None) -> tuple[Callable[[], None], list[str | None]]:
    """A sender that is given one answer after the other (None is a success), and what it has been given."""
    left, given = list(answers), []

    def send() -> None:
        given.append(left.pop(0) if len(left) > 1 else left[0])
        if given[-1] is not None:
            raise RuntimeError(given[-1])

    return send, given


def test_a_head_without_an_agent_is_waited_for() -> None:
    send, given = answering(NO_AGENT, NO_AGENT, None)
    send_when_agent_ready(send, pause_s=0.0)
    assert given == [NO_AGENT, NO_AGENT, None]


def test_another_refusal_is_reported_at_once() -> None:
    send, given = answering("Request failed with status code 400: this id is taken", None)
    with pytest.raises(RuntimeError, match="this id is taken"):
        send_when_agent_ready(send, pause_s=0.0)
    assert len(given) == 1


def test_an_agent_that_never_comes_ends_the_wait_at_its_limit() -> None:
    send, given = answering(NO_AGENT)
    with pytest.raises(RuntimeError, match="No available agent"):
        send_when_agent_ready(send, limit_s=0.05, pause_s=0.01)
    assert len(given) > 1


class Head:
    """A Jobs API with one job, whose log is five pieces in a stream that breaks after each two; the job ends with the
    last piece."""

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
def reached(monkeypatch: pytest.MonkeyPatch) -> Callable[[Head], Head]:
    """Makes a head the one that is reached; what is waited for is short."""
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


def test_a_log_whose_stream_breaks_goes_on_where_it_was_and_says_so(
    reached: Callable[[Head], Head], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    head = reached(Head())
    assert "".join(Submission("a").logs()) == "".join(head.pieces)
    assert head.streams == 3
    assert caplog.text.count("the stream of the log broke (RuntimeError: WebSocket connection closed") == 2
    assert (told := query_job(Submission("a"), None)).exit_code == 0 and told.describe_outcome() == "job a succeeded"


def test_a_stream_that_only_breaks_ends_also_when_the_job_has_failed(reached: Callable[[Head], Head]) -> None:
    class Breaking(Head):
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            self.streams += 1
            raise RuntimeError("no such agent")
            yield

    for status in (JobStatus.RUNNING, JobStatus.FAILED):
        head = reached(Breaking())
        head.status = status
        with pytest.raises(
            HeadUnreachable, match=r"the log of job a cannot be read: the stream broke 6 times in a row"
        ):
            list(Submission("a").logs())
        assert head.streams == 6
    assert query_job(Submission("a"), None).describe_outcome() == "job a FAILED: Job is FAILED"
    assert query_job(Submission("a"), None).exit_code == 3


def test_a_stream_that_is_closed_at_once_or_outlives_the_job_ends(reached: Callable[[Head], Head]) -> None:
    class Closed(Head):
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            return
            yield

    class Open(Head):
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            self.status = JobStatus.SUCCEEDED
            await asyncio.sleep(600)
            yield ""

    reached(Closed())
    with pytest.raises(HeadUnreachable, match="it was closed although the job is RUNNING"):
        list(Submission("a").logs())
    reached(Open())
    with pytest.raises(HeadUnreachable, match="it stayed open after the end of the job"):
        list(Submission("a").logs())


def test_a_head_that_vanishes_under_a_silent_stream_is_noticed(reached: Callable[[Head], Head]) -> None:
    class Vanishing(Head):
        def list_jobs(self) -> list[JobDetails]:
            if self.streams:
                raise ConnectionError("timed out")
            return super().list_jobs()

        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            self.streams += 1
            await asyncio.sleep(600)
            yield ""

    reached(Vanishing())
    with pytest.raises(HeadUnreachable, match="has not answered for 0 s; the head, and with it the driver of job a"):
        list(Submission("a").logs())


def test_a_head_in_trouble_is_a_sentence_or_leaves_the_word_to_the_store(
    reached: Callable[[Head], Head], tmp_path: Path
) -> None:
    class Troubled(Head):
        def list_jobs(self) -> list[JobDetails]:
            raise RuntimeError("Request failed with status code 500: Internal Server Error.")

    reached(Troubled())
    store = Storage(str(tmp_path))
    for call in (lambda: query_job(Submission("a"), store), Submission("a").stop):
        with pytest.raises(HeadUnreachable, match=r"the cluster's head does not answer \(RuntimeError: .* 500"):
            call()
    record_submission(store, "a")
    told = query_job(Submission("a"), store)
    assert (told.status, told.exit_code, told.is_known_to_head) == ("UNKNOWN", 1, False)
    assert "status code 500" in told.describe_outcome() and "its run: sent, " in told.describe_outcome()


def test_a_stop_says_what_became_of_it(reached: Callable[[Head], Head]) -> None:
    head = reached(Head())
    assert Submission("a").stop().startswith("job a was asked to stop, which takes up to 20 s")
    assert head.stopped == ["a"]
    head.status = JobStatus.STOPPED
    assert Submission("a").stop() == "job a had already ended: STOPPED"
    assert head.stopped == ["a"]


def test_a_machine_that_takes_a_connection_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """The port of a server on loopback that says which Ray it is."""

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
