"""SIGTERM and SIGINT end a command in order: what was started is ended, what was done is kept, the exit code says why.

The first signal becomes a KeyboardInterrupt in the main thread, so that every `finally` on the way runs. The second,
or `_ORDER_S` without an end, ends the process and all that it has started at once.
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
_HANDLED = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal has stopped a piece of work; its text says where the work goes on."""


class _Signals:
    """What this process has been sent, and what a signal does now; one, as there is one main thread."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.is_handled = False
        self.is_deferred = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
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
        for number in _HANDLED:
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGALRM, self.on_alarm)


_signals = _Signals()


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Within, SIGTERM and SIGINT raise KeyboardInterrupt, once; `received` tells which it was. For the main thread."""
    before = {number: signal.getsignal(number) for number in (*_HANDLED, signal.SIGALRM)}
    _signals.received, _signals.is_handled = None, True
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
        _signals.is_handled = False
        for number, handler in before.items():
            signal.signal(number, handler)


def handle_again() -> None:
    """Put our handlers back where a library (ray.init) has set its own. Nothing outside `orderly_end`."""
    if _signals.is_handled and threading.current_thread() is threading.main_thread():
        _signals.set_handlers()


def received() -> signal.Signals | None:
    """The signal that ends this process, None while none has come."""
    return _signals.received


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal is only noted in `received`, for work that can leave more behind if it comes to a good end.

    KeyboardInterrupt comes at the end of the block, or some seconds after the signal if the block is still running.
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
    of `orderly_end`; produces: the end of the process after `_ORDER_S`, unless it has ended by then.
    """
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        number = 0
        while number not in _HANDLED:
            if not (numbers := pipe.read(1)):
                return
            number = numbers[0]
        time.sleep(_ORDER_S)
        _end_now(signal.Signals(number), f"an orderly end took more than {_ORDER_S:.0f} s")


def _end_now(number: signal.Signals, why: str) -> None:
    """Kill everything that this process has started, and end it."""
    print(f"raymill: stopped by {number.name}; {why}, so everything was ended at once", file=sys.stderr, flush=True)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(128 + number)
