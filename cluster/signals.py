"""SIGTERM, SIGINT and SIGHUP end a command in order: what was started is ended, what was done is kept, the exit code
says why.

The first signal becomes a KeyboardInterrupt in the main thread, so that every `finally` on the way runs. The second,
or `_ORDER_S` without an end, ends the process and all that it has started at once. SIGHUP comes when the terminal is
closed, often twice (from the kernel and from the shell): a second one changes nothing, and under `nohup` none counts.
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

_ORDER_S = 13.0
"""How long an orderly end may take; a supervisor that sends SIGTERM waits 15 s or more before SIGKILL."""
_DEFER_S = 6.0
"""How much of it a training may use up for one more checkpoint."""
_LAST_WORDS_S = 1.0
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StoppedBySignal(KeyboardInterrupt):
    """A signal has stopped a piece of work; its text says where the work goes on."""


class _Signals:
    """What this process has been sent, and what a signal does now; one, as there is one main thread."""

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
            signal.setitimer(signal.ITIMER_REAL, _DEFER_S)
            return
        raise KeyboardInterrupt  # the one exception that Ray's waiting calls pass on as it is

    def on_alarm(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def set_handlers(self) -> None:
        for number in self.handled:
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGALRM, self.on_alarm)


_signals = _Signals()


@contextlib.contextmanager
def orderly_shutdown() -> Iterator[None]:
    """Within, the signals raise KeyboardInterrupt, once; `received_signal` tells which it was. For the main thread."""
    before = {number: signal.getsignal(number) for number in (*_HANDLED, signal.SIGALRM)}
    is_hangup_ignored = before[signal.SIGHUP] == signal.SIG_IGN  # `nohup`
    _signals.handled = tuple(number for number in _HANDLED if number != signal.SIGHUP or not is_hangup_ignored)
    _signals.received = None
    _signals.set_handlers()
    # The interpreter's own handler writes here at once, even while the main thread is in a call that hears no signal.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch_end, args=(reader,), daemon=True, name="orderly-end").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_writer)
        os.close(writer)
        _signals.handled = ()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def keep_own_handlers() -> Iterator[None]:
    """For a call of a library that sets its own signal handlers (ray.init): ours hold again afterwards.

    Ray's raises SystemExit(SIGTERM); that signal too becomes a KeyboardInterrupt. What the library starts inside is not
    ended by a closed terminal but by us. Nothing outside `orderly_shutdown`.
    """
    if not _signals.handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    # A mask is inherited by children, and our handler still runs: another thread takes the signal.
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
    """The signal that ends this process, None while none has come."""
    return _signals.received


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Within, a signal is only noted (`received_signal`), for work that keeps more if it can finish properly.

    KeyboardInterrupt comes at the end of the block, in place of what it may have raised, which is mostly a consequence:
    the actors of a run are often sent the same signal. It comes earlier if the block goes on for some seconds.
    """
    _signals.is_deferred = True
    try:
        yield
    finally:
        _signals.is_deferred = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _signals.received is not None:
            raise KeyboardInterrupt


def _watch_end(reader: int) -> None:
    """End the process when an orderly end takes too long, or when its handlers cannot run.

    consumes: signal numbers from the interpreter's wake-up pipe; waits for: the first; is unblocked by: it, or the end
    of `orderly_shutdown`; produces: the end of the process after `_ORDER_S`, unless it has ended by then.
    """
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        number = 0
        while number not in _HANDLED:  # an alarm writes here too
            if not (numbers := pipe.read(1)):
                return
            number = numbers[0]
        time.sleep(_ORDER_S)
        _end_now(signal.Signals(number), f"an orderly end took more than {_ORDER_S:.0f} s")


def _end_now(number: signal.Signals, why: str) -> None:
    """Kill everything that this process has started, and end it."""
    try:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        text = f"raymill: stopped by {number.name}; {why}, so everything was ended at once"
        # Not through the buffer of stderr, which the signal may have met; in a thread: nobody may read the pipe.
        speaker = threading.Thread(target=_write_at_once, args=(text,), daemon=True)
        speaker.start()
        speaker.join(_LAST_WORDS_S)
    finally:
        os._exit(128 + number)


def _write_at_once(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def write_stderr(text: str) -> None:
    """Write a line to stderr. Where nobody reads it any more (`| tee` got the same Ctrl-C) it is lost, which must not
    change how the command ends."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def flush_output() -> None:
    """Before the interpreter's own last flush, which makes the exit code 120 where a pipe is closed."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
