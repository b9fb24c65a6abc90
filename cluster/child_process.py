"""A Python module run in a child process that cannot outlive the one that started it, nor can its own children.

For programs that we start but did not write (an inference server), which would otherwise keep running when their
starter is killed by a signal that no handler sees. On Linux the kernel ends them (PR_SET_PDEATHSIG).
"""

import contextlib
import ctypes
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1
_PARENT_VARIABLE = "RAYMILL_PARENT_PID"


def start_module(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: IO[bytes] | None = None,
    has_pipes: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments…` tied to this process, as the leader of a new process group.

    `output` takes stdout and stderr; None leaves them where this process writes. With `has_pipes` stdin and stdout are
    pipes and stderr is discarded. The module must not send functions of its own to children that it spawns, because
    for them it is not the main module. Call this from a thread that lives as long as the process is needed: the
    kernel takes the end of the starting thread for the parent's death.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.child_process", module, *arguments],
        env={**environment, _PARENT_VARIABLE: str(os.getpid())},
        stdin=subprocess.PIPE if has_pipes else None,
        stdout=subprocess.PIPE if has_pipes else output,
        stderr=subprocess.DEVNULL if has_pipes else subprocess.STDOUT if output else None,
        start_new_session=True,
    )


def stop_process(process: subprocess.Popen[bytes], *, grace_s: float = 15.0) -> None:
    """End a process and its group: by SIGTERM first, by SIGKILL of the whole group after the grace time."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):  # the whole group has ended already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tie_to_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends, and exit at once if it already has.

    The environment tells each process its parent's id. Systems other than Linux have the exit only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[_PARENT_VARIABLE]):
        os._exit(1)
    os.environ[_PARENT_VARIABLE] = str(os.getpid())


# multiprocessing imports the main module of its spawned children under the name __mp_main__, and a forked child runs
# the fork hook: so every Python process below ties itself to its own parent, and the end of one ends all below it.
if __name__ in ("__main__", "__mp_main__"):
    _tie_to_parent()
    os.register_at_fork(after_in_child=_tie_to_parent)

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__")
