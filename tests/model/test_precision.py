"""How `precision: auto` is resolved: from the CPU flags and from a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from model import precision


@pytest.fixture(autouse=True)
def clear_cached_measurements() -> Iterator[None]:
    yield
    precision.cpu_multiplies_bfloat16.cache_clear()
    precision.bfloat16_slowdown.cache_clear()


def on_processor(monkeypatch: pytest.MonkeyPatch, *, slowdown: float, **capabilities: bool) -> None:
    precision.cpu_multiplies_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(precision, "bfloat16_slowdown", lambda: slowdown)


@pytest.mark.parametrize(
    ("slowdown", "capabilities", "expected"),
    [
        (70.0, {"avx2": True}, "float32"),
        (1.5, {"avx512_f": True, "avx512_bf16": False}, "float32"),
        (0.4, {"avx512_bf16": True}, "bfloat16"),
        (0.2, {"avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
        (
            70.0,
            {"avx512_bf16": True, "amx_bf16": True},
            "float32",
        ),  # a matmul library that is restricted to older instructions
        (0.9, {"architecture": True}, "float32"),  # a CPU architecture with different flags
    ],
)
def test_auto_is_bfloat16_if_the_cpu_has_the_instructions_and_bfloat16_is_faster(
    monkeypatch: pytest.MonkeyPatch, slowdown: float, capabilities: dict[str, Any], expected: str
) -> None:
    on_processor(monkeypatch, slowdown=slowdown, **capabilities)
    assert precision.choose_precision(on_gpu=False) == expected
    assert precision.choose_precision(on_gpu=True) == "bfloat16"


def test_the_measurement_agrees_with_the_flags_of_this_cpu() -> None:
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"):
        pytest.skip(
            "this CPU has bfloat16 instructions, but their speed depends on which of them the matmul library uses"
        )
    assert precision.bfloat16_slowdown() > 1.5


def test_auto_must_be_resolved_before_a_stage_runs() -> None:
    assert precision.require_resolved("bfloat16") == "bfloat16"
    with pytest.raises(AssertionError, match="must be resolved before a stage runs"):
        precision.require_resolved("auto")


def test_precisions_map_to_torch_dtypes() -> None:
    assert precision.autocast_dtype("float32") is None
    assert precision.autocast_dtype("bfloat16") == precision.torch_dtype("bfloat16") == torch.bfloat16
    assert precision.torch_dtype("float32") == torch.float32
