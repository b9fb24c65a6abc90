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

from cluster.child_process import start_module, stop_process

# A program like an inference server: it has a child of each kind, each of which has nothing to say.
NAP = """
import signal, time

def nap(note):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(note, "w").close()
    time.sleep(120)
"""
NAPPER = """
import multiprocessing, os, signal, sys, time
from nap import nap

def main(path, when, manners):
    kinds = ("fork", "spawn")
    children = [multiprocessing.get_context(kind).Process(target=nap, args=(path + kind,)) for kind in kinds]
    for child in children:
        child.start()
    while when == "settled" and not all(os.path.exists(path + kind) for kind in kinds):
        time.sleep(0.02)
    if manners == "deaf":
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


@pytest.mark.parametrize("when", ["early", "settled"])
def test_a_killed_starter_takes_everything_with_it(tmp_path: Path, environment: dict[str, str], when: str) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path / "pids"), when, "deaf"], env=environment)
    pids = pids_in(tmp_path / "pids")
    assert len(pids) == 3 and all(map(lives, pids))
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert wait_for(lambda: not any(map(lives, pids)), 10.0)


@pytest.mark.parametrize("when", ["early", "settled"])
def test_a_killed_program_takes_its_children_with_it(tmp_path: Path, environment: dict[str, str], when: str) -> None:
    program = start_module("napper", [str(tmp_path / "pids"), when, "polite"], environment=environment)
    pids = pids_in(tmp_path / "pids")
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert wait_for(lambda: not any(map(lives, pids)), 10.0)


@pytest.mark.parametrize("manners", ["polite", "deaf"])
def test_stop_ends_a_program_that_listens_and_one_that_does_not(
    tmp_path: Path, environment: dict[str, str], manners: str
) -> None:
    program = start_module("napper", [str(tmp_path / "pids"), "settled", manners], environment=environment)
    pids = pids_in(tmp_path / "pids")
    stop_process(program, grace_s=0.5)
    assert program.returncode == (-signal.SIGTERM if manners == "polite" else -signal.SIGKILL)
    assert wait_for(lambda: not any(map(lives, pids)), 10.0)
    stop_process(program)  # once more does no harm
