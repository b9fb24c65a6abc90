"""Shows on stderr what a command is doing.

In a terminal the display is one line that is redrawn in place; in a log file it is a sequence of lines. `Progress` is
for activities that count towards a total, `show_activity` for activities that do not. An activity is open while its
`with` block runs. All open activities are shown together in one line, the outermost first. When nothing else was
written for a while, a thread shows the line again with the elapsed time, so that no command is silent for more than
10 s in a terminal or 30 s in a log.
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
"""The line is shown again after `_TERMINAL_S` of silence in a terminal and after `_LOG_S` of silence in a log. Both are
below the promised 10 s and 30 s, because a busy machine delays the thread."""
_REDRAW_S = 0.2
"""Shortest interval between two redraws of the line in a terminal."""
_RATE_WINDOW = 12
"""Number of latest updates from which the rate is computed."""
_POLL_S = 2.0
"""Interval at which `MetricsProgress` reads the metrics log."""

log = logging.getLogger(__name__)


class _ProgressLine:
    """The progress line of this process."""

    def __init__(self) -> None:
        self._writing = threading.RLock()
        """Acquired while something is written to stderr."""
        self._activities: dict[int, Callable[[], str]] = {}
        """For each open activity, a function that returns its text. The keys are numbers that identify the activities.
        The order is that in which the activities were opened."""
        self._last_number = 0
        """The identifying number of the activity that was opened last."""
        self.num_progress_changes = 0
        """How often an activity was opened, updated or closed."""
        self._is_drawn = False
        """Whether the line is visible in the terminal now."""
        self._last_output_s = time.monotonic()
        self._thread: threading.Thread | None = None

    def open(self, describe: Callable[[], str]) -> int:
        """Add an activity and return the number that identifies it, which `close` needs."""
        with self._writing:
            self._last_number += 1
            self.num_progress_changes += 1
            self._activities[self._last_number] = describe
            if self._thread is None or not self._thread.is_alive():  # a forked child process has no thread
                self._thread = threading.Thread(target=self._repeat, daemon=True, name="progress")
                self._thread.start()
            number = self._last_number
        if _is_terminal():
            self.draw()
        return number

    def close(self, number: int) -> None:
        """Remove an activity."""
        with self._writing:
            self._activities.pop(number, None)
            self.num_progress_changes += 1
            self._clear()

    def draw(self) -> None:
        """Draw the line in the terminal, at most five times a second."""
        if self.silence_s() < _REDRAW_S and self._is_drawn:
            return
        with self._writing:
            self._is_drawn = _write(f"\r\033[K{self._text(_columns() - 1)}")
            self._last_output_s = time.monotonic()

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Erase the line from the terminal while something else is written."""
        with self._writing:
            self._clear()
            yield
            self._last_output_s = time.monotonic()

    def silence_s(self) -> float:
        """Return the seconds since the last output."""
        return time.monotonic() - self._last_output_s

    def _clear(self) -> None:
        if self._is_drawn:
            _write("\r\033[K")
            self._is_drawn = False

    def _text(self, width: int | None = None) -> str:
        """Return all open activities as one line of at most `width` columns. None means that the width has no limit.

        If the line is too long, the outermost activities are left out first. The width is limited because a line that
        wraps in the terminal could not be redrawn.
        """
        texts: list[str] = []
        for describe in list(self._activities.values()):
            try:
                texts.append(" ".join(describe().splitlines()))
            except Exception as error:  # an activity whose text cannot be made must not stop the progress line
                texts.append(f"({type(error).__name__}: {error})")
        while width is not None and len(texts) > 1 and _width(" · ".join(texts)) > width:
            texts.pop(0)
        text = " · ".join(texts)
        while width is not None and _width(text) > width:
            text = text[:-1]
        return text

    def _repeat(self) -> None:
        """Twice a second, check whether the command has been silent for too long. If so, show all open activities.

        Runs in a thread. In a terminal the progress line is redrawn, otherwise it is logged.
        """
        while True:
            is_terminal = _is_terminal()
            time.sleep(0.5)
            if not self._activities or self.silence_s() < (_TERMINAL_S if is_terminal else _LOG_S):
                continue
            if is_terminal:
                self.draw()
            else:
                log.info("%s", self._text())  # not while holding `_writing`, because `LogHandler` acquires it
                self._last_output_s = time.monotonic()  # needed where the level INFO is not shown


def _is_terminal() -> bool:
    """Whether stderr is a terminal in which a line can be redrawn. stderr may be closed or missing."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    """Return the width of the terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _write(text: str) -> bool:
    """Write to stderr and return whether it succeeded. The terminal may be closed while the work continues."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        return False
    return True


def _width(text: str) -> int:
    """Return the number of columns that a text takes in a terminal.

    A wide character takes two columns, a combining mark none, and any other character one.
    """
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


_line = _ProgressLine()


def current_activity() -> str:
    """Return what this process is doing, as its progress line says it. Empty when no activity is open."""
    return _line._text()


class LogHandler(logging.StreamHandler):
    """Writes log records to stderr, above the progress line of a terminal.

    A log record counts as output, so the progress line is not repeated soon after it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with _line.interrupted():
            super().emit(record)


def num_progress_changes() -> int:
    """Return how often an activity of this process was opened, updated or closed.

    A command makes no progress while this number does not change.
    """
    return _line.num_progress_changes


