"""Tests of the Ray session: packages that shadow Raymill's, and orderly shutdown after a signal."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.session import _is_ray_process, connect


@pytest.mark.parametrize("name", ["data/__init__.py", "model.py", "cluster/__init__.py"])
def test_a_file_that_shadows_a_raymill_package_is_rejected_before_ray_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=rf"{name} would be imported in place of Raymill's own package"), connect():
        pytest.fail("the shadowing file was accepted")
    assert not ray.is_initialized()


@dataclass
class FakeProcess:
    words: list[str]

    def cmdline(self) -> list[str]:
        return self.words


@pytest.mark.parametrize(
    ("words", "is_rays"),
    [
        (["ray::IDLE"], True),
        ([f"{Path(ray.__file__).parent}/core/src/ray/raylet/raylet", "--raylet_socket_name=a"], True),
        (["/home/ray/python", "-u", f"{Path(ray.__file__).parent}/_private/log_monitor.py"], True),
        (["/home/ray/raymill/.venv/bin/python", "-m", "cluster.child_process", "cluster.wandb_client"], False),
    ],
)
def test_a_process_is_not_taken_for_rays_because_of_a_folder_name(words: list[str], is_rays: bool) -> None:
    process: Any = FakeProcess(words)
    assert _is_ray_process(process) == is_rays


@pytest.mark.slow
def test_a_data_folder_and_modules_of_other_names_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/corpus.txt", "data/document.py", "models.py", "jobs/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('not ours')\n")

    def where() -> str:
        import data.document

        return str(data.document.__file__)

    with connect("local", num_cpus=1):
        assert ray.get(ray.remote(where).remote()) == where()
        assert not Path(where()).is_relative_to(tmp_path)


PROGRAM = """
import argparse, sys, time
import ray
from cluster.session import connect
from jobs import cli

def work(options):
    with connect("local", num_cpus=1):
        try:
            print("begun", flush=True)
            time.sleep(600)
        finally:
            print("Ray answers", ray.get(ray.remote(lambda: 1).remote()), flush=True)

cli.parse = lambda arguments: argparse.Namespace(command=work, name="run", traceback=False)
sys.exit(cli.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_ray_starts_or_to_all_processes_of_a_terminal_ends_the_command_in_order(
    number: signal.Signals, code: int
) -> None:
    """SIGTERM is sent while Ray starts. SIGHUP is sent later, also to Ray's processes, as when a terminal is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    started: list[psutil.Process] = []
    if number == signal.SIGTERM:
        while not any("gcs_server" in one.name() for one in started):
            assert process.poll() is None
            started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
    else:
        assert process.stdout is not None
        while "begun" not in process.stdout.readline():
            assert process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert f"raymill: stopped by {number.name}; the same command resumes from here" in output
    assert "Traceback" not in output and ("Ray answers 1" in output) == (number == signal.SIGHUP)
    assert psutil.wait_procs(started, timeout=10)[1] == []
