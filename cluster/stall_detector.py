"""Decides whether a run hangs: it has stalled when none of its processes has made progress for too long."""

from collections.abc import Sequence

from cluster.node_monitor import NodeReport

_IDLE_LIMIT_S, _BUSY_LIMIT_S = 180.0, 1800.0
"""A stall is reported when the run has made no progress for the second limit, or when all its processes have also been
idle for the first limit."""
_STALL_FACTOR = 10.0
"""A pause without progress only counts as a stall if it is more than this many times as long as the longest earlier
pause. Slow machines have long pauses and must not cause warnings."""


class StallDetector:
    """Decides whether a run has stalled, from the reports of the nodes and the current time."""

    def __init__(self, now_s: float) -> None:
        self._last_progress_s = now_s
        """Time of the last progress."""
        self._last_activity_s = now_s
        """Time at which a process last computed or made progress, as far as the reports show it."""
        self._longest_pause_s, self._num_changes, self._is_reported = 0.0, 0, False

    def update(self, reports: Sequence[NodeReport], num_progress_changes: int, now_s: float) -> float | None:
        """Return the seconds since the last progress when the run has stalled, else None.

        Each stall is reported once: after that, the result is None until the run has made progress and stalled again.
        `num_progress_changes` is the driver's own progress counter (`progress.num_progress_changes`), and `now_s` is
        the current time of a monotonic clock.
        """
        pause_s = now_s - self._last_progress_s
        if num_progress_changes != self._num_changes or any(report.has_progress for report in reports):
            self._longest_pause_s = max(self._longest_pause_s, pause_s)
            self._num_changes, self._is_reported = num_progress_changes, False
            self._last_progress_s = self._last_activity_s = now_s
            return None
        if any(report.is_busy for report in reports):
            self._last_activity_s = now_s
        is_over_limit = pause_s > _BUSY_LIMIT_S or now_s - self._last_activity_s > _IDLE_LIMIT_S
        if self._is_reported or not is_over_limit or pause_s <= _STALL_FACTOR * self._longest_pause_s:
            return None
        self._is_reported = True
        return pause_s
