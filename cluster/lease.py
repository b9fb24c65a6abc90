"""Leases. A lease gives one run the exclusive right to write to a folder: the folder of one artifact, or the folder of
the whole store.

The lease is a small file in the folder, lease.json. The run that holds the lease renews the file every few seconds. If
that run is killed, the lease expires and another run takes it over.
"""

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

from cluster.progress import show_activity
from cluster.storage import Storage

log = logging.getLogger(__name__)

LEASE_FILE = "lease.json"
_RENEWAL_INTERVAL_S = 5.0
_EXPIRY_S = 30.0
"""The time without renewal after which another run may take a lease over."""
_SETTLE_S = 0.5
"""The wait between overwriting an abandoned lease and reading it back. Several runs may overwrite the lease at the same
time. After the wait only the last of them still finds its own lease."""


@dataclass(frozen=True)
class _Lease:
    """The content of lease.json."""

    holder: str
    """A unique name of the acquisition, made of the host, the process, the thread and the time."""
    host: str
    pid: int
    time: float
    """Unix time of the last renewal."""

    @staticmethod
    def renewed_now(holder: str) -> "_Lease":
        """A lease of `holder`, in this process, that counts as renewed at the present time."""
        return _Lease(holder, socket.gethostname(), os.getpid(), time.time())

    @staticmethod
    def read(folder: Storage) -> "_Lease":
        """The lease of a folder, even if it is abandoned. Raises FileNotFoundError if the folder has no lease."""
        return _Lease(**folder.read_json(LEASE_FILE))

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def is_abandoned(self) -> bool:
        """Whether the lease has expired, or its holder is a process of this machine that has ended."""
        if time.time() - self.time > _EXPIRY_S:
            return True
        return self.host == socket.gethostname() and not _is_alive(self.pid)


@contextlib.contextmanager
def hold_lease(output: Storage) -> Iterator[Callable[[], None]]:
    """Hold the lease of a folder while the block runs. Waits as long as another run holds and renews it.

    Yields a function that raises RuntimeError if this run has lost the lease. Call it right before you mark the
    artifact as complete. If the process that holds the lease ran on this machine and has ended, the lease is taken over
    at once. Any other lease is taken over after `_EXPIRY_S` without renewal.

    A thread renews the lease until the block ends or another run has taken the lease over. The thread writes the
    present time into the lease file every `_RENEWAL_INTERVAL_S`, and wakes early when the block ends.
    """
    holder = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}:{time.time_ns()}"
    if not _try_acquire(output, holder):
        other_run = _describe_holder(output)
        log.info("waiting: another run%s is writing %s", other_run, output.url)
        with show_activity(f"waiting for another run{other_run}, which is writing {output.url}"):
            while not _try_acquire(output, holder):
                time.sleep(1.0)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(_RENEWAL_INTERVAL_S):
            with contextlib.suppress(OSError):  # If the store fails for a while, the next renewal tries again.
                if not _is_held_by(output, holder):
                    return
                output.write_bytes(LEASE_FILE, _Lease.renewed_now(holder).encode())

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
    """Raises RuntimeError if this run no longer holds the lease, so that only one run completes the artifact."""
    if not _is_held_by(output, holder):
        raise RuntimeError(
            f"this run has lost the lease of {output.url}: it did not renew its lease for {_EXPIRY_S:.0f} s and "
            f"another run has taken the lease over, or {LEASE_FILE} was removed; start the command again, and it waits "
            "for other runs"
        )


def _is_held_by(output: Storage, holder: str) -> bool:
    try:
        return _Lease.read(output).holder == holder
    except FileNotFoundError:
        return False


def _describe_holder(output: Storage) -> str:
    """Name the process that holds the lease: ` (pid 17 on node-1)`. Empty if the lease has been released by now."""
    try:
        lease = _Lease.read(output)
    except FileNotFoundError:
        return ""
    return f" (pid {lease.pid} on {lease.host})"


def _try_acquire(output: Storage, holder: str) -> bool:
    """Acquire the lease for `holder` if it is free or abandoned. Returns whether `holder` now holds it."""
    if output.create_bytes(LEASE_FILE, _Lease.renewed_now(holder).encode()):
        return True
    try:
        if not _Lease.read(output).is_abandoned:
            return False
        output.write_bytes(LEASE_FILE, _Lease.renewed_now(holder).encode())
        time.sleep(_SETTLE_S)
        return _is_held_by(output, holder)
    except FileNotFoundError:  # The lease was released between two of the calls above.
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
