"""A module that `start_module` started, and its children, end when the process that started it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.child_process import start_module, stop_process

# A program like an inference server, with a forked and a spawned child. NAP is the module of the children's function.
NAP = """
import signal, time

def nap(started_file):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(started_file, "w").close()
    time.sleep(120)
"""
NAPPER = """
import multiprocessing, os, signal, sys, time
from nap import nap

def main(path, phase, on_sigterm):
    kinds = ("fork", "spawn")
    children = [multiprocessing.get_context(kind).Process(target=nap, args=(path + kind,)) for kind in kinds]
    for child in children:
        child.start()
    while phase == "running" and not all(os.path.exists(path + kind) for kind in kinds):
        time.sleep(0.02)
    if on_sigterm == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(path + ".partial", "w") as file:
        file.write(" ".join(str(pid) for pid in [os.getpid(), *(child.pid for child in children)]))
    os.rename(path + ".partial", path)
    time.sleep(120)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""
STARTER = """
import os, sys, time
from cluster.child_process import start_module
start_module("napper", sys.argv[1:], environment=os.environ)
time.sleep(120)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs. A zombie (dead, but not yet waited for by its parent) does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "nap.py").write_text(NAP)
    (tmp_path / "napper.py").write_text(NAPPER)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}


def pids_in(path: Path) -> list[int]:
    assert wait_for(path.exists), "the program did not start"
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.parametrize("phase", ["starting", "running"])
def test_the_program_and_its_children_end_when_the_starter_is_killed(
    tmp_path: Path, environment: dict[str, str], phase: str
) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path / "pids"), phase, "ignore"], env=environment
    )
    pids = pids_in(tmp_path / "pids")
    assert len(pids) == 3 and all(map(is_alive, pids))
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert wait_for(lambda: not any(map(is_alive, pids)), 10.0)


@pytest.mark.parametrize("phase", ["starting", "running"])
def test_the_children_end_when_the_program_is_killed(tmp_path: Path, environment: dict[str, str], phase: str) -> None:
    program = start_module("napper", [str(tmp_path / "pids"), phase, "end"], environment=environment)
    pids = pids_in(tmp_path / "pids")
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert wait_for(lambda: not any(map(is_alive, pids)), 10.0)


@pytest.mark.parametrize("on_sigterm", ["end", "ignore"])
def test_stop_process_ends_a_program_even_if_it_ignores_sigterm(
    tmp_path: Path, environment: dict[str, str], on_sigterm: str
) -> None:
    program = start_module("napper", [str(tmp_path / "pids"), "running", on_sigterm], environment=environment)
    pids = pids_in(tmp_path / "pids")
    stop_process(program, grace_s=0.5)
    assert program.returncode == (-signal.SIGTERM if on_sigterm == "end" else -signal.SIGKILL)
    assert wait_for(lambda: not any(map(is_alive, pids)), 10.0)
    stop_process(program)  # A second call does nothing.
