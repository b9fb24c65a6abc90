"""The cores that a process may use are bounded by its affinity and by its control group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import machine
from cluster.machine import num_cores


@pytest.mark.parametrize(("share", "cores"), [(None, 4), (1.5, 2), (0.1, 1), (64.0, 4)])
def test_cores_are_those_bound_to_and_no_more_than_the_share(
    share: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "cgroup_of", lambda pid, controller: Path("/group"))
    monkeypatch.setattr(machine, "core_limit_of", lambda folder: share)
    assert num_cores() == cores
