"""Writes the status of a submitted run to its store, where it can be read when the cluster's head does not answer.

A thread writes the current activity of the process (`cluster.progress`) to `submissions/<id>.json` every `_INTERVAL_S`.
It wakes early when the first stage starts and when the run ends.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from cluster.plain import from_plain, to_plain
from cluster.progress import current_activity, format_duration
from cluster.signals import received_signal
from cluster.storage import Storage

_INTERVAL_S = 10.0
"""Interval between two reports."""
_SILENT_S = 60.0
"""A run that has not reported for this long has probably died. It may also be unable to write to the store."""

SUBMISSION_VARIABLE = "RAYMILL_SUBMISSION"
"""The environment variable in which a submitted job finds its own id."""

RunState = Literal["sent", "checking", "running", "succeeded", "failed", "stopped"]
"""`sent`: the job is being submitted, or was submitted but has not started. `checking`: the job has started, but its
first stage has not, so a check may still fail. `stopped`: a signal has ended the run."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStatus:
    """The last report of a run: the content of `submissions/<id>.json`."""

    state: RunState
    time: float
    """Unix time of the report."""
    says: str
    """What the run is doing, or how it ended."""

    @property
    def age_s(self) -> float:
        """Seconds since the report."""
        return max(0.0, time.time() - self.time)

    def __str__(self) -> str:
        text = f"{self.state}, {format_duration(self.age_s)} ago: {self.says}"
        if self.state in ("checking", "running") and self.age_s > _SILENT_S:
            text += (
                "\nthe run has not reported since, so it has probably died; submit the same command again to resume it"
            )
        return text


def record_submission(store: Storage, id: str) -> None:
    """Write the first status of a job, before it is sent to the cluster.

    The run of the job calls `require_same_store`, which looks for this file. If the file is missing, the store of the
    run is another directory than the store of the submitting machine.
    """
    _write(store, id, "sent", "the job has not started yet")


def require_same_store(store: Storage, id: str) -> None:
    """Raises ValueError when the store is a local directory without the status that `record_submission` has written."""
    if store.is_local and not store.exists(_name(id)):
        raise ValueError(
            f"store: {store.url} on the cluster is not the directory of this path on the machine that submitted the "
            "job; use a URL such as s3://bucket/runs, or a path that all machines mount"
        )


@contextmanager
def reporting_status(store: Storage, id: str) -> Iterator[Callable[[], None]]:
    """Report the status of a run to the store while the block runs, and its outcome at the end of the block.

    Yields a function. Call it when all checks have passed and the first stage starts.
    """
    state: RunState = "checking"
    last_error = ""
    wake, ended = threading.Event(), threading.Event()

    def begin() -> None:
        nonlocal state
        state = "running"
        wake.set()

    def write(state: RunState, says: str) -> None:
        nonlocal last_error
        try:
            _write(store, id, state, says)
        except Exception as error:  # file systems raise many kinds of errors, and none of them may stop the run
            if str(error) != last_error:
                log.warning("the status of this run, which `raymill status` shows, cannot be written: %s", error)
            last_error = str(error)

    def report() -> None:
        while not ended.is_set():
            write(state, current_activity() or "the run has started")
            wake.wait(_INTERVAL_S)
            wake.clear()

    thread = threading.Thread(target=report, daemon=True, name="submission-status")
    thread.start()
    outcome: tuple[RunState, str] = ("succeeded", "all stages are done")
    try:
        yield begin
    except KeyboardInterrupt as stop:
        number, resume_point = received_signal(), str(stop)
        signal_name = number.name if number else "KeyboardInterrupt"
        outcome = ("stopped", f"by {signal_name}{resume_point and f'; {resume_point}'}")
        raise
    except BaseException as error:
        outcome = ("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        ended.set()
        wake.set()
        thread.join()
        write(*outcome)


def read_status(store: Storage, id: str) -> RunStatus | None:
    """Return the last report of a run; None if the store has no report of it."""
    return from_plain(RunStatus, store.read_json(_name(id))) if store.exists(_name(id)) else None


def _write(store: Storage, id: str, state: RunState, says: str) -> None:
    store.write_json(_name(id), to_plain(RunStatus(state, time.time(), says)))


def _name(id: str) -> str:
    return f"submissions/{id}.json"
