"""When a run without progress counts as hanging."""

from cluster.node_monitor import NodeReport
from cluster.stall_detector import StallDetector


def test_a_stall_is_reported_once_after_minutes_of_idle_or_half_an_hour_of_busy_processes() -> None:
    idle, busy, progressing = NodeReport([], False, False), NodeReport([], False, True), NodeReport([], True, True)
    detector = StallDetector(0.0)
    assert detector.update([idle, progressing], 1, 10.0) is None
    assert detector.update([idle, busy], 1, 600.0) is None  # a process computes, and the machine may be slow
    assert detector.update([idle], 1, 700.0) is None
    assert detector.update([idle], 1, 790.0) == 780.0 and detector.update([idle], 1, 900.0) is None
    assert detector.update([idle], 2, 910.0) is None  # the driver has made progress
    assert detector.update([idle], 2, 910.0 + 2000.0) is None  # less than ten times the longest pause, 900 s
    busy_detector = StallDetector(0.0)
    assert [busy_detector.update([busy], 0, now) for now in (1000.0, 1799.0, 1801.0)] == [None, None, 1801.0]
