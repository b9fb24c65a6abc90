"""Processes of a tied module end with their starter, by whatever signal it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.lifeline import start_module, stop

# A program like an inference server: it has a child of each kind, each of which has nothing to say.
NAP = """
import signal, time

def nap():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(120)
"""
NAPPER = """
import multiprocessing, os, sys, time, signal
from nap import nap

def main():
    children = [multiprocessing.get_context(kind).Process(target=nap) for kind in ("fork", "spawn")]
    for child in children:
        child.start()
    time.sleep(float(sys.argv[2]))
    with open(sys.argv[1] + ".partial", "w") as file:
        file.write(" ".join(str(pid) for pid in [os.getpid(), *(child.pid for child in children)]))
    os.rename(sys.argv[1] + ".partial", sys.argv[1])
    if sys.argv[3] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(120)

if __name__ == "__main__":
    main()
"""
STARTER = """
import os, sys, time
from cluster.lifeline import start_module
start_module("napper", sys.argv[1:], environment=os.environ)
time.sleep(120)
"""


def lives(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet collected does not."""
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


def test_a_killed_starter_takes_everything_with_it(tmp_path: Path, environment: dict[str, str]) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path / "pids"), "0", "deaf"], env=environment)
    pids = pids_in(tmp_path / "pids")
    assert len(pids) == 3 and all(map(lives, pids))
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert wait_for(lambda: not any(map(lives, pids)), 10.0)


def test_a_killed_program_takes_its_children_with_it(tmp_path: Path, environment: dict[str, str]) -> None:
    program = start_module("napper", [str(tmp_path / "pids"), "0", "polite"], environment=environment)
    pids = pids_in(tmp_path / "pids")
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert wait_for(lambda: not any(map(lives, pids)), 10.0)


@pytest.mark.parametrize("manners", ["polite", "deaf"])
def test_stop_ends_a_program_that_listens_and_one_that_does_not(
    tmp_path: Path, environment: dict[str, str], manners: str
) -> None:
    program = start_module("napper", [str(tmp_path / "pids"), "0", manners], environment=environment)
    pids = pids_in(tmp_path / "pids")
    stop(program, grace_s=0.5)
    assert program.returncode == (-signal.SIGTERM if manners == "polite" else -signal.SIGKILL)
    assert wait_for(lambda: not any(map(lives, pids)), 10.0)
    stop(program)  # once more does no harm
