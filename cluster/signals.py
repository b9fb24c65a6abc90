"""Orderly shutdown on SIGTERM, SIGINT and SIGHUP.

The first signal raises KeyboardInterrupt in the main thread, so that `finally` blocks end child processes and save
finished work. The exit code is 128 + the number of the signal. A second signal kills the process and all its child
processes at once. The same happens when the shutdown takes longer than `_SHUTDOWN_LIMIT_S`.

SIGHUP is sent when the terminal is closed, often by the kernel and again by the shell. Therefore a SIGHUP that follows
another signal is ignored. Under `nohup` every SIGHUP is ignored.
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
"""How long an orderly shutdown may take. After SIGTERM, Kubernetes and Slurm wait 30 s by default before they send
SIGKILL, and Ray waits 20 s for our jobs (`cluster.submission`). Docker and Podman wait only 10 s by default."""
_DEFER_LIMIT_S = 6.0
"""How long `defer_signals` may delay the shutdown, for example to write a last checkpoint. This time is part of
`_SHUTDOWN_LIMIT_S`."""
_LAST_MESSAGE_S = 1.0
"""How long writing the last message to stderr may take."""
_SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StoppedBySignal(KeyboardInterrupt):
    """Raised when a signal has stopped the work. The text says where the work will resume."""


class _SignalState:
    """The signal that this process has received, and how further signals are handled. There is one instance."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first shutdown signal. None until there is one."""
        self.handled: tuple[signal.Signals, ...] = ()
        """The signals of `_SHUTDOWN_SIGNALS` that are not ignored. Empty outside of `orderly_shutdown`."""
        self.is_deferred = False
        """Whether the process is inside `defer_signals`."""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a shutdown signal."""
        if self.received is not None and number == signal.SIGHUP:
            return
        if self.received is not None:
            _kill_all(self.received, "a second signal was received")
        self.received = signal.Signals(number)
        if self.is_deferred:
            signal.setitimer(signal.ITIMER_REAL, _DEFER_LIMIT_S)
            return
        raise KeyboardInterrupt  # Ray's blocking calls wrap every other exception

    def on_alarm(self, number: int, frame: FrameType | None) -> None:
        """Handle the alarm at the end of `_DEFER_LIMIT_S`."""
        raise KeyboardInterrupt

    def set_handlers(self) -> None:
        """Install `on_signal` and `on_alarm` as signal handlers."""
        for number in self.handled:
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGALRM, self.on_alarm)


_signals = _SignalState()


@contextlib.contextmanager
def orderly_shutdown() -> Iterator[None]:
    """Make the first signal within the block raise KeyboardInterrupt in the main thread.

    `received_signal` returns the signal. The earlier handlers are restored at the end of the block.
    """
    old_handlers = {number: signal.getsignal(number) for number in (*_SHUTDOWN_SIGNALS, signal.SIGALRM)}
    is_hangup_ignored = old_handlers[signal.SIGHUP] == signal.SIG_IGN  # the command runs under `nohup`
    _signals.handled = tuple(number for number in _SHUTDOWN_SIGNALS if number != signal.SIGHUP or not is_hangup_ignored)
    _signals.received = None
    _signals.set_handlers()
    # Python's C-level handler writes the number of each signal to this pipe at once, even while the main thread is
    # inside a C function and Python handlers cannot run.
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    old_write_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    threading.Thread(target=_enforce_shutdown_limit, args=(read_fd,), daemon=True, name="orderly-shutdown").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_write_fd)
        os.close(write_fd)
        _signals.handled = ()
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """Restore Raymill's signal handlers at the end of the block, after a library such as Ray has replaced them.

    Ray's handler raises SystemExit(SIGTERM), which this context manager turns into a KeyboardInterrupt. Processes that
    the library starts in the block do not receive SIGHUP: when the terminal is closed, Raymill still needs them for its
    orderly shutdown and ends them itself. Does nothing outside of `orderly_shutdown` and in threads other than the main
    thread.
    """
    if not _signals.handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    # Child processes inherit this signal mask. Our own handler still runs, because the system delivers the signal to
    # another thread of this process.
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
    """Return the first shutdown signal since the latest `orderly_shutdown` began, or None."""
    return _signals.received


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Delay the KeyboardInterrupt of a signal until the end of the block.

    Use it for work that should finish first, such as writing a checkpoint. Inside the block `received_signal` shows
    whether a signal was received. KeyboardInterrupt is raised at the end of the block, or `_DEFER_LIMIT_S` after the
    signal if the block has not ended by then. KeyboardInterrupt replaces an exception that the block raised, because
    that exception is usually a consequence of the signal: the actors of a run often receive the same signal and fail.
    """
    _signals.is_deferred = True
    try:
        yield
    finally:
        _signals.is_deferred = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _signals.received is not None:
            raise KeyboardInterrupt


def _enforce_shutdown_limit(read_fd: int) -> None:
    """Kill the process when its orderly shutdown takes longer than `_SHUTDOWN_LIMIT_S`. Runs in a thread.

    The thread reads the numbers of signals from Python's wake-up pipe until one of them is in `_SHUTDOWN_SIGNALS`. It
    kills the process `_SHUTDOWN_LIMIT_S` after this signal, unless the process has ended earlier. If `orderly_shutdown`
    ends without such a signal, the pipe is closed and the thread ends.
    """
    with os.fdopen(read_fd, "rb", buffering=0) as pipe:
        number = 0
        while number not in _SHUTDOWN_SIGNALS:  # SIGALRM is written to the pipe too
            if not (numbers := pipe.read(1)):
                return
            number = numbers[0]
        time.sleep(_SHUTDOWN_LIMIT_S)
        _kill_all(signal.Signals(number), f"an orderly shutdown took more than {_SHUTDOWN_LIMIT_S:.0f} s")


def _kill_all(number: signal.Signals, reason: str) -> None:
    """Kill this process and all its child processes. `number` is the signal that started the shutdown."""
    try:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        text = f"raymill: stopped by {number.name}; {reason}, so all processes of the command were killed"
        # Not through `sys.stderr`, because the signal may have interrupted a write to its buffer. In a thread,
        # because the write blocks when stderr is a full pipe.
        thread = threading.Thread(target=_write_unbuffered, args=(text,), daemon=True)
        thread.start()
        thread.join(_LAST_MESSAGE_S)
    finally:
        os._exit(128 + number)


def _write_unbuffered(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def write_stderr(text: str) -> None:
    """Write a line to stderr. A closed stderr is not an error: Ctrl-C also ends the `tee` that stderr is piped to."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def flush_output() -> None:
    """Flush stdout and stderr. Output that a closed pipe does not accept is discarded.

    If such output were kept, Python would fail to flush it at exit and would replace the exit code with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
