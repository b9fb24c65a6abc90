"""Measures the memory and CPU time of this process and its descendants, for the record of an artifact.

Memory means memory that the kernel cannot reclaim: the private memory of each process, plus shared memory (Ray's object
store) counted once. Mapped files such as libraries are not counted, because the kernel can drop them from memory.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_INTERVAL_S = 1.0


class ResourceUsage:
    """Measures peak memory and CPU time of this process and its descendants within the block. A context manager.

    `peak_bytes` and `cpu_s` are None if this process has no raylet (Ray's node process) among its descendants, because
    then the workers are not descendants either. They are also None on systems other than Linux.

    A thread reads /proc every `_SAMPLE_INTERVAL_S` and updates `peak_bytes` and `cpu_s`. It wakes early when the block
    ends.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        """The largest `UsageSample.num_bytes` of all samples within the block."""
        self._cpu_s_before: dict[str, float] = {}
        """CPU seconds of each process before the block, by process id."""
        self._cpu_s: dict[str, float] = {}
        """CPU seconds of each process in its last sample, by process id."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_repeatedly, daemon=True, name="resource-usage")

    @property
    def cpu_s(self) -> float | None:
        """CPU seconds of all processes within the block. What a process used after its last sample is not counted."""
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

    def _sample_repeatedly(self) -> None:
        while True:
            sample = sample_usage(os.getpid())
            if sample is not None:
                self.peak_bytes = max(sample.num_bytes, self.peak_bytes or 0)
                # A process that ends while it is sampled has 0 s. Its earlier value is kept.
                self._cpu_s |= {pid: s for pid, s in sample.cpu_s.items() if s >= self._cpu_s.get(pid, 0.0)}
            if self._stop.wait(_SAMPLE_INTERVAL_S):
                return


@dataclass(frozen=True)
class UsageSample:
    """Memory and CPU time of a process and its descendants at one moment."""

    num_bytes: int
    """Sum of the memory of all processes."""
    cpu_s: dict[str, float]
    """CPU seconds since the start of each process, by process id."""


def sample_usage(root_pid: int) -> UsageSample | None:
    """Measure a process and its descendants now. Returns None if there is no raylet among them."""
    statuses = {status["Pid"]: status for status in _process_statuses()}
    children: dict[str, list[str]] = {}
    for pid, status in statuses.items():
        children.setdefault(status["PPid"], []).append(pid)
    private, shared, has_raylet, pending, cpu_s = 0, 0, False, [str(root_pid)], {}
    while pending:
        pid = pending.pop()
        pending += children.get(pid, [])
        status = statuses.get(pid, {})
        private += _status_bytes(status, "RssAnon")
        shared = max(shared, _status_bytes(status, "RssShmem"))  # all processes map the same object store
        has_raylet |= status.get("Name") == "raylet"
        cpu_s[pid] = _process_cpu_s(pid)
    return UsageSample(private + shared, cpu_s) if has_raylet else None


def _process_cpu_s(pid: str) -> float:
    """Return the CPU seconds of a process since its start; 0 if the process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    user_ticks, system_ticks = int(fields[11]), int(fields[12])
    return (user_ticks + system_ticks) / os.sysconf("SC_CLK_TCK")


def _process_statuses() -> list[dict[str, str]]:
    """Return the fields of /proc/<pid>/status of every process on this machine."""
    statuses = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The kernel cuts the name of a process to 15 bytes, which may cut a UTF-8 character.
            lines = (folder / "status").read_text(errors="replace").splitlines()
        except OSError:  # the process has ended, or belongs to another user
            continue
        statuses.append({name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
    return statuses


def _status_bytes(status: dict[str, str], name: str) -> int:
    """Return a memory field of a process status in bytes; 0 if the field is missing."""
    return int(status[name].split()[0]) * 1024 if name in status else 0
