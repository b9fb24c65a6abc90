"""Why something ended, from exceptions, Ray's reports and workers' logs: one cause, and never a guess."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.exceptions import LocalRayletDiedError, ObjectLostError, RayTaskError, WorkerCrashedError

from cluster import worker_errors
from cluster.death_causes import cause_in_report, exit_cause, fatal_signal_in_log, ip_in_report, pid_in_report
from cluster.process_info import ProcessInfo
from cluster.worker_errors import describe_error, innermost_frame, original_error, traceback_text, wrap_error
from model.optim import warmup_cosine

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


def test_an_exception_log_death_with_the_innermost_frame_that_is_ours() -> None:
    with pytest.raises(TypeError) as caught:
        warmup_cosine(peak_lr=1.0, warmup_steps=0, total_steps=4, final_ratio=0.1)("three")  # pyright: ignore[reportArgumentType]
    told = describe_error(caught.value, traceback_text(caught.value))
    assert told.startswith("raised TypeError: ") and ", at model/optim.py:" in told


def test_frames_of_libraries_and_of_the_interpreter_are_passed_over() -> None:
    library = f'  File "{subprocess.__file__}", line 7, in run\n    …\n  File "<frozen runpy>", line 198, in _run\n'
    text = f'Traceback:\n  File "/home/ann/verify.py", line 12, in score\n    …\n{library}ValueError: x'
    assert innermost_frame(text) == "/home/ann/verify.py:12 in score"
    assert innermost_frame(library) is None


def test_our_own_frame_is_found_where_we_are_installed_among_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_errors, "_LIBRARIES", (str(worker_errors._HOME),))
    ours, theirs = (f'  File "{worker_errors._HOME}/{name}.py", line 3, in run\n' for name in ("jobs/sft", "torch/nn"))
    assert innermost_frame(ours + theirs) == "jobs/sft.py:3 in run" and innermost_frame(theirs) is None


def test_what_a_worker_raised_log_death_and_not_how_ray_brought_it() -> None:
    text = 'Traceback (most recent call last):\n  File "/home/ann/verify.py", line 3, in score\n    …\nKeyError: 4'
    error = RayTaskError(
        "score", text, KeyError(4), "ray::Verifier.score", pid=77, ip="192.0.2.2"
    ).as_instanceof_cause()
    brought = traceback_text(error)
    assert isinstance(original_error(error), KeyError) and (pid_in_report(brought), ip_in_report(brought)) == (
        77,
        "192.0.2.2",
    )
    assert describe_error(error, brought) == "raised KeyError: 4, at /home/ann/verify.py:3 in score"


@pytest.mark.parametrize(
    ("report", "cause"),
    [
        (GUESS, None),
        ("… Worker exits with an exit code 1. The process receives a SIGTERM.", "was killed by signal 15 (SIGTERM)"),
        ("Worker exit detail: Worker exits with an exit code 3.", "ended by itself with exit code 3"),
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
def test_only_what_ray_knows_is_taken_from_it(report: str, cause: str | None) -> None:
    assert cause_in_report(report) == cause


def test_whose_death_a_report_tells_is_known_by_process_and_node() -> None:
    assert (pid_in_report(GUESS), ip_in_report(GUESS)) == (5525, "192.0.2.2")
    node = NODE_DIED.format("192.0.2.3", "04d3")
    assert (pid_in_report(node), ip_in_report(node)) == (None, "192.0.2.3")
    here, there = (ProcessInfo(stage="sft", role="rank", index=index, pid=7, ip=f"192.0.2.{index}") for index in (1, 2))
    assert [place.fits(pid=7, ip="192.0.2.2") for place in (here, there)] == [False, True]
    assert here.fits(pid=7) and here.fits() and not here.fits(role="rank", index=2)


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
def test_ray_says_it_in_the_words_that_are_looked_for(binary: str, texts: list[str]) -> None:
    content = (Path(ray.__file__).parent / binary).read_bytes()
    assert [text for text in texts if text.encode() not in content] == []


@pytest.mark.parametrize(
    ("number", "named"), [(11, "signal 11 (SIGSEGV)"), (6, "signal 6 (SIGABRT)"), (7, "signal 7 (SIGBUS)")]
)
def test_a_fatal_signal_is_read_from_what_python_leaves_in_the_log(number: int, named: str, tmp_path: Path) -> None:
    program = f"import os\ndef crash():\n    os.kill(os.getpid(), {number})\ncrash()"
    (tmp_path / "program.py").write_text(program)
    ended = subprocess.run([sys.executable, "-X", "faulthandler", tmp_path / "program.py"], stderr=subprocess.PIPE)
    cause = fatal_signal_in_log(ended.stderr.decode())
    assert cause is not None and cause.startswith(f"was killed by {named}") and "program.py:" in cause
    assert exit_cause(ended.returncode) == f"was killed by {named}"
    assert fatal_signal_in_log("an ordinary line\n") is None


class Unpicklable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("x"), "raised KeyError: 'x', at tests/cluster/test_worker_errors.py:"),
        (Unpicklable("bad", "luck"), "raised RuntimeError: Unpicklable: bad (it does not pickle: "),
    ],
)
def test_an_exception_keeps_its_type_and_traceback_from_one_process_to_another(error: Exception, told: str) -> None:
    place = ProcessInfo(stage="corpus", role="task", index=3, pid=7)
    try:
        raise error
    except Exception as caught:
        brought = pickle.loads(pickle.dumps(wrap_error(caught, place)))
    assert describe_error(brought, traceback_text(brought)).startswith(told)
    assert "in test_an_exception_keeps" in traceback_text(brought) and brought.place == place
