"""The model FLOP utilization (MFU) is logged only if the measured peak FLOP/s is credible."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.frame import training_rank
from jobs.frame.training_rank import StageTraining

SIZES: Any = SimpleNamespace(width=64, ffn_width=128)


def run(monkeypatch: pytest.MonkeyPatch, *, peaks: list[float], peak_tflops: float = 0.0) -> tuple[StageTraining, list]:
    """Return the training on one of two ranks, and a list to which the shape of every measured matmul is appended.

    `peaks` are the results of the measurements. The rank has made the first measurement already.
    """
    shapes: list[dict[str, int]] = []

    def measure(device: torch.device, dtype: torch.dtype | None, **shape: int) -> float:
        shapes.append(shape)
        return peaks[len(shapes)]

    monkeypatch.setattr(training_rank, "measure_peak_flops", measure)
    training = StageTraining.__new__(StageTraining)
    training.device, training.dtype = torch.device("cpu"), None
    training._model_config, training._peak_flops = SIZES, 2 * peaks[0]
    training.rank_context = SimpleNamespace(world_size=2)  # pyright: ignore[reportAttributeAccessIssue]
    execution = SimpleNamespace(micro_batch_size=16, peak_tflops=peak_tflops)
    training.config = SimpleNamespace(execution=execution, global_batch_size=8, sequence_length=32)  # pyright: ignore
    return training, shapes


def test_mfu_is_the_ratio_of_the_reached_flops_to_the_peak(monkeypatch: pytest.MonkeyPatch):
    training, shapes = run(monkeypatch, peaks=[1e9])
    assert training._mfu(0.5e9) == {"perf/mfu": 0.25} and not shapes


def test_the_peak_is_measured_again_if_the_run_exceeds_it(monkeypatch: pytest.MonkeyPatch):
    training, shapes = run(monkeypatch, peaks=[1e9, 4e9])
    assert training._mfu(4e9) == {"perf/mfu": 0.5}
    assert shapes == [{"rows": 4 * 32, "width": 64, "ffn_width": 128}], (
        "the matmul has the rows of a rank's share of the batch"
    )
    assert training._mfu(2e9) == {"perf/mfu": 0.25} and len(shapes) == 1


def test_no_mfu_is_logged_if_the_run_also_exceeds_the_second_measurement(monkeypatch: pytest.MonkeyPatch):
    training, _ = run(monkeypatch, peaks=[1e9, 1.5e9])
    assert training._mfu(4e9) == {}


def test_a_configured_peak_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    training, shapes = run(monkeypatch, peaks=[1e9], peak_tflops=0.001)
    assert training._mfu(4e9) == {} and not shapes


def test_the_matmul_that_measures_the_peak_is_limited_for_a_large_model(monkeypatch: pytest.MonkeyPatch):
    training, shapes = run(monkeypatch, peaks=[1e9, 1e9])
    training.config = SimpleNamespace(execution=training.config.execution, global_batch_size=64, sequence_length=1024)  # pyright: ignore
    training._model_config = SimpleNamespace(width=2048, ffn_width=8192)  # pyright: ignore[reportAttributeAccessIssue]
    training._measure_peak_flops()
    assert shapes[0]["rows"] == int(2e10 / (2 * 2048 * 8192))
