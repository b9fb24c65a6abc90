"""Tests of sending exceptions to another process and of describing them."""

from __future__ import annotations

import pickle
import subprocess

import pytest
from ray.exceptions import RayTaskError

from cluster import worker_errors
from cluster.death_causes import ip_in_report, pid_in_report
from cluster.process_info import ProcessInfo
from cluster.worker_errors import describe_error, innermost_frame, original_error, traceback_text, wrap_error
from model.optim import warmup_cosine


def test_an_exception_is_described_with_the_innermost_frame_of_raymill() -> None:
    with pytest.raises(TypeError) as caught:
        warmup_cosine(peak_lr=1.0, warmup_steps=0, total_steps=4, final_ratio=0.1)("three")  # pyright: ignore[reportArgumentType]
    description = describe_error(caught.value, traceback_text(caught.value))
    assert description.startswith("raised TypeError: ") and ", at model/optim.py:" in description


def test_frames_of_libraries_and_of_the_interpreter_are_skipped() -> None:
    library = f'  File "{subprocess.__file__}", line 7, in run\n    …\n  File "<frozen runpy>", line 198, in _run\n'
    text = f'Traceback:\n  File "/home/ann/verify.py", line 12, in score\n    …\n{library}ValueError: x'
    assert innermost_frame(text) == "/home/ann/verify.py:12 in score"
    assert innermost_frame(library) is None


def test_frames_of_raymill_are_found_if_it_is_installed_among_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_errors, "_LIBRARY_FOLDERS", (str(worker_errors._RAYMILL_FOLDER),))
    own_frame, library_frame = (
        f'  File "{worker_errors._RAYMILL_FOLDER}/{name}.py", line 3, in run\n' for name in ("jobs/sft", "torch/nn")
    )
    assert (
        innermost_frame(own_frame + library_frame) == "jobs/sft.py:3 in run" and innermost_frame(library_frame) is None
    )


def test_an_exception_of_a_worker_is_described_without_the_wrapper_of_ray() -> None:
    text = 'Traceback (most recent call last):\n  File "/home/ann/verify.py", line 3, in score\n    …\nKeyError: 4'
    error = RayTaskError(
        "score", text, KeyError(4), "ray::Verifier.score", pid=77, ip="192.0.2.2"
    ).as_instanceof_cause()
    received = traceback_text(error)
    assert isinstance(original_error(error), KeyError) and (pid_in_report(received), ip_in_report(received)) == (
        77,
        "192.0.2.2",
    )
    assert describe_error(error, received) == "raised KeyError: 4, at /home/ann/verify.py:3 in score"


class Unpicklable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


@pytest.mark.parametrize(
    ("error", "description"),
    [
        (KeyError("x"), "raised KeyError: 'x', at tests/cluster/test_worker_errors.py:"),
        (Unpicklable("bad", "luck"), "raised RuntimeError: Unpicklable: bad (this exception cannot be pickled: "),
    ],
)
def test_an_exception_keeps_its_type_and_traceback_when_it_is_pickled(error: Exception, description: str) -> None:
    process = ProcessInfo(stage="corpus", role="task", index=3, pid=7)
    try:
        raise error
    except Exception as caught:
        received = pickle.loads(pickle.dumps(wrap_error(caught, process)))
    assert describe_error(received, traceback_text(received)).startswith(description)
    assert "in test_an_exception_keeps" in traceback_text(received) and received.process == process
