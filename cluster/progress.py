"""Progress on stderr while a command works or waits: a redrawn line in a terminal, whole lines in a log.

`Progress` is for work that counts steps, `working` for work that may take long without counting. All open activities of
a process form one line, outermost first, which a thread repeats with the elapsed time whenever nothing else was
written: so no command is silent for more than 10 s in a terminal or 30 s in a log.
"""

import logging
import os
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

_TERMINAL_S = 2.0
_LOG_S = 25.0
"""Longest silences in a terminal and in a log; below the promised 10 s and 30 s, as the machine may be busy."""
_REDRAW_S = 0.2
_RATE_WINDOW = 12
"""The number of updates over which the rate is computed."""
_POLL_S = 2.0

log = logging.getLogger(__name__)


class _Line:
    """The progress line of this process: the open activities, and when something was last written.

    consumes: the activities; waits for: silence; is unblocked by: a poll; produces: one line that names them all.
    """

    def __init__(self) -> None:
        self._writing = threading.RLock()
        self._activities: dict[int, Callable[[], str]] = {}
        self._next = 0
        self.num_changes = 0
        self._is_drawn = False
        self._written_s = time.monotonic()
        self._thread: threading.Thread | None = None

    def open(self, describe: Callable[[], str]) -> int:
        """Add an activity; returns the number by which `close` removes it."""
        with self._writing:
            self._next += 1
            self.num_changes += 1
            self._activities[self._next] = describe
            if self._thread is None or not self._thread.is_alive():  # a forked child has none
                self._thread = threading.Thread(target=self._repeat, daemon=True, name="progress")
                self._thread.start()
            number = self._next
        if _is_terminal():
            self.draw()
        return number

    def close(self, number: int) -> None:
        with self._writing:
            self._activities.pop(number, None)
            self.num_changes += 1
            self._clear()

    def draw(self) -> None:
        """Show the activities in a terminal, at most five times a second."""
        if self.silence_s() < _REDRAW_S and self._is_drawn:
            return
        with self._writing:
            self._is_drawn = _write(f"\r\033[K{self._text(_columns() - 1)}")
            self._written_s = time.monotonic()

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Remove the redrawn line while something else is written."""
        with self._writing:
            self._clear()
            yield
            self._written_s = time.monotonic()

    def silence_s(self) -> float:
        """Seconds since something was written."""
        return time.monotonic() - self._written_s

    def _clear(self) -> None:
        if self._is_drawn:
            _write("\r\033[K")
            self._is_drawn = False

    def _text(self, width: int | None = None) -> str:
        """All activities in one line of at most `width` columns, leaving out the outermost ones first.

        A line that wraps could not be redrawn.
        """
        texts: list[str] = []
        for describe in list(self._activities.values()):
            try:
                texts.append(" ".join(describe().splitlines()))
            except Exception as error:  # a failing description must not end the progress line
                texts.append(f"({type(error).__name__}: {error})")
        while width is not None and len(texts) > 1 and _width(" · ".join(texts)) > width:
            texts.pop(0)
        text = " · ".join(texts)
        while width is not None and _width(text) > width:
            text = text[:-1]
        return text

    def _repeat(self) -> None:
        while True:
            is_terminal = _is_terminal()
            time.sleep(0.5)
            if not self._activities or self.silence_s() < (_TERMINAL_S if is_terminal else _LOG_S):
                continue
            if is_terminal:
                self.draw()
            else:
                log.info("%s", self._text())  # without the lock: the handler takes it
                self._written_s = time.monotonic()  # also where this level is not shown


def _is_terminal() -> bool:
    """Whether stderr is a terminal in which a line can be redrawn; it may also be closed or missing."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _write(text: str) -> bool:
    """Write to stderr; False when that failed, as a terminal may be closed while the work continues."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        return False
    return True


def _width(text: str) -> int:
    """The width of a text in a terminal: two columns for a wide character, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


_line = _Line()


def current_activity() -> str:
    """What this process is doing, as its line in a log: stage, step, rate, time left, what it waits for."""
    return _line._text()


class LogHandler(logging.StreamHandler):
    """Writes log records to stderr, above the redrawn line of a terminal, and counts them as progress output."""

    def emit(self, record: logging.LogRecord) -> None:
        with _line.interrupted():
            super().emit(record)


def num_changes() -> int:
    """How often any activity has begun, advanced or ended; a command whose number does not change makes no progress."""
    return _line.num_changes


