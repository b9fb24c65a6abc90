"""What a submitted run says of itself, in the store: for whoever asks when the cluster's head no longer answers.

consumes: what the process says (cluster.progress); waits for: an interval; produces: `submissions/<id>.json`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from cluster.progress import current_activity, format_duration
from cluster.signals import received_signal
from cluster.storage import Storage

_BEAT_S = 10.0
_SILENT_S = 60.0
"""From then on a run that says nothing is taken for gone."""

SUBMISSION_VARIABLE = "RAYMILL_SUBMISSION"
"""The variable in which a submitted job finds its id."""

RunState = Literal["sent", "checking", "running", "succeeded", "failed", "stopped"]
"""Of a run: `checking` is all that comes before its first stage, which may yet be refused."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStatus:
    """What the store knows of a run."""

    state: RunState
    says: str
    """What the run does, or how it ended."""
    age_s: float

    def __str__(self) -> str:
        text = f"{self.state}, {format_duration(self.age_s)} ago: {self.says}"
        if self.state in ("checking", "running") and self.age_s > _SILENT_S:
            text += "\nit has been silent since, so it is gone; the same submit goes on from what it has finished"
        return text


def note_sent(store: Storage, id: str) -> None:
    """Note that a job was sent: what its run must find, or it sees another store than the one who submits."""
    _write(store, id, "sent", "it has not begun")


def require_same_store(store: Storage, id: str) -> None:
    """Raises ValueError when the store that this process sees is not the one in which the submission was noted."""
    if store.is_local and not store.exists(_name(id)):
        raise ValueError(
            f"store: {store.url} is a path of the machine that submitted, and another directory here; take a URL such "
            "as s3://bucket/runs, or a path that all machines mount"
        )


@contextmanager
def reporting_status(store: Storage, id: str) -> Iterator[Callable[[], None]]:
    """Keep the ledger of a run for as long as the block lasts, and how it ended.

    What it yields is to be called when all checks are passed and the first stage begins.
    """
    state: RunState = "checking"
    trouble = ""
    wake, ended = threading.Event(), threading.Event()

    def begin() -> None:
        nonlocal state
        state = "running"
        wake.set()

    def write(state: RunState, says: str) -> None:
        nonlocal trouble
        try:
            _write(store, id, state, says)
        except Exception as error:  # every file system has errors of its own, and the run's own outcome comes first
            if str(error) != trouble:
                log.warning("the store does not take what this run says of itself, for `raymill status`: %s", error)
            trouble = str(error)

    def beat() -> None:
        while not ended.is_set():
            write(state, current_activity() or "it has begun")
            wake.wait(_BEAT_S)
            wake.clear()

    thread = threading.Thread(target=beat, daemon=True, name="ledger")
    thread.start()
    end: tuple[RunState, str] = ("succeeded", "all of it stands")
    try:
        yield begin
    except KeyboardInterrupt as stop:
        number, where = received_signal(), str(stop)
        end = ("stopped", f"by {number.name if number else 'KeyboardInterrupt'}{where and f'; {where}'}")
        raise
    except BaseException as error:
        end = ("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        ended.set()
        wake.set()
        thread.join()
        write(*end)


def read_status(store: Storage, id: str) -> RunStatus | None:
    """What the run last said; None where the store knows nothing of it."""
    if not store.exists(_name(id)):
        return None
    entry: dict[str, Any] = store.read_json(_name(id))
    return RunStatus(entry["state"], entry["says"], max(0.0, time.time() - entry["time"]))


def _write(store: Storage, id: str, state: RunState, says: str) -> None:
    store.write_json(_name(id), {"state": state, "time": time.time(), "says": says})


def _name(id: str) -> str:
    return f"submissions/{id}.json"
