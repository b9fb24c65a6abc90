"""Whatever works or waits says so, in a terminal and in a log, also when it has nothing new to say."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import pytest

from cluster import progress
from cluster.progress import FollowMetrics, Progress, duration
from cluster.storage import Storage
from cluster.tracking import Tracker, last_metrics

SCRIPT = """
import logging, sys, time
from cluster import progress
from cluster.progress import LogHandler, Progress, working
progress._LOG_S = progress._TERMINAL_S = 1.0
logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, handlers=[LogHandler()])
with working("rlhf"), Progress("steps", 20, "steps") as steps:
    steps.update(5, "loss 2.5")
    with working(lambda: "generating"):
        time.sleep(5)
    if "fail" in sys.argv:
        raise OSError("gone")
"""
BUSY = """
import logging, time
from cluster import progress
from cluster.progress import LogHandler, working
progress._LOG_S = 1.0
logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[LogHandler()])
with working(lambda: 1 / 0):
    end = time.monotonic() + 5
    while time.monotonic() < end:  # never lets go of the interpreter by itself
        sum(range(1000))
"""


def test_the_intervals_lie_below_what_is_promised():
    assert progress._TERMINAL_S < 9 and progress._LOG_S < 29


def test_silent_work_is_said_in_whole_lines_in_a_pipe():
    done = subprocess.run([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if "generating" in line]
    assert len(lines) >= 2
    assert "rlhf (" in lines[-1] and "25%  5/20 steps" in lines[-1] and "loss 2.5" in lines[-1] and "left" in lines[-1]
    assert "\r" not in done.stderr


def test_a_terminal_is_redrawn_while_nothing_happens():
    main, worker = pty.openpty()
    fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 78, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=worker)
    os.close(worker)
    chunks: list[bytes] = []
    while process.poll() is None:
        if select.select([main], [], [], 0.1)[0]:
            try:
                chunks.append(os.read(main, 4096))
            except OSError:  # the other end is closed
                break
    process.wait()
    os.close(main)
    text = b"".join(chunks).decode()
    drawn = [line for line in text.split("\r\x1b[K") if "generating (" in line]
    assert len(drawn) >= 3 and len(set(drawn)) >= 3
    assert all("\n" not in line and len(line) < 78 for line in drawn)
    assert all("rlhf" not in line and "5/20 steps" in line for line in drawn), "the outermost gives way"


def test_a_busy_main_thread_and_a_failing_description_do_not_end_it():
    done = subprocess.run([sys.executable, "-c", BUSY], stderr=subprocess.PIPE, text=True, check=True)
    assert done.stderr.count("ZeroDivisionError") >= 2


def test_what_failed_is_not_said_to_have_ended():
    done = subprocess.run([sys.executable, "-c", SCRIPT, "fail"], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "steps: " not in done.stderr


def test_the_time_left_is_that_of_what_was_done_here(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("pretrain", 100, "steps", done=50) as steps:  # it was resumed at 50
        now[0] = 20.0
        steps.update(60)
        assert steps._describe() == "pretrain  60%  60/100 steps  2.0 s each  80 s left"
        now[0] = 50.0
        assert steps._describe() == "pretrain  60%  60/100 steps  2.0 s each  50 s left  (for 30 s)"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (7199.9, "2 h 0 min")]
)
def test_durations_are_read_without_arithmetic(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_a_run_elsewhere_is_followed_from_its_log(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "_POLL_S", 0.05)
    storage = Storage(str(tmp_path) if place == "folder" else f"memory://follow-{os.getpid()}")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = Tracker(storage=storage, run_id="r", name="n", group="g")
    seen = set()
    with FollowMetrics(partial(last_metrics, storage), "pretrain", total_steps=4) as following:
        seen.add(progress._line._text())
        for step in (1, 2):
            tracker.log(step, {"train/loss": 3.0 - step})
            tracker.flush()
            deadline = time.monotonic() + 20
            while f"{step}/4 steps" not in progress._line._text() and time.monotonic() < deadline:
                time.sleep(0.02)
            seen.add(progress._line._text())
    assert not following._thread.is_alive()
    assert any("1/4 steps" in text and "loss 2.000" in text for text in seen)
    assert any("2/4 steps" in text and "loss 1.000" in text for text in seen)
    assert progress._line._text() == ""