@contextmanager
def show_activity(activity: str | Callable[[], str]) -> Iterator[None]:
    """Show an activity and its duration while the block runs.

    `activity` is the text, or a function that returns the current text (`lambda: f"waiting for {name}"`). The function
    is called from another thread and must return immediately.
    """
    started_s = time.monotonic()

    def describe() -> str:
        text = activity if isinstance(activity, str) else activity()
        return f"{text} ({format_duration(time.monotonic() - started_s)})"

    number = _line.open(describe)
    try:
        yield
    finally:
        _line.close(number)


class Progress:
    """Shows progress towards a total, with rate and remaining time. A context manager.

    The duration is logged at the end of the block, unless the block failed.
    """

    def __init__(self, label: str, total: float, unit: str, *, done: float = 0.0) -> None:
        """`label` names the activity, and `unit` is the unit of `total`. `done` is how much was done earlier."""
        self._label, self._total, self._unit = label, total, unit
        self._note = ""
        """The text after the numbers, such as the latest loss. The log line at the end shows it too."""
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RATE_WINDOW)
        """(time, done) of the latest updates. The rate is computed only from these, so that old pauses do not count."""
        self.reset_rate(done)
        self._started_s = self._updated_s
        self._number = 0
        """The number that identifies this activity in the progress line."""
        self.has_failed = False
        """Set this to True if the work failed without an exception in the block. The duration is then not logged."""

    def __enter__(self) -> "Progress":
        self._started_s = time.monotonic()
        self.reset_rate(self._done)
        self._number = _line.open(self._describe)
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        _line.close(self._number)
        if error_type is None and not self.has_failed:
            log.info("%s: %s %s", self._label, format_duration(time.monotonic() - self._started_s), self._note)

    def update(self, done: float, note: str = "") -> None:
        """Report how much of the total is done. `note` is a text to show after the numbers.

        May be called often, because a terminal is redrawn at most every 0.2 s.
        """
        if done < self._done:  # the run has resumed from a checkpoint
            self.reset_rate(done)
        self._done, self._note, self._updated_s = done, note, time.monotonic()
        self._recent.append((self._updated_s, done))
        _line.num_progress_changes += 1
        if _is_terminal():
            _line.draw()

    def reset_rate(self, done: float) -> None:
        """Compute rate and remaining time only from the updates after this call. `done` is the progress so far."""
        self._done, self._updated_s = done, time.monotonic()
        self._recent.clear()
        self._recent.append((self._updated_s, done))

    def _describe(self) -> str:
        now = time.monotonic()
        fraction = self._done / self._total if self._total else 1.0
        parts = [f"{self._label}  {fraction:.0%}  {self._done:,.0f}/{self._total:,.0f} {self._unit}"]
        first_time_s, first_done = self._recent[0]
        if self._done > first_done:
            s_per_unit = (self._updated_s - first_time_s) / (self._done - first_done)
            parts.append(f"{1 / s_per_unit:,.1f}/s" if s_per_unit < 1 else f"{s_per_unit:,.1f} s each")
            left_s = (self._total - self._done) * s_per_unit - (now - self._updated_s)
            parts.append(f"{format_duration(max(0.0, left_s))} left" if self._done < self._total else "finishing")
        if self._note:
            parts.append(self._note)
        if now - self._updated_s > 10:
            parts.append(f"(no update for {format_duration(now - self._updated_s)})")
        return "  ".join(parts)


class MetricsProgress:
    """Shows the progress of a run whose steps other processes perform and log. A context manager."""

    def __init__(self, read_last_line: Callable[[], Mapping[str, float]], label: str, total_steps: int) -> None:
        """`read_last_line` returns the metrics of the log's last line, or an empty mapping while the log is empty."""
        self._read_last_line, self._label, self._total_steps = read_last_line, label, total_steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._earlier_line: Mapping[str, float] = {}
        """The line that was last in the log when this attempt of the run began. An earlier attempt logged it. Empty if
        there was none."""
        self._has_failed = False

    def __enter__(self) -> "MetricsProgress":
        self._earlier_line = self._try_read()
        self._thread.start()
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        self._has_failed = error_type is not None
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        with Progress(self._label, self._total_steps, "steps", done=self._earlier_line.get("step", 0.0)) as progress:
            self._follow_log(progress)
            progress.has_failed = self._has_failed

    def _follow_log(self, progress: Progress) -> None:
        """Every `_POLL_S` seconds, read the last line of the metrics log, and show its step if the line is new.

        Runs in a thread. The end of the `with` block interrupts the pause and ends the loop.
        """
        previous = self._earlier_line
        with show_activity("starting the workers; no step is logged yet"):
            while not (line := self._try_read()) or line == previous:
                if self._stop.wait(_POLL_S):
                    return
        # The rate starts here, because the time until the first line was not spent on steps, and because a resumed run
        # repeats steps that were logged before.
        progress.reset_rate(line["step"])
        while True:
            if line and line != previous:
                metrics = [f"{key.rpartition('/')[2]} {line[key]:.3f}" for key in line if key.endswith(_SHOWN_METRICS)]
                progress.update(line["step"], "  ".join(metrics))
            if self._stop.is_set():
                return
            self._stop.wait(_POLL_S)
            previous, line = line, self._try_read()

    def _try_read(self) -> Mapping[str, float]:
        try:
            return self._read_last_line()
        except OSError:  # the store fails at the moment; the next poll reads it again
            return {}


_SHOWN_METRICS = ("/loss", "/reward_mean")
"""Metrics whose keys end like this are shown next to the steps."""


def format_duration(seconds: float) -> str:
    """Format a duration: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, remaining_s = divmod(round(seconds), 60)
    return f"{minutes} min {remaining_s} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
