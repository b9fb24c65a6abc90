"""The stage monitor keeps deaths until they are asked for, and reports a stall once."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import heartbeat, stage_monitor, stall_detector
from cluster.node_monitor import NodeMonitor
from cluster.stage_monitor import StageMonitor


def test_ignore_exits_forgets_only_the_deaths_of_the_given_process(fake_nodes: Any, monitor: StageMonitor) -> None:
    processes = [fake_nodes.add_process(name, index) for index, name in enumerate("ab")]
    monitor._poll()
    monitor.ignore_exits("generator", 0)
    death = monitor.pop_death(role="generator", timeout_s=0.0)
    assert death is not None and death.process == processes[1]


def test_a_stall_without_processes_is_reported_with_the_missing_resources(
    monitor: StageMonitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stall_detector, "_IDLE_LIMIT_S", 0.0)
    monkeypatch.setattr(stall_detector, "_STALL_FACTOR", 0.0)
    monkeypatch.setattr(stage_monitor, "missing_capacity", lambda: "cleaning: needs 1 CPU, the cluster has 0")
    monitor._warn_of_stall(monitor._poll())
    time.sleep(0.01)
    monitor._warn_of_stall(monitor._poll())
    assert "rlhf: no progress for 0 s; no processes are running; missing: cleaning: needs 1 CPU, the cluster has 0" in (
        caplog.text
    )
    caplog.clear()
    # While the stage waits for capacity, `wait_for_capacity` logs what it waits for.
    monkeypatch.setattr(stage_monitor, "is_waiting_for_capacity", lambda: True)
    monitor._warn_of_stall(monitor._poll())
    assert caplog.text == ""


def test_a_message_of_a_process_is_logged_with_the_stage(
    monitor: StageMonitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat._registration, "folder", tmp_path / "own")
    caplog.set_level(logging.INFO)
    heartbeat.log_on_driver("resumes from step 3", level=logging.INFO)
    monitor._poll()
    assert ("cluster.stage_monitor", logging.INFO, "rlhf: resumes from step 3") in caplog.record_tuples


def test_polling_continues_after_an_error_which_is_reported_once(
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
