"""How much memory and processor time this process and its descendants use, for an artifact's record.

Counted is memory that the kernel cannot take back: each process's private memory, and shared memory (Ray's object
store) once. Mapped files such as libraries are left out: they are shared and can be dropped.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_INTERVAL_S = 1.0


class ResourceUsage:
    """Peak memory and processor time of this process and its descendants, as a context manager.

    Linux only. Both stay None elsewhere, and where the session's raylet is no descendant, because then the workers
    are not seen. consumes: /proc; waits for and is unblocked by: a timer; produces: the maximum and the sum.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._cpu_s_before: dict[str, float] = {}
        self._cpu_s: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="resource-usage")

    @property
    def cpu_s(self) -> float | None:
        """Processor seconds of all cores together, as of the last sample of each process."""
        if self.peak_bytes is None:
            return None
        return sum(seconds - self._cpu_s_before.get(pid, 0.0) for pid, seconds in self._cpu_s.items())

    def __enter__(self) -> "ResourceUsage":
        sample = sample_usage(os.getpid())
        self._cpu_s_before = sample.cpu_s if sample else {}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            sample = sample_usage(os.getpid())
            if sample is not None:
                self.peak_bytes = max(sample.num_bytes, self.peak_bytes or 0)
                self._cpu_s |= {pid: s for pid, s in sample.cpu_s.items() if s >= self._cpu_s.get(pid, 0.0)}
            if self._stop.wait(_SAMPLE_INTERVAL_S):
                return


@dataclass(frozen=True)
class UsageSample:
    """What a process and its descendants use at a moment."""

    num_bytes: int
    cpu_s: dict[str, float]
    """Processor seconds so far, by process id."""


def sample_usage(root: int) -> UsageSample | None:
    """What a process and its descendants use now; None where no raylet is among them."""
    statuses = {status["Pid"]: status for status in _statuses()}
    children: dict[str, list[str]] = {}
    for pid, status in statuses.items():
        children.setdefault(status["PPid"], []).append(pid)
    private, shared, has_raylet, pending, cpu_s = 0, 0, False, [str(root)], {}
    while pending:
        pid = pending.pop()
        pending += children.get(pid, [])
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
    """The fields of /proc/<pid>/status of every process of the machine."""
    statuses = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # A process's name is cut to 15 bytes, which may end within a character.
            lines = (folder / "status").read_text(errors="replace").splitlines()
        except OSError:  # it has ended, or is another user's
            continue
        statuses.append({name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
    return statuses


def _bytes(status: dict[str, str], name: str) -> int:
    return int(status[name].split()[0]) * 1024 if name in status else 0
