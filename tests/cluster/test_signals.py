"""Tests of orderly shutdown with real processes: cleanup runs, limits hold, and no process remains."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import signal, subprocess, sys, time
from cluster import signals
from cluster.signals import restore_signal_handlers, defer_signals, orderly_shutdown, received_signal, write_stderr

signals._SHUTDOWN_LIMIT_S, signals._DEFER_LIMIT_S = {shutdown_limit_s}, 1.0
{before}
with orderly_shutdown():
    try:
{body}
    except KeyboardInterrupt:
        write_stderr("interrupted by " + received_signal().name)
        {cleanup}
        sys.exit(128 + received_signal())
"""
WAIT = "print('begun', flush=True); time.sleep(60)"


def start(
    body: str, *, before: str = "pass", cleanup: str = "pass", shutdown_limit_s: float = 30.0
) -> subprocess.Popen[str]:
    """Start a program and wait until it has printed `begun`."""
    text = PROGRAM.format(
        shutdown_limit_s=shutdown_limit_s,
        before=before,
        cleanup=cleanup,
        body="\n".join(f"        {line}" for line in body.split("\n")),
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root
    )
    assert process.stdout is not None and process.stdout.readline().strip() == "begun"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_runs_the_cleanup_and_sets_the_exit_code(number: signal.Signals, code: int) -> None:
    process = start(WAIT, cleanup="print('closed', flush=True)")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, f"interrupted by {number.name}\nclosed\n")


def test_a_second_signal_kills_all_processes_at_once() -> None:
    child = "subprocess.Popen(['sleep', '600'])"
    process = start(f"{child}\n{WAIT}", cleanup="time.sleep(600)")
    (sleeper,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and process.stdout.readline().startswith("interrupted")
    process.send_signal(signal.SIGTERM)
    assert "a second signal was received" in process.communicate(timeout=60)[0]
    assert process.returncode == 143
    psutil.wait_procs([sleeper], timeout=60)
    assert not sleeper.is_running()


def test_a_second_sighup_is_ignored_and_under_nohup_every_sighup() -> None:
    process = start(WAIT, cleanup="time.sleep(1); print('closed', flush=True)")
    ignoring = start(WAIT, before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    for program in (process, ignoring):
        program.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        program.send_signal(signal.SIGHUP)
    assert (process.communicate(timeout=60)[0], process.returncode) == ("interrupted by SIGHUP\nclosed\n", 129)
    ignoring.send_signal(signal.SIGTERM)
    assert (ignoring.communicate(timeout=60)[0], ignoring.returncode) == ("interrupted by SIGTERM\n", 143)


@pytest.mark.parametrize("second", ["signal", "too long"])
def test_a_forced_end_works_with_a_closed_stderr(second: str) -> None:
    shutdown_limit_s = 30.0 if second == "signal" else 1.0
    process = start(
        f"subprocess.Popen(['sleep', '600'])\n{WAIT}", cleanup="time.sleep(600)", shutdown_limit_s=shutdown_limit_s
    )
    (sleeper,) = psutil.Process(process.pid).children()
    assert process.stdout is not None
    process.stdout.close()  # as when stderr is piped to `tee`, which Ctrl-C ends too
    process.send_signal(signal.SIGINT)
    if second == "signal":
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    psutil.wait_procs([sleeper], timeout=60)
    assert not sleeper.is_running()


def test_a_slow_shutdown_is_ended_by_force_even_if_no_handler_can_run() -> None:
    in_order = start(WAIT, cleanup="time.sleep(600)", shutdown_limit_s=1.0)
    # A C function that cannot be interrupted by signals: it locks a mutex twice. Training a tokenizer is similar.
    lock = "import ctypes\nmutex, lock = (ctypes.c_char * 64)(), ctypes.CDLL(None).pthread_mutex_lock\nlock(mutex)"
    deaf = start(f"{lock}\nprint('begun', flush=True)\nlock(mutex)", shutdown_limit_s=1.0)
    for process in (in_order, deaf):
        process.send_signal(signal.SIGINT)
        assert "took more than 1 s" in process.communicate(timeout=60)[0]
        assert process.returncode == 130


def test_a_deferred_signal_takes_effect_at_the_end_of_the_block() -> None:
    wait = "print('begun', flush=True)\n    while received_signal() is None: time.sleep(0.05)\n"
    process = start(f"with defer_signals():\n    {wait}" + "    print('kept', flush=True)\nprint('not reached')")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "kept\ninterrupted by SIGTERM\n"


def test_a_block_that_defers_signals_too_long_is_interrupted() -> None:
    process = start(f"with defer_signals():\n    {WAIT}")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "interrupted by SIGTERM\n"
    assert 1.0 <= time.monotonic() - began < 50


def test_a_deferred_signal_replaces_an_exception_of_the_block() -> None:
    wait = "print('begun', flush=True)\n    while received_signal() is None: time.sleep(0.05)"
    process = start(f"with defer_signals():\n    {wait}\n    raise RuntimeError('the actors got the same signal')")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "interrupted by SIGTERM\n" and process.returncode == 143


def test_a_signal_is_handled_while_a_library_has_replaced_the_handler() -> None:
    """Like the handler of ray.init, the library's handler exits with the number of the signal."""
    child = "sleeper = subprocess.Popen(['sleep', '600'])"
    set_handler = "signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))"
    process = start(f"with restore_signal_handlers():\n    {set_handler}\n    {WAIT}")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "interrupted by SIGTERM\n" and process.returncode == 143
    # When the terminal is closed, the processes that the library has started must survive for the orderly shutdown.
    process = start(
        f"with restore_signal_handlers():\n    {child}\n{WAIT}", cleanup="print(sleeper.poll()); sleeper.kill()"
    )
    (sleeper,) = psutil.Process(process.pid).children()
    sleeper.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[0] == "interrupted by SIGHUP\nNone\n" and process.returncode == 129
