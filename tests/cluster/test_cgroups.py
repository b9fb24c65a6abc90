"""What this machine gives: whatever its processes are called, and wherever a control group's limit stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import cgroups, machine, resource_usage
from cluster.cgroups import core_limit_of, free_memory_in, limiting_group, memory_use_of
from cluster.machine import num_cores
from cluster.resource_usage import sample_usage

NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, "обучение модели".encode()[:15], 0, 0, 0)  # as the kernel cuts it
print("named", flush=True)
sys.stdin.read()
"""


def test_a_process_whose_name_ends_within_a_letter_is_no_obstacle():
    with subprocess.Popen([sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"named\n"
        with pytest.raises(UnicodeDecodeError):
            Path(f"/proc/{process.pid}/status").read_text()
        assert any(status["Pid"] == str(process.pid) for status in resource_usage._statuses())
        assert sample_usage(os.getpid()) is None  # no Ray here
        assert cgroups.peak_memory_of(process.pid) > 0
        process.communicate(b"")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the kernel's folder of control groups."""
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    return tmp_path


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return folder


def test_the_limit_of_a_group_above_counts(groups: Path):
    unlimited = {"memory__events": "oom_kill 0", "memory__stat": "inactive_file 10", "memory__current": "500"}
    pod = write(groups / "pod", **unlimited | {"memory__max": "2000", "memory__current": "900"})
    leaf = write(pod / "step" / "task", **unlimited, memory__max="max")
    write(pod / "step", **unlimited, memory__max="max")
    assert free_memory_in(leaf) == 2000 - 900 + 10 and memory_use_of(leaf) == (900 - 10, 2000)
    assert (found := limiting_group(leaf)) and found.path == str(pod)
    (leaf / "memory.max").write_text("600\n")
    assert free_memory_in(leaf) == 600 - 500 + 10


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        (("max 100000", "max 100000"), None),
        (("max 100000", "150000 100000"), 1.5),
        (("50000 100000", "400000 100000"), 0.5),
    ],
)
def test_the_share_of_a_group_above_counts(groups: Path, quotas: tuple[str, str], cores: float | None):
    leaf = write(groups / "pod" / "task", cpu__max=quotas[0])
    write(groups / "pod", cpu__max=quotas[1])
    assert core_limit_of(leaf) == cores


def test_the_share_is_read_in_the_old_version_too(groups: Path):
    group = write(groups / "cpu" / "docker", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    write(groups / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert core_limit_of(group) == 2.5


@pytest.mark.parametrize(("share", "cores"), [(None, 4), (1.5, 2), (0.1, 1), (64.0, 4)])
def test_cores_are_those_bound_to_and_no_more_than_the_share(
    share: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "cgroup_of", lambda pid, controller: Path("/group"))
    monkeypatch.setattr(machine, "core_limit_of", lambda folder: share)
    assert num_cores() == cores
