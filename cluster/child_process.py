"""A Python module run in a process that cannot outlive the one that started it, nor can any process of its own.

For programs that we start but did not write (an inference server), which would go on when their starter is killed
by a signal that no handler sees. On Linux the kernel keeps the promise (PR_SET_PDEATHSIG).
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
_PARENT = "RAYMILL_LIFELINE_PARENT"


def start_module(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: IO[bytes] | None = None,
    talks: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments…` tied to this process; it leads a process group of its own.

    The module must not send functions of its own to children that it spawns: for them it is not the main module.
    output takes stdout and stderr; None leaves them where this process writes. One that talks has pipes for stdin and
    stdout, and no place for stderr. Call it from a thread that lives as
    long as the process is needed: the kernel counts the end of the starting thread as the parent's death.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.child_process", module, *arguments],
        env={**environment, _PARENT: str(os.getpid())},
        stdin=subprocess.PIPE if talks else None,
        stdout=subprocess.PIPE if talks else output,
        stderr=subprocess.DEVNULL if talks else subprocess.STDOUT if output else None,
        start_new_session=True,
    )


def stop_process(process: subprocess.Popen[bytes], *, grace_s: float = 15.0) -> None:
    """End a started process and all of its own: politely first, by SIGKILL of the whole group after the grace time."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):  # nothing of the group is left, which is what we want
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tie() -> None:
    """Ask the kernel for SIGKILL when the parent is gone, and go at once if it is already.

    The environment carries each process's id to its children. Other systems than Linux do without the kernel's part.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[_PARENT]):
        os._exit(1)
    os.environ[_PARENT] = str(os.getpid())


# multiprocessing imports the main module of its spawned children under the name __mp_main__, and a forked child runs
# the fork hook: so every Python process below ties itself to its own parent, and the chain falls from the top.
if __name__ in ("__main__", "__mp_main__"):
    _tie()
    os.register_at_fork(after_in_child=_tie)

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__")
