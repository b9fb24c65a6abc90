"""The cause of a death is read from Ray's reports and workers' logs, and guesses in the reports are ignored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.exceptions import LocalRayletDiedError, ObjectLostError, WorkerCrashedError

from cluster.death_causes import cause_in_log, cause_in_report, exit_cause, ip_in_report, pid_in_report

GUESS = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Generator\n\tpid: 5525\n\tip: 192.0.2.2\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed "
    "unexpectedly due to SIGSEGV or another unexpected error. If the process was killed by the kernel OOM killer, "
    "consider enabling resource isolation to prevent node deaths by resource contention."
)
NODE_DIED = (
    "Task failed because the node it was running on is dead or unavailable. Node IP: {0}, node ID: {1}. This can "
    "happen if the node was preempted, had a hardware failure, or its raylet crashed unexpectedly. To see node death "
    "information, use `ray list nodes --filter node_id={1}`, check the Ray dashboard cluster page, search the node ID "
    "in the GCS logs, or use `ray logs raylet.out -ip {0}`."
)


@pytest.mark.parametrize(
    ("report", "cause"),
    [
        (GUESS, None),
        ("… Worker exits with an exit code 1. The process receives a SIGTERM.", "was killed by signal 15 (SIGTERM)"),
        ("Worker exit detail: Worker exits with an exit code 3.", "ended by itself with exit code 3"),
        ("Worker exit detail: Worker exits with an exit code -1.", "ended by itself with exit code -1"),
        (
            "Task was killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was high",
            "ran out of memory: Ray's memory monitor ended it",
        ),
        (NODE_DIED.format("192.0.2.3", "04d3"), "was lost with its node"),
        (
            "The actor died because its node has died. Node Id: 04d3\n\tthe actor's node was terminated unexpectedly: "
            "health check failed due to missing too many heartbeats",
            "was lost with its node",
        ),
        (str(LocalRayletDiedError()), "was lost with its node"),
        (str(ObjectLostError("00ff", None, "")), "was lost with its node"),
        (str(WorkerCrashedError()), None),
    ],
)
def test_only_a_certain_cause_is_read_from_rays_report(report: str, cause: str | None) -> None:
    assert cause_in_report(report) == cause


def test_a_signal_without_a_name_is_named_by_its_number() -> None:
    assert exit_cause(-35) == "was killed by signal 35"


def test_the_process_id_and_the_node_are_read_from_rays_report() -> None:
    assert (pid_in_report(GUESS), ip_in_report(GUESS)) == (5525, "192.0.2.2")
    node = NODE_DIED.format("192.0.2.3", "04d3")
    assert (pid_in_report(node), ip_in_report(node)) == (None, "192.0.2.3")


@pytest.mark.parametrize(
    ("binary", "texts"),
    [
        (
            "_raylet.so",
            ["Task failed because the node it was running on is dead or unavailable. Node IP: %s, node ID: %s."],
        ),
        (
            "core/src/ray/gcs/gcs_server",
            [
                "The actor died because its node has died. Node Id: ",
                "the actor's node was terminated unexpectedly: ",
                "The actor is dead because its worker process has died. Worker exit type: ",
            ],
        ),
        ("core/src/ray/raylet/raylet", ["Memory on the node (IP: %s", "running low on memory"]),
    ],
)
def test_the_installed_ray_still_writes_the_texts_that_are_searched(binary: str, texts: list[str]) -> None:
    content = (Path(ray.__file__).parent / binary).read_bytes()
    assert [text for text in texts if text.encode() not in content] == []


@pytest.mark.parametrize(
    ("number", "signal_name"), [(11, "signal 11 (SIGSEGV)"), (6, "signal 6 (SIGABRT)"), (7, "signal 7 (SIGBUS)")]
)
def test_a_fatal_signal_is_read_from_what_faulthandler_writes_into_the_log(
    number: int, signal_name: str, tmp_path: Path
) -> None:
    program = f"import os\ndef crash():\n    os.kill(os.getpid(), {number})\ncrash()"
    (tmp_path / "program.py").write_text(program)
    completed = subprocess.run([sys.executable, "-X", "faulthandler", tmp_path / "program.py"], stderr=subprocess.PIPE)
    cause = cause_in_log(completed.stderr.decode())
    assert cause is not None and cause.startswith(f"was killed by {signal_name}") and "program.py:" in cause
    assert exit_cause(completed.returncode) == f"was killed by {signal_name}"
    assert cause_in_log("an ordinary line\n") is None
