"""Orderly shutdown on SIGTERM, SIGINT and SIGHUP: child processes end, finished work is kept, the exit code says why.

The first signal becomes a KeyboardInterrupt in the main thread, so that every `finally` on the way runs. A second one,
or `_SHUTDOWN_LIMIT_S` without an end, kills the process and all that it has started. SIGHUP comes when the terminal
is closed, often twice (from the kernel and from the shell): a second one is ignored, and under `nohup` all are.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import psutil

_SHUTDOWN_LIMIT_S = 13.0
"""How long an orderly shutdown may take; a supervisor that sends SIGTERM waits 15 s or more before SIGKILL."""
_DEFER_LIMIT_S = 6.0
"""How much of it training may use for one more checkpoint."""
_LAST_MESSAGE_S = 1.0
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StoppedBySignal(KeyboardInterrupt):
    """A signal has stopped the work; the text says where it resumes."""


class _Signals:
    """The signal that this process has received, and what a signal does now. There is one instance."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.handled: tuple[signal.Signals, ...] = ()
        """Those of `_HANDLED` that are not ignored; empty outside of `orderly_shutdown`."""
        self.is_deferred = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGHUP:
            return
        if self.received is not None:
            _end_now(self.received, "a second signal came")
        self.received = signal.Signals(number)
        if self.is_deferred:
            signal.setitimer(signal.ITIMER_REAL, _DEFER_LIMIT_S)
            return
        raise KeyboardInterrupt  # the one exception that Ray's waiting calls pass on unchanged

    def on_alarm(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def set_handlers(self) -> None:
        for number in self.handled:
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGALRM, self.on_alarm)


_signals = _Signals()


@contextlib.contextmanager
def orderly_shutdown() -> Iterator[None]:
    """Within the block, the first signal raises KeyboardInterrupt in this thread (`received_signal` names it)."""
    before = {number: signal.getsignal(number) for number in (*_HANDLED, signal.SIGALRM)}
    is_hangup_ignored = before[signal.SIGHUP] == signal.SIG_IGN  # `nohup`
    _signals.handled = tuple(number for number in _HANDLED if number != signal.SIGHUP or not is_hangup_ignored)
    _signals.received = None
    _signals.set_handlers()
    # The interpreter's C handler writes here at once, even while the main thread cannot be interrupted.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_limit_shutdown, args=(reader,), daemon=True, name="orderly-shutdown").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_writer)
        os.close(writer)
        _signals.handled = ()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """Restore our signal handlers after a call of a library that sets its own (ray.init).

    Ray's handler raises SystemExit(SIGTERM), which becomes a KeyboardInterrupt too. Processes that the library starts
    in the block ignore SIGHUP, so that a closed terminal leaves them for us to end. Does nothing outside of
    `orderly_shutdown`.
    """
    if not _signals.handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    # Children inherit the mask, while our handler still runs because another thread takes the signal.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        _signals.received = _signals.received or signal.SIGTERM
        raise KeyboardInterrupt from None
    finally:
        _signals.set_handlers()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def received_signal() -> signal.Signals | None:
    """The first signal that this process has received; None when there was none."""
    return _signals.received


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Within the block, a signal is only noted (`received_signal`), for work that can save more if it finishes first.

    KeyboardInterrupt is raised at the end of the block, or when it takes more than `_DEFER_LIMIT_S`. It replaces an
    exception of the block, which is mostly a consequence: the actors of a run often receive the same signal.
    """
    _signals.is_deferred = True
    try:
        yield
    finally:
        _signals.is_deferred = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _signals.received is not None:
            raise KeyboardInterrupt


def _limit_shutdown(reader: int) -> None:
    """Kill the process when an orderly shutdown takes too long, or when its handlers cannot run.

    consumes: signal numbers from the interpreter's wake-up pipe; waits for: the first; is unblocked by: it, or the end
    of `orderly_shutdown`; produces: the end of the process after `_SHUTDOWN_LIMIT_S`, unless it has ended by then.
    """
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        number = 0
        while number not in _HANDLED:  # an alarm writes here too
            if not (numbers := pipe.read(1)):
                return
            number = numbers[0]
        time.sleep(_SHUTDOWN_LIMIT_S)
        _end_now(signal.Signals(number), f"an orderly shutdown took more than {_SHUTDOWN_LIMIT_S:.0f} s")


def _end_now(number: signal.Signals, why: str) -> None:
    """Kill this process and everything that it has started."""
    try:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        text = f"raymill: stopped by {number.name}; {why}, so everything was killed"
        # Not through the buffer of stderr, which the signal may have interrupted; in a thread, as the pipe may be full.
        writer = threading.Thread(target=_write_at_once, args=(text,), daemon=True)
        writer.start()
        writer.join(_LAST_MESSAGE_S)
    finally:
        os._exit(128 + number)


def _write_at_once(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def write_stderr(text: str) -> None:
    """Write a line to stderr, without an error when nobody reads it (`| tee` gets the same Ctrl-C)."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def flush_output() -> None:
    """Flush stdout and stderr, discarding what a closed pipe does not take: the interpreter would exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
