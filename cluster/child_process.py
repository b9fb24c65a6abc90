"""Runs a Python module in a child process that is killed when the process that started it ends.

This is for programs that we start but did not write, such as vLLM's inference server. Such a program would keep running
after its parent was killed by SIGKILL, because no handler can catch SIGKILL. On Linux the kernel kills the child when
its parent ends (PR_SET_PDEATHSIG). The processes that the child starts with multiprocessing or os.fork are killed in
turn when the child ends, and so on. Programs that the child starts with subprocess are not.
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
"""The environment variable in which each process passes its process id to its children."""


def start_module(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: IO[bytes] | None = None,
    has_pipes: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments…` in a new process group. The child is killed when this process ends.

    `environment` contains all environment variables of the child. The child's stdout and stderr are written to
    `output`. If `output` is None, the child inherits the stdout and stderr of this process. With `has_pipes`, `output`
    is ignored: the child's stdin and stdout are pipes to this process, and its stderr is discarded.

    The module must not pass its own functions to children that it spawns with multiprocessing, because those children
    could not find the functions: the main module of those children is this file and not `module`. Call `start_module`
    from a thread that lives as long as the child is needed, because the kernel kills the child when the thread that
    started the child ends.
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
    """End a process that `start_module` started, together with its process group.

    The process gets SIGTERM and up to `grace_s` to end. Then SIGKILL ends whatever is left of the group.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):  # All processes of the group have already ended.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, and exit now if the parent has already ended.

    Only Linux can kill a process when its parent ends. On other systems this function only does the second part.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[_PARENT_VARIABLE]):
        os._exit(1)
    os.environ[_PARENT_VARIABLE] = str(os.getpid())


# The Python processes that this one starts must call `_end_with_parent` too. A spawned child of multiprocessing does so
# because it imports its parent's main module under the name __mp_main__, and a forked child because of the fork hook.
if __name__ in ("__main__", "__mp_main__"):
    _end_with_parent()
    os.register_at_fork(after_in_child=_end_with_parent)

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__")
