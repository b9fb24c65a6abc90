"""The cores and the memory that a process may use are limited by its affinity and by its control group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import machine
from cluster.machine import num_cores, num_parallel_tasks


@pytest.mark.parametrize(("core_limit", "cores"), [(None, 4), (1.5, 2), (0.1, 1), (64.0, 4)])
def test_the_number_of_cores_is_limited_by_affinity_and_control_group(
    core_limit: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "cgroup_of", lambda pid, controller: Path("/group"))
    monkeypatch.setattr(machine, "core_limit_of", lambda folder: core_limit)
    assert num_cores() == cores


@pytest.mark.parametrize(
    ("workers", "num_tasks", "expected"), [(None, 9, 4), (0, 9, 1), (2, 9, 2), (8, 9, 4), (None, 3, 3)]
)
def test_tasks_run_on_all_cores_unless_the_config_sets_fewer_workers(
    workers: int | None, num_tasks: int, expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    assert num_parallel_tasks(workers, num_tasks) == expected


@pytest.mark.parametrize(
    ("limit_name", "use_name", "kills_name", "droppable"),
    [
        ("memory.max", "memory.current", "memory.events", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "total_inactive_file"),
    ],
    ids=["v2", "v1"],
)
def test_a_control_group_limits_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_name: str, use_name: str, kills_name: str, droppable: str
):
    (tmp_path / limit_name).write_text(f"{300 << 20}\n")
    (tmp_path / use_name).write_text(f"{200 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"{droppable} {50 << 20}\n")
    (tmp_path / kills_name).write_text("oom_kill 0\n")
    monkeypatch.setattr(machine, "cgroup_of", lambda pid: tmp_path)
    assert machine.free_memory_bytes() == 150 << 20
    (tmp_path / limit_name).write_text("max\n" if limit_name == "memory.max" else "9223372036854771712\n")
    free = machine.free_memory_bytes()
    assert free is not None and free > 150 << 20