@contextmanager
def working(what: str | Callable[[], str]) -> Iterator[None]:
    """Show an activity and its duration for as long as the block lasts.

    `what` is its text, or a function that gives the present text: it is called from another thread and must return at
    once (`lambda: f"waiting for {name}"`).
    """
    started_s = time.monotonic()

    def describe() -> str:
        text = what if isinstance(what, str) else what()
        return f"{text} ({format_duration(time.monotonic() - started_s)})"

    number = _line.open(describe)
    try:
        yield
    finally:
        _line.close(number)


class Progress:
    """Progress towards a total, with rate and time left, as a context manager; its end is logged."""

    def __init__(self, label: str, total: float, unit: str, *, done: float = 0.0) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._note = ""
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RATE_WINDOW)
        """(time, done) of the last updates, from which the rate is computed: old pauses are forgotten."""
        self.count_from(done)
        self._started_s = self._updated_s
        self._number = 0
        self.has_failed = False
        """Set it to leave the end out of the log; an exception in the block does the same."""

    def __enter__(self) -> "Progress":
        self._started_s = time.monotonic()
        self.count_from(self._done)
        self._number = _line.open(self._describe)
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        _line.close(self._number)
        if failed is None and not self.has_failed:
            log.info("%s: %s %s", self._label, format_duration(time.monotonic() - self._started_s), self._note)

    def update(self, done: float, note: str = "") -> None:
        """Report that `done` of the total are done. Cheap: a terminal is drawn at most five times a second."""
        if done < self._done:  # it has resumed from a checkpoint
            self.count_from(done)
        self._done, self._note, self._updated_s = done, note, time.monotonic()
        self._recent.append((self._updated_s, done))
        _line.num_changes += 1
        if _is_terminal():
            _line.draw()

    def count_from(self, done: float) -> None:
        """Compute rate and time left from here on: `done` was done earlier, and the time until now was not work."""
        self._done, self._updated_s = done, time.monotonic()
        self._recent.clear()
        self._recent.append((self._updated_s, done))

    def _describe(self) -> str:
        now = time.monotonic()
        share = self._done / self._total if self._total else 1.0
        words = [f"{self._label}  {share:.0%}  {self._done:,.0f}/{self._total:,.0f} {self._unit}"]
        first_s, first = self._recent[0]
        if self._done > first:
            each_s = (self._updated_s - first_s) / (self._done - first)
            words.append(f"{1 / each_s:,.1f}/s" if each_s < 1 else f"{each_s:,.1f} s each")
            left_s = (self._total - self._done) * each_s - (now - self._updated_s)
            words.append(f"{format_duration(max(0.0, left_s))} left" if self._done < self._total else "ending")
        if self._note:
            words.append(self._note)
        if now - self._updated_s > 10:
            words.append(f"(for {format_duration(now - self._updated_s)})")
        return "  ".join(words)


class MetricsProgress:
    """Shows the progress of a run in other processes from the last line of its metrics log, as a context manager.

    consumes: that line, empty before the first; waits for: a new one; is unblocked by: a poll; produces: progress.
    """

    def __init__(self, read_last: Callable[[], Mapping[str, float]], label: str, total_steps: int) -> None:
        self._read_last, self._label, self._total = read_last, label, total_steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._before: Mapping[str, float] = {}
        self._has_failed = False

    def __enter__(self) -> "MetricsProgress":
        self._before = self._last()
        self._thread.start()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self._has_failed = failed is not None
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        with Progress(self._label, self._total, "steps", done=self._before.get("step", 0.0)) as progress:
            self._show(progress)
            progress.has_failed = self._has_failed

    def _show(self, progress: Progress) -> None:
        last = self._before
        with working("starting its workers; no step is logged yet"):
            while not (now := self._last()) or now == last:
                if self._stop.wait(_POLL_S):
                    return
        progress.count_from(now["step"])  # not from the start of its workers, and a resume repeats some steps
        while True:
            if now and now != last:
                shown = [f"{key.rpartition('/')[2]} {now[key]:.3f}" for key in now if key.endswith(_SHOWN)]
                progress.update(now["step"], "  ".join(shown))
            if self._stop.is_set():
                return
            self._stop.wait(_POLL_S)
            last, now = now, self._last()

    def _last(self) -> Mapping[str, float]:
        try:
            return self._read_last()
        except OSError:  # a store that fails for a while: the next poll tries again
            return {}


_SHOWN = ("/loss", "/reward_mean")
"""Metrics that are shown beside the steps, by the end of their keys."""


def format_duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
