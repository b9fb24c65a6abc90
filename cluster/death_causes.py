"""Why a process ended, read from its exit code, its log and Ray's report; certain facts only, never Ray's guesses."""

import re
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from cluster.worker_errors import innermost_frame

_FATAL = {
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Floating point exception": signal.SIGFPE,
    "Floating-point exception": signal.SIGFPE,
    "Illegal instruction": signal.SIGILL,
}
"""What faulthandler writes into a worker's log before the signal ends it."""


LOST_WITH_NODE = "was lost with its node"


def killed_by_signal(number: int) -> str:
    """`was killed by signal 9 (SIGKILL)`."""
    return f"was killed by signal {number} ({signal.Signals(number).name})"


def exit_cause(code: int) -> str:
    """What an exit code says, as `subprocess` gives it: negative for a signal."""
    return killed_by_signal(-code) if code < 0 else f"ended by itself with exit code {code}"


def fatal_signal_in_log(log: str) -> str | None:
    """What a worker's log says of a signal that ended it; None where it says nothing."""
    found = re.search(r"^Fatal Python error: (.+)$", log, re.MULTILINE)
    number = _FATAL.get(found[1].strip()) if found else None
    if number is not None:
        frame = innermost_frame(log[found.start() :], is_innermost_first=True) if found else None
        return killed_by_signal(number) + (f" at {frame}" if frame else "")
    if found := re.search(r"\*\*\* (SIG[A-Z]+) received at time", log):
        return killed_by_signal(signal.Signals[found[1]])
    return None


def cause_in_report(report: str) -> str | None:
    """What Ray's report of a death knows for certain; None where it would only guess."""
    if re.search(r"OutOfMemoryError|running low on memory|memory usage threshold|memory monitor", report):
        found = re.search(r"memory used was ([^;,.]*GB / [0-9.]+GB)[^.]*", report)
        return "ran out of memory: Ray's memory monitor ended it" + (f" (node: {found[1]})" if found else "")
    if re.search(r"receives a SIGTERM|SIGTERM (?:handler|received)", report):
        return killed_by_signal(signal.SIGTERM)
    if found := re.search(r"exits? with an? (?:exit )?code[ =]*(-?\d+)", report):
        return exit_cause(int(found[1]))
    if re.search(
        r"[Nn]ode (?:it was running on is|was|has been|has|is) (?:terminated|dead|died|lost|crashed|preempted)", report
    ):
        return LOST_WITH_NODE
    if re.search(r"lost due to node failure|local raylet died", report):
        return LOST_WITH_NODE
    return None


def pid_in_report(report: str) -> int | None:
    """The process id in Ray's report of a death or of an exception; of several, where one met another's, the last."""
    found = re.findall(r"\bpid: (\d+)|Worker PID: (\d+)|\(pid=(\d+), ip=", report)
    return int(next(filter(None, found[-1]))) if found else None


def ip_in_report(report: str) -> str:
    """The node's address in the same report; empty where it has none."""
    found = re.findall(r"(?:\bip|\bIP|IP address)(?:: |=)([\w.:]+)", report)
    return found[-1] if found else ""
