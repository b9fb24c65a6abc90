"""The status of a submitted run, kept in its store for whoever asks when the cluster's head no longer answers.

The reporting thread consumes: what the process is doing (`cluster.progress`); waits for: an interval; is unblocked by:
the clock, the first stage or the end; produces: `submissions/<id>.json`.
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
_SILENT_S = 60.0
"""A run that has not reported for so long is taken to be gone."""

SUBMISSION_VARIABLE = "RAYMILL_SUBMISSION"
"""The environment variable in which a submitted job finds its id."""

RunState = Literal["sent", "checking", "running", "succeeded", "failed", "stopped"]
"""`checking` is everything before the first stage begins, when the run may still be refused."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStatus:
    """What the store knows of a run: the content of `submissions/<id>.json`."""

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
            text += "\nit has not reported since, so it is gone; submit the same command again to resume"
        return text


def record_submission(store: Storage, id: str) -> None:
    """Record that a job was sent, which its run must find: otherwise it sees another store than the submitter."""
    _write(store, id, "sent", "it has not begun")


def require_same_store(store: Storage, id: str) -> None:
    """Raises ValueError when this process sees another store than the one in which the submission was recorded."""
    if store.is_local and not store.exists(_name(id)):
        raise ValueError(
            f"store: {store.url} is a path of the machine that submitted, and another directory here; take a URL such "
            "as s3://bucket/runs, or a path that all machines mount"
        )


@contextmanager
def reporting_status(store: Storage, id: str) -> Iterator[Callable[[], None]]:
    """Report the status of a run to the store for as long as the block lasts, and how it ended.

    Yields a function to call when all checks have passed and the first stage begins.
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
        except Exception as error:  # every file system has its own errors, and the run itself matters more
            if str(error) != last_error:
                log.warning("the status of this run, for `raymill status`, cannot be written: %s", error)
            last_error = str(error)

    def report() -> None:
        while not ended.is_set():
            write(state, current_activity() or "it has begun")
            wake.wait(_INTERVAL_S)
            wake.clear()

    thread = threading.Thread(target=report, daemon=True, name="submission-status")
    thread.start()
    outcome: tuple[RunState, str] = ("succeeded", "all stages are done")
    try:
        yield begin
    except KeyboardInterrupt as stop:
        number, where = received_signal(), str(stop)
        outcome = ("stopped", f"by {number.name if number else 'KeyboardInterrupt'}{where and f'; {where}'}")
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
    """The last status that a run reported; None where the store knows nothing of it."""
    return from_plain(RunStatus, store.read_json(_name(id))) if store.exists(_name(id)) else None


def _write(store: Storage, id: str, state: RunState, says: str) -> None:
    store.write_json(_name(id), to_plain(RunStatus(state, time.time(), says)))


def _name(id: str) -> str:
    return f"submissions/{id}.json"
