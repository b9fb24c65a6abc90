"""The only right to write a folder, held by a file in it."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from cluster.progress import working
from cluster.storage import Storage

log = logging.getLogger(__name__)

LEASE = "lease.json"
_LEASE_BEAT_S = 5.0
_LEASE_STALE_S = 30.0
_LEASE_SETTLE_S = 0.5


@contextlib.contextmanager
def lease(output: Storage) -> Iterator[Callable[[], None]]:
    """Hold the only right to write an artifact; wait while another living run holds it.

    What it yields raises RuntimeError when the right was lost meanwhile; to be called before the artifact is declared.

    A lease is a small file that its holder renews. It is taken over at once when the holder was a process of this
    machine that is gone, and after `_LEASE_STALE_S` without renewal otherwise, so a killed run blocks nobody for long.
    """
    holder = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}:{time.time_ns()}"
    if not _take_lease(output, holder):
        other = _holder(output)
        log.info("waiting: another run%s is making %s", other, output.url)
        with working(f"waiting for another run{other}, which is making {output.url}"):
            while not _take_lease(output, holder):
                time.sleep(1.0)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_LEASE_BEAT_S):
            with contextlib.suppress(OSError):  # a store that fails for a while; the next beat tries again
                if not _holds(output, holder):
                    return
                output.write_bytes(LEASE, _lease_of(holder))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield partial(_require_lease, output, holder)
    finally:
        stop.set()
        thread.join()
        if _holds(output, holder):
            output.remove(LEASE)


def _require_lease(output: Storage, holder: str) -> None:
    """Raise RuntimeError when another run has taken the lease over, so that only one says what the artifact is."""
    if not _holds(output, holder):
        raise RuntimeError(
            f"this run stood still for more than {_LEASE_STALE_S:.0f} s and another one has taken {output.url} over; "
            "wait for that one"
        )


def _holds(output: Storage, holder: str) -> bool:
    try:
        return output.read_json(LEASE)["holder"] == holder
    except FileNotFoundError:
        return False


def _holder(output: Storage) -> str:
    """` (pid 17 on node-1)`: who holds the lease, for a reader; empty when it is free by now."""
    try:
        lease = output.read_json(LEASE)
    except FileNotFoundError:
        return ""
    return f" (pid {lease['pid']} on {lease['host']})"


def _take_lease(output: Storage, holder: str) -> bool:
    """Whether `holder` now holds the lease: it was free, or its holder is gone."""
    if output.create_bytes(LEASE, _lease_of(holder)):
        return True
    try:
        lease = output.read_json(LEASE)
        if not _abandoned(lease):
            return False
        output.write_bytes(LEASE, _lease_of(holder))
        time.sleep(_LEASE_SETTLE_S)  # of several that take it over at once the last writer has it
        return output.read_json(LEASE)["holder"] == holder
    except FileNotFoundError:  # released or taken over between two looks
        return False


def _lease_of(holder: str) -> bytes:
    lease = {"holder": holder, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    return json.dumps(lease).encode()


def _abandoned(lease: Mapping[str, Any]) -> bool:
    if time.time() - lease["time"] > _LEASE_STALE_S:
        return True
    return lease["host"] == socket.gethostname() and not _process_lives(lease["pid"])


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
