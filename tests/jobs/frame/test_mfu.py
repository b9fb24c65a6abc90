"""The share of the peak FLOP/s that a training says it reaches is a fact or is not said."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.frame import training_run
from jobs.frame.training_run import TrainingRun

SIZES: Any = SimpleNamespace(width=64, ffn_width=128)


def run(monkeypatch: pytest.MonkeyPatch, *, peaks: list[float], peak_tflops: float = 0.0) -> tuple[TrainingRun, list]:
    """A rank of two that begins with the first of the peaks and measures the others, and what it has measured."""
    asked: list[dict[str, int]] = []

    def measure(device: torch.device, dtype: torch.dtype | None, **shape: int) -> float:
        asked.append(shape)
        return peaks[len(asked)]

    monkeypatch.setattr(training_run, "measure_peak_flops", measure)
    made = TrainingRun.__new__(TrainingRun)
    made.device, made.dtype, made._sizes, made._peak_flops = torch.device("cpu"), None, SIZES, 2 * peaks[0]
    made.rank_context = SimpleNamespace(world_size=2)  # pyright: ignore[reportAttributeAccessIssue]
    execution = SimpleNamespace(micro_batch_size=16, peak_tflops=peak_tflops)
    made.config = SimpleNamespace(execution=execution, batch_size=8, sequence_length=32)  # pyright: ignore
    return made, asked


def test_below_the_peak_it_is_the_ratio(monkeypatch: pytest.MonkeyPatch):
    made, asked = run(monkeypatch, peaks=[1e9])
    assert made._mfu(0.5e9) == {"perf/mfu": 0.25} and not asked


def test_above_the_peak_it_is_measured_again_on_the_products_of_the_run(monkeypatch: pytest.MonkeyPatch):
    made, asked = run(monkeypatch, peaks=[1e9, 4e9])
    assert made._mfu(4e9) == {"perf/mfu": 0.5}
    assert asked == [{"rows": 4 * 32, "width": 64, "ffn_width": 128}], "a rank's share of the batch"
    assert made._mfu(2e9) == {"perf/mfu": 0.25} and len(asked) == 1


def test_what_stays_above_the_peak_is_not_said(monkeypatch: pytest.MonkeyPatch):
    made, _ = run(monkeypatch, peaks=[1e9, 1.5e9])
    assert made._mfu(4e9) == {}


def test_a_peak_that_is_given_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    made, asked = run(monkeypatch, peaks=[1e9], peak_tflops=0.001)
    assert made._mfu(4e9) == {} and not asked


def test_a_wide_model_is_measured_by_a_product_of_a_second(monkeypatch: pytest.MonkeyPatch):
    made, asked = run(monkeypatch, peaks=[1e9, 1e9])
    made.config = SimpleNamespace(execution=made.config.execution, batch_size=64, sequence_length=1024)  # pyright: ignore
    made._measure_peak(SimpleNamespace(width=2048, ffn_width=8192))  # pyright: ignore[reportArgumentType]
    assert asked[0]["rows"] == int(2e10 / (2 * 2048 * 8192))
