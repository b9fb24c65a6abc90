"""Tests of the status that a run writes to its store: its current activity and its outcome."""

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import submission_status
from cluster.progress import show_activity
from cluster.signals import StoppedBySignal
from cluster.storage import Storage
from cluster.submission_status import RunStatus, read_status, record_submission, reporting_status, require_same_store


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def entry(store: Storage) -> RunStatus:
    found = read_status(store, "a")
    assert found is not None
    return found


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_store_without_the_submission_is_rejected(store: Storage) -> None:
    with pytest.raises(ValueError, match="is not the directory of this path on the machine that submitted"):
        require_same_store(store, "a")
    record_submission(store, "a")
    require_same_store(store, "a")
    assert str(entry(store)).startswith("sent, 0 s ago")


def test_the_store_contains_the_last_report_and_the_outcome_of_a_run(store: Storage) -> None:
    with (
        pytest.raises(RuntimeError),
        show_activity("sft  step 3 of 10  loss 2.1"),
        reporting_status(store, "a") as begin,
    ):
        wait_for(lambda: read_status(store, "a") is not None)
        assert entry(store).state == "checking"
        begin()  # is reported at once
        wait_for(lambda: "running, 0 s ago: sft  step 3 of 10  loss 2.1" in str(entry(store)))
        raise RuntimeError("no more")
    assert str(entry(store)).endswith("s ago: RuntimeError: no more")
    store.write_json("submissions/a.json", {"state": "running", "time": time.time() - 300, "says": "sft"})
    assert "not reported since, so it has probably died" in str(entry(store))


def test_the_report_of_a_stopped_run_contains_the_signal_and_the_resume_point(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission_status, "received_signal", lambda: signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), reporting_status(store, "a"):
        raise StoppedBySignal("sft resumes from step 3 of 10")
    assert str(entry(store)) == "stopped, 0 s ago: by SIGTERM; sft resumes from step 3 of 10"
    with pytest.raises(KeyboardInterrupt), reporting_status(store, "a"):
        raise KeyboardInterrupt
    assert str(entry(store)) == "stopped, 0 s ago: by SIGTERM"


def test_a_store_that_cannot_be_written_does_not_replace_the_error_of_the_run(
    store: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Storage, name: str, value: Any) -> None:
        raise TypeError("no such bucket")

    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(Storage, "write_json", refuse)
    with pytest.raises(ValueError, match="steps: 0"), reporting_status(store, "a"):
        raise ValueError("steps: 0 must be at least 1")
    assert caplog.text.count("no such bucket") == 1
