"""Reports of several nodes, some of them slow, silent or gone."""

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


def test_a_death_that_a_slow_node_tells_late_is_not_lost(fake_nodes: Any, monitors: RemoteMonitors) -> None:
    place, slow = fake_nodes.add_process("b", 1), fake_nodes.nodes["b"]
    slow.answers.clear()
    assert deaths(monitors) == []
    began = time.monotonic()
    assert deaths(monitors) == [] and time.monotonic() - began < 0.5  # it is waited for once
    slow.answers.set()
    while not (found := deaths(monitors)):
        time.sleep(0.01)
    assert found == [place] and deaths(monitors) == []


def test_what_a_slow_node_has_seen_of_processes_that_were_ended_on_purpose_is_no_death(
    fake_nodes: Any, monitors: RemoteMonitors
) -> None:
    fake_nodes.add_process("b", 1)
    other = fake_nodes.add_process("b", 2, pid=NO_PID + 1)
    fake_nodes.nodes["b"].answers.clear()
    monitors.poll()
    monitors.ignore_exits("generator", 1)
    fake_nodes.nodes["b"].answers.set()
    while not (found := deaths(monitors)):
        time.sleep(0.01)
    assert found == [other]


def test_a_monitor_that_is_gone_is_replaced_and_a_node_that_is_gone_is_forgotten(
    fake_nodes: Any, monitors: RemoteMonitors
) -> None:
    fake_nodes.nodes["a"].is_gone = True
    monitors.poll()
    monitors.update_nodes()
    place = fake_nodes.add_process("a", 1)
    assert sorted(fake_nodes.started) == ["a", "a", "b", "c"] and deaths(monitors) == [place]
    fake_nodes.names.remove("c")
    monitors.update_nodes()
    assert len(monitors.poll()) == 2
    for _ in range(5):
        fake_nodes.nodes["b"].is_gone = True
        monitors.poll()
        monitors.update_nodes()
    assert fake_nodes.started.count("b") == 3  # no more processes are spent on what always dies


def test_silent_nodes_are_waited_for_together_and_shortly_once_a_signal_has_come(
    fake_nodes: Any, monitors: RemoteMonitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in fake_nodes.nodes.values():
        node.answers.clear()
    began = time.monotonic()
    monitors.call(NodeMonitor.request_stop)
    assert 0.5 < time.monotonic() - began < 1.2
    monkeypatch.setattr(remote_monitors, "_ANSWER_LIMIT_S", 60.0)
    monkeypatch.setattr(remote_monitors, "_ANSWER_LIMIT_AFTER_SIGNAL_S", 0.2)
    monkeypatch.setattr(signals._signals, "received", signals.signal.SIGTERM)
    began = time.monotonic()
    monitors.call(NodeMonitor.request_stop), monitors.poll(), monitors.ignore_exits(None, None), monitors.poll()
    assert time.monotonic() - began < 1.5
