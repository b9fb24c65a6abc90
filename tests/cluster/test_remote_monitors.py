"""Tests of polling monitors on several nodes, some of which are slow, silent or dead."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cluster import remote_monitors, signals
from cluster.node_monitor import NodeMonitor
from cluster.process_info import ProcessInfo
from cluster.remote_monitors import RemoteMonitors

NO_PID = 2**22 + 1
"""Larger than any process id of Linux."""


@pytest.fixture
def monitors(fake_nodes: Any) -> RemoteMonitors:
    monitors = RemoteMonitors(fake_nodes)
    monitors.update_nodes()
    return monitors


def deaths(monitors: RemoteMonitors) -> list[ProcessInfo]:
    return [event.process for report in monitors.poll() for event in report.events]


def test_a_death_that_a_slow_node_reports_late_is_returned(fake_nodes: Any, monitors: RemoteMonitors) -> None:
    process, slow = fake_nodes.add_process("b", 1), fake_nodes.nodes["b"]
    slow.is_answering.clear()
    assert deaths(monitors) == []
    started_s = time.monotonic()
    assert deaths(monitors) == [] and time.monotonic() - started_s < 0.5  # only the first poll waits for the slow node
    slow.is_answering.set()
    while not (found := deaths(monitors)):
        time.sleep(0.01)
    assert found == [process] and deaths(monitors) == []


def test_a_late_report_does_not_contain_deaths_of_processes_that_were_ended_on_purpose(
    fake_nodes: Any, monitors: RemoteMonitors
) -> None:
    fake_nodes.add_process("b", 1)
    other = fake_nodes.add_process("b", 2, pid=NO_PID + 1)
    fake_nodes.nodes["b"].is_answering.clear()
    monitors.poll()
    monitors.ignore_exits("generator", 1)
    fake_nodes.nodes["b"].is_answering.set()
    while not (found := deaths(monitors)):
        time.sleep(0.01)
    assert found == [other]


def test_a_dead_monitor_is_replaced_and_a_lost_node_is_forgotten(fake_nodes: Any, monitors: RemoteMonitors) -> None:
    fake_nodes.nodes["a"].is_gone = True
    monitors.poll()
    monitors.update_nodes()
    process = fake_nodes.add_process("a", 1)
    assert sorted(fake_nodes.started) == ["a", "a", "b", "c"] and deaths(monitors) == [process]
    fake_nodes.names.remove("c")
    monitors.update_nodes()
    assert len(monitors.poll()) == 2
    for _ in range(5):
        fake_nodes.nodes["b"].is_gone = True
        monitors.poll()
        monitors.update_nodes()
    assert fake_nodes.started.count("b") == 3  # a monitor that always dies is started three times


def test_silent_nodes_are_waited_for_together_and_only_shortly_after_a_signal(
    fake_nodes: Any, monitors: RemoteMonitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in fake_nodes.nodes.values():
        node.is_answering.clear()
    started_s = time.monotonic()
    monitors.call(NodeMonitor.request_stop)
    assert 0.5 < time.monotonic() - started_s < 1.2
    monkeypatch.setattr(remote_monitors, "_ANSWER_LIMIT_S", 60.0)
    monkeypatch.setattr(remote_monitors, "_ANSWER_LIMIT_AFTER_SIGNAL_S", 0.2)
    monkeypatch.setattr(signals._signals, "received", signals.signal.SIGTERM)
    started_s = time.monotonic()
    monitors.call(NodeMonitor.request_stop), monitors.poll(), monitors.ignore_exits(None, None), monitors.poll()
    assert time.monotonic() - started_s < 1.5
