"""Limits, memory use and OOM kills of control groups are read in both versions, also from the ancestors of a group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import cgroups
from cluster.cgroups import (
    cgroup_of,
    core_limit_of,
    free_group_bytes,
    limiting_group,
    peak_memory_of,
    read_memory_group,
    smallest_limit_use,
)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that replaces the kernel's folder of control groups."""
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    return tmp_path


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return folder


def test_the_memory_limit_of_an_ancestor_applies(groups: Path):
    unlimited = {"memory__events": "oom_kill 0", "memory__stat": "inactive_file 10", "memory__current": "500"}
    pod = write(groups / "pod", **unlimited | {"memory__max": "2000", "memory__current": "900"})
    leaf = write(pod / "step" / "task", **unlimited, memory__max="max")
    write(pod / "step", **unlimited, memory__max="max")
    assert free_group_bytes(leaf) == 2000 - 900 + 10 and smallest_limit_use(leaf) == (900 - 10, 2000)
    assert (group := limiting_group(leaf)) and group.path == str(pod)
    (leaf / "memory.max").write_text("600\n")
    assert free_group_bytes(leaf) == 600 - 500 + 10


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        (("max 100000", "max 100000"), None),
        (("max 100000", "150000 100000"), 1.5),
        (("50000 100000", "400000 100000"), 0.5),
    ],
)
def test_the_core_limit_of_an_ancestor_applies(groups: Path, quotas: tuple[str, str], cores: float | None):
    leaf = write(groups / "pod" / "task", cpu__max=quotas[0])
    write(groups / "pod", cpu__max=quotas[1])
    assert core_limit_of(leaf) == cores


def test_a_process_belongs_to_the_nearest_group_with_the_controller(groups: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cgroups, "_PROCESSES", groups)
    write(groups / "7", cgroup="0::/pod/step/task")
    pod = write(groups / "pod", memory__events="oom_kill 0")
    step = write(pod / "step" / "task", cgroup__procs="7").parent
    assert cgroup_of(7) == pod and cgroup_of(7, "cpu") is None and cgroup_of(8) is None
    write(step, cpu__max="max 100000")
    assert cgroup_of(7, "cpu") == step
    write(groups / "7", cgroup="0::/path/on/the/host")
    write(groups, memory__events="oom_kill 0")
    assert cgroup_of(7) == groups


def test_the_core_limit_is_read_in_version_1(groups: Path):
    group = write(groups / "cpu" / "docker", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    write(groups / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert core_limit_of(group) == 2.5


def test_memory_groups_of_both_versions_are_read(tmp_path: Path) -> None:
    for name, files in {
        "v1": {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "memory.limit_in_bytes": "1024\n",
               "memory.max_usage_in_bytes": "1000\n"},
        "v2": {"memory.events": "low 0\noom 3\noom_kill 2\n", "memory.max": "max\n", "memory.peak": "1000\n"},
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    v1, v2 = read_memory_group(tmp_path / "v1"), read_memory_group(tmp_path / "v2")
    assert v1 and v2 and (v1.num_oom_kills, v1.limit_bytes, v1.peak_bytes) == (2, 1024, 1000)
    assert (v2.num_oom_kills, v2.limit_bytes, v2.peak_bytes) == (2, None, 1000)
    assert read_memory_group(tmp_path / "gone") is None and peak_memory_of(os.getpid()) > 1 << 20
