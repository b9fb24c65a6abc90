"""How much memory and processor time the processes of this session take, and what this machine can still give.

Counted is what the kernel cannot take back: each process's private memory, and shared memory (Ray's object store)
once. Pages of files that are mapped, such as libraries, are left out: they are shared and can be dropped.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

_INTERVAL_S = 1.0


class ResourceUsage:
    """What this process and all below it take together while the block lasts: their most memory, and processor time.

    Linux only; both stay None elsewhere, and where the session's raylet is no descendant: then its workers are not
    seen. consumes: /proc; waits for and is unblocked by: a timer; produces: the maximum and the sum.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._before_s: dict[str, float] = {}
        self._cpu_s: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="footprint")

    @property
    def cpu_s(self) -> float | None:
        """Processor seconds, of all cores together, up to the last look (one a second) at each process."""
        if self.peak_bytes is None:
            return None
        return sum(now - self._before_s.get(pid, 0.0) for pid, now in self._cpu_s.items())

    def __enter__(self) -> "ResourceUsage":
        now = sample_usage(os.getpid())
        self._before_s = now.cpu_s if now else {}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            now = sample_usage(os.getpid())
            if now is not None:
                self.peak_bytes = max(now.num_bytes, self.peak_bytes or 0)
                self._cpu_s |= {pid: s for pid, s in now.cpu_s.items() if s >= self._cpu_s.get(pid, 0.0)}
            if self._stop.wait(_INTERVAL_S):
                return


@dataclass(frozen=True)
class UsageSample:
    """A process and all below it at a moment."""

    num_bytes: int
    cpu_s: dict[str, float]
    """By process id."""


def sample_usage(root: int) -> UsageSample | None:
    """What a process and all below it take now; None where no raylet is among them."""
    statuses = {status["Pid"]: status for status in _statuses()}
    below: dict[str, list[str]] = {}
    for pid, status in statuses.items():
        below.setdefault(status["PPid"], []).append(pid)
    private, shared, has_raylet, left, cpu_s = 0, 0, False, [str(root)], {}
    while left:
        pid = left.pop()
        left += below.get(pid, [])
        status = statuses.get(pid, {})
        private += _bytes(status, "RssAnon")
        shared = max(shared, _bytes(status, "RssShmem"))  # every process maps the same store
        has_raylet |= status.get("Name") == "raylet"
        cpu_s[pid] = _cpu_s(pid)
    return UsageSample(private + shared, cpu_s) if has_raylet else None


def _cpu_s(pid: str) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _statuses() -> list[dict[str, str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # Any process of the machine, whose name of at most 15 bytes may end within a character.
            lines = (folder / "status").read_text(errors="replace").splitlines()
        except OSError:  # it has ended, or is another user's
            continue
        found.append({name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
    return found


def _bytes(status: dict[str, str], name: str) -> int:
    return int(status[name].split()[0]) * 1024 if name in status else 0
