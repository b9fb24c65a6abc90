"""The memory of processes is read whatever they are called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import resource_usage
from cluster.cgroups import peak_memory_of
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
        assert peak_memory_of(process.pid) > 0
        process.communicate(b"")
