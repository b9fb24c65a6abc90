"""Finds out why a process ended, from its exit code, its log, and Ray's report of the death.

Ray's reports also list guesses. The functions here use only what a report states for certain. A cause is a text that
continues a sentence after the process's name: `rlhf: generator 0 was killed by signal 9 (SIGKILL)`.
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
"""The keys are the texts that Python's faulthandler writes into a worker's log before a signal ends the worker. The
values are the signals."""

LOST_WITH_NODE = "was lost with its node"


def signal_cause(number: int) -> str:
    """The cause of a death by the signal with this number: `was killed by signal 9 (SIGKILL)`."""
    if number in set(signal.Signals):
        return f"was killed by signal {number} ({signal.Signals(number).name})"
    return f"was killed by signal {number}"  # Most real-time signals have no name in Python.


def exit_cause(code: int) -> str:
    """The cause of a death with an exit code. As in `subprocess`, a negative code means a signal."""
    return signal_cause(-code) if code < 0 else _exit_code_cause(code)


def _exit_code_cause(code: int) -> str:
    """The cause of a death by `sys.exit` with this code, which may be negative without meaning a signal."""
    return f"ended by itself with exit code {code}"


def cause_in_log(log: str) -> str | None:
    """The cause of death that a worker's log states. None if the log states no fatal signal.

    The cause is the signal and, where the log contains Python's stack, the innermost frame.
    """
    match = re.search(r"^Fatal Python error: (.+)$", log, re.MULTILINE)
    number = _FATAL_ERRORS.get(match[1].strip()) if match else None
    if match and number is not None:
        frame = innermost_frame(log[match.start() :], is_innermost_first=True)
        return signal_cause(number) + (f" at {frame}" if frame else "")
    if match := re.search(r"\*\*\* (SIG[A-Z]+) received at time", log):
        return signal_cause(signal.Signals[match[1]])
    return None


def cause_in_report(report: str) -> str | None:
    """The cause that Ray's report of a death states for certain. None if the report only guesses."""
    if re.search(r"OutOfMemoryError|running low on memory|memory usage threshold|memory monitor", report):
        match = re.search(r"memory used was ([^;,.]*GB / [0-9.]+GB)[^.]*", report)
        return "ran out of memory: Ray's memory monitor ended it" + (f" (node: {match[1]})" if match else "")
    if re.search(r"receives a SIGTERM|SIGTERM (?:handler|received)", report):
        return signal_cause(signal.SIGTERM)
    if match := re.search(r"exits? with an? (?:exit )?code[ =]*(-?\d+)", report):
        return _exit_code_cause(int(match[1]))
    if re.search(
        r"[Nn]ode (?:it was running on is|was|has been|has|is) (?:terminated|dead|died|lost|crashed|preempted)", report
    ):
        return LOST_WITH_NODE
    if re.search(r"lost due to node failure|local raylet died", report):
        return LOST_WITH_NODE
    return None


def pid_in_report(report: str) -> int | None:
    """The process id in Ray's report of a death or an exception. None if the report has no process id.

    If the report has several ids, the last is returned. A report of a chain of exceptions ends with the process that
    raised the first of the exceptions.
    """
    matches = re.findall(r"\bpid: (\d+)|Worker PID: (\d+)|\(pid=(\d+), ip=", report)
    return int(next(filter(None, matches[-1]))) if matches else None


def ip_in_report(report: str) -> str:
    """The node's IP address in Ray's report of a death or an exception. Empty if the report has no address.

    If the report has several addresses, the last is returned, as in `pid_in_report`.
    """
    matches = re.findall(r"(?:\bip|\bIP|IP address)(?:: |=)([\w.:]+)", report)
    return matches[-1] if matches else ""
