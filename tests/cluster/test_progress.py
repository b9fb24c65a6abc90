"""Tests of the progress line: a command is never silent for long, in a terminal or in a log."""

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
from cluster.metrics_log import last_step_metrics
from cluster.progress import MetricsProgress, Progress, format_duration
from cluster.storage import Storage
from cluster.tracking import Tracker

SCRIPT = """
import logging, sys, time
from cluster import progress
from cluster.progress import LogHandler, Progress, show_activity
progress._LOG_S = progress._TERMINAL_S = 1.0
logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, handlers=[LogHandler()])
with show_activity("rlhf"), Progress("steps", 20, "steps") as steps:
    steps.update(5, "loss 2.5")
    with show_activity(lambda: "generating"):
        time.sleep(5)
    if "fail" in sys.argv:
        raise OSError("gone")
"""
TERMINAL = {**os.environ, "TERM": "xterm"}
BUSY = """
import logging, time
from cluster import progress
from cluster.progress import LogHandler, show_activity
progress._LOG_S = 1.0
logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[LogHandler()])
with show_activity(lambda: 1 / 0):
    end = time.monotonic() + 5
    while time.monotonic() < end:  # keeps the GIL until the interpreter switches threads
        sum(range(1000))
"""


def test_the_intervals_are_shorter_than_the_promised_ones():
    assert progress._TERMINAL_S < 9 and progress._LOG_S < 29


def test_silent_work_is_shown_as_complete_lines_in_a_pipe():
    done = subprocess.run([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if "generating" in line]
    assert len(lines) >= 2
    assert "rlhf (" in lines[-1] and "25%  5/20 steps" in lines[-1] and "loss 2.5" in lines[-1] and "left" in lines[-1]
    assert "\r" not in done.stderr


def test_the_line_in_a_terminal_is_redrawn_during_silent_work():
    main, worker = pty.openpty()
    fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 78, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=worker, env=TERMINAL)
    os.close(worker)
    chunks: list[bytes] = []
    while process.poll() is None:
        if select.select([main], [], [], 0.1)[0]:
            try:
                chunks.append(os.read(main, 4096))
            except OSError:  # the program has closed the terminal
                break
    process.wait()
    os.close(main)
    text = b"".join(chunks).decode()
    drawn = [line for line in text.split("\r\x1b[K") if "generating (" in line]
    assert len(drawn) >= 3 and len(set(drawn)) >= 3
    assert all("\n" not in line and len(line) < 78 for line in drawn)
    assert all("rlhf" not in line and "5/20 steps" in line for line in drawn), "the outermost activity is left out"


GONE = """
import logging, os, pathlib, sys, time
from cluster import progress
from cluster.progress import LogHandler, Progress, show_activity
progress._LOG_S = progress._TERMINAL_S = 0.1
logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[LogHandler()])
with show_activity("rlhf"), Progress("steps", 20, "steps") as steps:
    steps.update(5)
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(2)
    for step in range(6, 20):
        steps.update(step)
        logging.info("step %d", step)
        time.sleep(0.05)
pathlib.Path(sys.argv[1]).write_text("done")
"""


def test_work_continues_after_the_terminal_is_closed(tmp_path: Path):
    main, worker = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", GONE, str(tmp_path / "file")], stderr=worker, env=TERMINAL)
    os.close(worker)
    while not (tmp_path / "file").exists() and process.poll() is None:
        time.sleep(0.05)
    os.close(main)
    assert process.wait() in (0, 120)  # Python exits with 120 when it cannot flush stderr
    assert (tmp_path / "file").read_text() == "done"


def test_work_continues_with_a_closed_stderr(tmp_path: Path):
    command = f"exec {sys.executable} -c '{GONE}' {tmp_path / 'file'} 2>&-"
    assert subprocess.run(["sh", "-c", command]).returncode == 0
    assert (tmp_path / "file").read_text() == "done"


def test_a_dumb_terminal_gets_complete_lines():
    main, worker = pty.openpty()
    subprocess.run([sys.executable, "-c", SCRIPT], stderr=worker, env=TERMINAL | {"TERM": "dumb"}, check=True)
    os.close(worker)
    text = os.read(main, 1 << 16).decode()
    os.close(main)
    assert "generating (" in text and "\033" not in text


def test_a_long_line_is_cut_to_the_columns_of_the_terminal():
    with progress.show_activity("源" * 30), progress.show_activity("clean\ning สวัสดี"):
        assert progress._width("源ing ส\u0e39") == 2 + 3 + 1 + 1
        assert progress._line._text(99).startswith("源" * 30 + " (")
        assert "源" not in progress._line._text(79)
        assert "clean ing" in progress._line._text(40) and progress._width(progress._line._text(40)) <= 40
        assert progress._width(progress._line._text(9)) <= 9


def test_the_line_is_shown_with_a_busy_main_thread_and_a_failing_description():
    done = subprocess.run([sys.executable, "-c", BUSY], stderr=subprocess.PIPE, text=True, check=True)
    assert done.stderr.count("ZeroDivisionError") >= 2


def test_the_duration_of_failed_work_is_not_logged():
    done = subprocess.run([sys.executable, "-c", SCRIPT, "fail"], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "steps: " not in done.stderr


def test_the_remaining_time_is_computed_from_the_steps_of_this_run(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("pretrain", 100, "steps", done=50) as steps:  # the run has resumed at step 50
        now[0] = 20.0
        steps.update(60)
        assert steps._describe() == "pretrain  60%  60/100 steps  2.0 s each  80 s left"
        now[0] = 50.0
        assert steps._describe() == "pretrain  60%  60/100 steps  2.0 s each  50 s left  (no update for 30 s)"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (7199.9, "2 h 0 min")]
)
def test_format_duration_uses_suitable_units(seconds: float, text: str):
    assert format_duration(seconds) == text


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_the_progress_of_another_process_is_read_from_its_log(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "_POLL_S", 0.05)
    storage = Storage(str(tmp_path) if place == "folder" else f"memory://follow-{os.getpid()}")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = Tracker(storage=storage, run_id="r", name="n", group="g")
    seen = set()
    with MetricsProgress(partial(last_step_metrics, storage), "pretrain", total_steps=4) as following:
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


def test_a_resumed_run_shows_the_rate_of_its_own_steps_and_a_failed_run_logs_no_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    now = [0.0]
    monkeypatch.setattr(progress, "_POLL_S", 0.02)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    metrics = [{"step": 190.0}]  # the last line before the kill; the last checkpoint is of step 100

    def shown(step: int) -> str:
        while f"{step}/200" not in (text := progress._line._text()) or "no update" in text:
            time.sleep(0.01)
        return text

    with caplog.at_level("INFO"), pytest.raises(RuntimeError), MetricsProgress(lambda: metrics[-1], "training", 200):
        now[0] = 60.0  # the workers have started
        metrics.append({"step": 101.0})
        shown(101)
        now[0] = 65.0
        metrics.append({"step": 111.0})
        assert "2.0/s  44 s left" in shown(111)
        raise RuntimeError("a worker died")
    assert "training: " not in caplog.text


def test_the_rate_ignores_pauses_before_the_latest_updates(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("training", 100, "steps") as steps:
        now[0] = 600.0  # the workers have restarted
        steps.update(1)
        for done in range(2, 15):
            now[0] += 2.0
            steps.update(done)
        assert "2.0 s each  2 min 52 s left" in steps._describe()
