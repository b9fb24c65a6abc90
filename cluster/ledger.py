"""What a submitted run says of itself, in the store: for whoever asks when the cluster's head no longer answers.

consumes: what the process says (cluster.progress); waits for: an interval; produces: `submissions/<id>.json`.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.progress import duration, said
from cluster.storage import Storage

_BEAT_S = 10.0
_SILENT_S = 60.0
"""From then on a run that says nothing is taken for gone."""

SUBMISSION = "RAYMILL_SUBMISSION"
"""The variable in which a submitted job finds its id."""

log = logging.getLogger(__name__)


def sent(store: Storage, id: str) -> None:
    """Note that a job was sent: what its run must find, or it sees another store than the one who submits."""
    store.write_json(_name(id), {"state": "sent", "time": time.time(), "says": "it has not begun"})


def require_sent(store: Storage, id: str) -> None:
    """Raises ValueError when the store that this process sees is not the one in which the submission was noted."""
    if store.is_local and not store.exists(_name(id)):
        raise ValueError(
            f"store: {store.url} is a path of the machine that submitted, and another directory here; take a URL such "
            "as s3://bucket/runs, or a path that all machines mount"
        )


@contextmanager
def telling(store: Storage, id: str) -> Iterator[None]:
    """Keep the ledger of a run for as long as the block lasts, and how it ended."""
    stop = threading.Event()

    def write(state: str, says: str) -> None:
        try:
            store.write_json(_name(id), {"state": state, "time": time.time(), "says": says})
        except OSError as error:  # a store that fails for a while: the next beat tells again
            log.debug("the ledger is not written: %s", error)

    def beat() -> None:
        write("running", said() or "it has begun")
        while not stop.wait(_BEAT_S):
            write("running", said() or "between two stages")

    thread = threading.Thread(target=beat, daemon=True, name="ledger")
    thread.start()
    end = ("ended", "it was ended")
    try:
        yield
        end = ("succeeded", "all of it stands")
    except BaseException as error:
        end = ("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        stop.set()
        thread.join()
        write(*end)


def read_ledger(store: Storage, id: str) -> str | None:
    """A sentence: what the run last said, and how long ago; None where the store knows nothing of it."""
    if not store.exists(_name(id)):
        return None
    entry: dict[str, Any] = store.read_json(_name(id))
    age_s = max(0.0, time.time() - entry["time"])
    told = f"{entry['state']}, {duration(age_s)} ago: {entry['says']}"
    if entry["state"] == "running" and age_s > _SILENT_S:
        told += "\nit has been silent since, so it is gone; the same submit goes on from its last stage or checkpoint"
    return told


def _name(id: str) -> str:
    return f"submissions/{id}.json"
