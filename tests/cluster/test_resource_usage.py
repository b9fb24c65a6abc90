"""Tests of measuring the memory and CPU time of a process tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import resource_usage
from cluster.cgroups import peak_memory_of
from cluster.resource_usage import sample_usage

NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, "обучение модели".encode()[:15], 0, 0, 0)  # the kernel cuts names to 15 bytes
print("named", flush=True)
sys.stdin.read()
"""


def test_a_process_name_that_is_cut_within_a_character_can_be_read():
    with subprocess.Popen([sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"named\n"
        with pytest.raises(UnicodeDecodeError):
            Path(f"/proc/{process.pid}/status").read_text()
        assert any(status["Pid"] == str(process.pid) for status in resource_usage._process_statuses())
        assert sample_usage(os.getpid()) is None  # this process has no raylet
        assert peak_memory_of(process.pid) > 0
        process.communicate(b"")


def test_resource_usage_adds_up_all_processes_of_a_session(tmp_path: Path):
    raylet = tmp_path / "raylet"  # Ray's workers are children of a process with this name
    shutil.copy(os.path.realpath(sys.executable), raylet)
    program = "import subprocess, sys, time; text = b'x' * (200 << 20); print(len(text), flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
    child = subprocess.Popen([str(raylet), "-c", program], stdout=subprocess.PIPE, env=environment)
    try:
        assert child.stdout is not None and child.stdout.readline()
        with resource_usage.ResourceUsage() as during:
            time.sleep(1.5)
    finally:
        child.kill()
        child.wait()
    assert resource_usage.sample_usage(child.pid) is None  # the process has ended, so no raylet is found
    assert during.peak_bytes is not None and during.peak_bytes > 200 << 20
    assert during.cpu_s is not None and 0 <= during.cpu_s < 60
