"""Why a process ended, read from its exit code, its log and Ray's report.

Ray's reports list several guesses; only what they state for certain is used here.
"""

import re
import signal

from cluster.worker_errors import innermost_frame

_FATAL_ERRORS = {
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Floating point exception": signal.SIGFPE,
    "Floating-point exception": signal.SIGFPE,
    "Illegal instruction": signal.SIGILL,
}
"""What faulthandler writes into a worker's log before the signal ends the worker."""

LOST_WITH_NODE = "was lost with its node"


def signal_cause(number: int) -> str:
    """`was killed by signal 9 (SIGKILL)`."""
    return f"was killed by signal {number} ({signal.Signals(number).name})"


def exit_cause(code: int) -> str:
    """The cause that an exit code tells, as `subprocess` gives it: negative for a signal."""
    return signal_cause(-code) if code < 0 else f"ended by itself with exit code {code}"


def cause_in_log(log: str) -> str | None:
    """The fatal signal that a worker's log reports, with the frame it came in; None when the log reports none."""
    match = re.search(r"^Fatal Python error: (.+)$", log, re.MULTILINE)
    number = _FATAL_ERRORS.get(match[1].strip()) if match else None
    if match and number is not None:
        frame = innermost_frame(log[match.start() :], is_innermost_first=True)
        return signal_cause(number) + (f" at {frame}" if frame else "")
    if match := re.search(r"\*\*\* (SIG[A-Z]+) received at time", log):
        return signal_cause(signal.Signals[match[1]])
    return None


def cause_in_report(report: str) -> str | None:
    """The cause that Ray's report of a death states for certain; None when it only guesses."""
    if re.search(r"OutOfMemoryError|running low on memory|memory usage threshold|memory monitor", report):
        match = re.search(r"memory used was ([^;,.]*GB / [0-9.]+GB)[^.]*", report)
        return "ran out of memory: Ray's memory monitor ended it" + (f" (node: {match[1]})" if match else "")
    if re.search(r"receives a SIGTERM|SIGTERM (?:handler|received)", report):
        return signal_cause(signal.SIGTERM)
    if match := re.search(r"exits? with an? (?:exit )?code[ =]*(-?\d+)", report):
        return exit_cause(int(match[1]))
    if re.search(
        r"[Nn]ode (?:it was running on is|was|has been|has|is) (?:terminated|dead|died|lost|crashed|preempted)", report
    ):
        return LOST_WITH_NODE
    if re.search(r"lost due to node failure|local raylet died", report):
        return LOST_WITH_NODE
    return None


def pid_in_report(report: str) -> int | None:
    """The process id in Ray's report of a death or an exception; the last one, which is where the chain began."""
    matches = re.findall(r"\bpid: (\d+)|Worker PID: (\d+)|\(pid=(\d+), ip=", report)
    return int(next(filter(None, matches[-1]))) if matches else None


def ip_in_report(report: str) -> str:
    """The node's address in Ray's report of a death or an exception; empty when it has none."""
    matches = re.findall(r"(?:\bip|\bIP|IP address)(?:: |=)([\w.:]+)", report)
    return matches[-1] if matches else ""
