"""The exclusive right to write a folder: a small file in it that its holder keeps renewing."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

from cluster.progress import working
from cluster.storage import Storage

log = logging.getLogger(__name__)

LEASE_FILE = "lease.json"
_RENEWAL_INTERVAL_S = 5.0
_EXPIRY_S = 30.0
"""A lease that was not renewed for so long may be taken over."""
_SETTLE_S = 0.5
"""How long to wait after overwriting a lease, so that of several processes that do so the last writer wins."""


@dataclass(frozen=True)
class _Lease:
    """What lease.json says."""

    holder: str
    """Names one acquisition: host, process, thread and time."""
    host: str
    pid: int
    time: float
    """Unix time of the last renewal."""

    @staticmethod
    def now(holder: str) -> "_Lease":
        """A lease that this process holds and renews now."""
        return _Lease(holder, socket.gethostname(), os.getpid(), time.time())

    @staticmethod
    def read(folder: Storage) -> "_Lease":
        """The lease of a folder. Raises FileNotFoundError when nobody holds it."""
        return _Lease(**folder.read_json(LEASE_FILE))

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def is_abandoned(self) -> bool:
        """Whether its holder is gone: not renewed for long, or a process of this machine that has ended."""
        if time.time() - self.time > _EXPIRY_S:
            return True
        return self.host == socket.gethostname() and not _is_alive(self.pid)


@contextlib.contextmanager
def hold_lease(output: Storage) -> Iterator[Callable[[], None]]:
    """Hold the exclusive right to write an artifact; wait while another living run holds it.

    Yields a function that raises RuntimeError when another run has taken the lease over; call it right before the
    artifact is declared complete. The lease of a process of this machine that has ended is taken over at once, any
    other after `_EXPIRY_S` without renewal, so a killed run blocks nobody for long.

    The renewal thread consumes: nothing; waits for: its interval; is unblocked by: the clock or the end of the block;
    produces: a lease file with the present time, until another run has taken it over.
    """
    holder = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}:{time.time_ns()}"
    if not _acquire(output, holder):
        other_run = _describe_holder(output)
        log.info("waiting: another run%s is making %s", other_run, output.url)
        with working(f"waiting for another run{other_run}, which is making {output.url}"):
            while not _acquire(output, holder):
                time.sleep(1.0)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(_RENEWAL_INTERVAL_S):
            with contextlib.suppress(OSError):  # a store that fails for a while; the next renewal tries again
                if not _is_held_by(output, holder):
                    return
                output.write_bytes(LEASE_FILE, _Lease.now(holder).encode())

    thread = threading.Thread(target=renew, daemon=True, name="lease")
    thread.start()
    try:
        yield partial(_require_held, output, holder)
    finally:
        stop.set()
        thread.join()
        if _is_held_by(output, holder):
            output.remove(LEASE_FILE)


def _require_held(output: Storage, holder: str) -> None:
    """Raises RuntimeError when another run has taken the lease over, so that only one declares the artifact."""
    if not _is_held_by(output, holder):
        raise RuntimeError(
            f"this run made no progress for more than {_EXPIRY_S:.0f} s and another one has taken {output.url} over; "
            "wait for that one"
        )


def _is_held_by(output: Storage, holder: str) -> bool:
    try:
        return _Lease.read(output).holder == holder
    except FileNotFoundError:
        return False


def _describe_holder(output: Storage) -> str:
    """` (pid 17 on node-1)`: who holds the lease, for a message; empty when it is free by now."""
    try:
        lease = _Lease.read(output)
    except FileNotFoundError:
        return ""
    return f" (pid {lease.pid} on {lease.host})"


def _acquire(output: Storage, holder: str) -> bool:
    """Whether `holder` now holds the lease: it was free, or its holder is gone."""
    if output.create_bytes(LEASE_FILE, _Lease.now(holder).encode()):
        return True
    try:
        if not _Lease.read(output).is_abandoned:
            return False
        output.write_bytes(LEASE_FILE, _Lease.now(holder).encode())
        time.sleep(_SETTLE_S)
        return _is_held_by(output, holder)
    except FileNotFoundError:  # released or taken over between two reads
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
