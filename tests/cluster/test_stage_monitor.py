"""The driver keeps the deaths that nobody asked for yet, and reports a stall once."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import stage_monitor
from cluster.node_monitor import NodeMonitor, NodeReport
from cluster.stage_monitor import StageMonitor, StallDetector


def test_only_the_deaths_of_who_is_dismissed_are_forgotten(fake_nodes: Any, monitor: StageMonitor) -> None:
    places = [fake_nodes.add_process(name, index) for index, name in enumerate("ab")]
    monitor._poll()
    monitor.ignore_exits("generator", 0)
    death = monitor.pop_death(role="generator", timeout_s=0.0)
    assert death is not None and death.process == places[1]


def test_a_stall_of_nobody_is_reported_with_what_is_missing(
    monitor: StageMonitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage_monitor, "_IDLE_LIMIT_S", 0.0)
    monkeypatch.setattr(stage_monitor, "_STALL_FACTOR", 0.0)
    monkeypatch.setattr(stage_monitor, "missing_capacity", lambda: "cleaning: needs 1 CPU, the cluster has 0")
    monitor._warn_of_stall(monitor._poll())
    time.sleep(0.01)
    monitor._warn_of_stall(monitor._poll())
    assert "rlhf: no progress for 0 s; no processes are running; missing: cleaning: needs 1 CPU, the cluster has 0" in (
        caplog.text
    )
    caplog.clear()
    monkeypatch.setattr(stage_monitor, "is_waiting_for_capacity", lambda: True)  # which says for what by itself
    monitor._warn_of_stall(monitor._poll())
    assert caplog.text == ""


def test_whatever_a_look_meets_the_next_one_comes_and_it_is_reported_once(
    fake_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage_monitor, "_POLL_INTERVAL_S", 0.01)
    caplog.set_level(logging.WARNING)
    fake_nodes.error = KeyError("whatever")
    monitor = StageMonitor("rlhf", own_monitor=NodeMonitor(tmp_path / "own"), nodes=fake_nodes)
    time.sleep(0.5)
    assert caplog.text.count("the processes of the stage could not be checked; trying again: KeyError: 'whatever'") == 1
    fake_nodes.error = None
    while len(fake_nodes.started) < 3:
        time.sleep(0.01)
    monitor.close()


def test_stillness_is_reported_once_and_only_where_nothing_computes_for_minutes_or_moves_for_half_an_hour() -> None:
    asleep, busy, moves = NodeReport([], False, False), NodeReport([], False, True), NodeReport([], True, True)
    clock = StallDetector(0.0)
    assert clock.update([asleep, moves], 1, 10.0) is None
    assert clock.update([asleep, busy], 1, 600.0) is None  # it computes, on a machine that may be slow
    assert clock.update([asleep], 1, 700.0) is None
    assert clock.update([asleep], 1, 790.0) == 780.0 and clock.update([asleep], 1, 900.0) is None
    assert clock.update([asleep], 2, 910.0) is None  # the driver has come on
    assert clock.update([asleep], 2, 910.0 + 2000.0) is None  # not ten times its longest pause, 900 s
    endless = StallDetector(0.0)
    assert [endless.update([busy], 0, now) for now in (1000.0, 1799.0, 1801.0)] == [None, None, 1801.0]
