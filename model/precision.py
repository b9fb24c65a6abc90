"""The number format of matrix products: the values of `precision`, what `auto` becomes, and torch's dtypes.

Parameters, gradients and optimizer state are float32 whatever the precision: bfloat16 is autocast over float32 masters.
A processor without bfloat16 multiplication (AMX, AVX-512 BF16) emulates it, 20 to 70 times slower than float32.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # imported where something is computed: reading a config takes no torch
    import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""Values in a config. `auto` means bfloat16 where the device multiplies it in hardware, and float32 elsewhere."""
ComputePrecision = Literal["float32", "bfloat16"]
"""The precision that a stage computes in, once `auto` is resolved."""

PLACEMENT_KEY = "computed_by"
"""Key in the metadata of a precision field: the name of the placement whose workers compute in it."""
_PROBE_SIZE = 256
"""Rows and columns of the measured product: 18 ms where bfloat16 is emulated, long enough to time where it is not."""


def precision_field(group: str) -> Any:
    """A config field of type Precision, `auto` by default, for what the workers of the placement `group` compute.

    An empty group means the driver's own machine.
    """
    return dataclasses.field(default="auto", metadata={PLACEMENT_KEY: group})


def resolved_precision(precision: Precision) -> ComputePrecision:
    """The precision of a config in which `auto` has been replaced, as in that of a running stage."""
    assert precision != "auto", "`auto` is replaced before a stage runs (jobs.frame.precision)"
    return precision


def choose_precision(*, on_gpu: bool) -> ComputePrecision:
    """What `auto` becomes on this machine."""
    multiplies = gpu_multiplies_bfloat16() if on_gpu else cpu_multiplies_bfloat16()
    return "bfloat16" if multiplies else "float32"


def gpu_multiplies_bfloat16() -> bool:
    """Whether this machine's GPUs multiply bfloat16 in hardware (NVIDIA from Ampere on); True without a GPU to ask."""
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        return True
    return torch.cuda.get_device_capability() >= (8, 0)


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, by its flags and a short measurement.

    The measurement catches what the flags miss: a library restricted to older instructions, an emulated processor.
    """
    import torch

    capabilities = torch.cpu.get_capabilities()
    has_instructions = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return has_instructions and bfloat16_slowdown() < 1.0


def bfloat16_emulation_slowdown() -> float | None:
    """`bfloat16_slowdown` where this processor emulates bfloat16; None where it multiplies it in hardware."""
    return None if cpu_multiplies_bfloat16() else bfloat16_slowdown()


@functools.cache
def bfloat16_slowdown() -> float:
    """How many times longer a bfloat16 matrix product takes than the same in float32, on this machine's processor.

    On one thread: several would wait for each other on a busy machine, which would distort the shorter product more.
    """
    import torch

    factor, threads = torch.randn(_PROBE_SIZE, _PROBE_SIZE), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bfloat16_s = fastest_matmul_s(factor.bfloat16(), factor.bfloat16(), tries=4)
        return bfloat16_s / fastest_matmul_s(factor, factor, tries=40)
    finally:
        torch.set_num_threads(threads)


def fastest_matmul_s(left: torch.Tensor, right: torch.Tensor, *, tries: int) -> float:
    """Seconds of the fastest of several matrix products; the first one, which prepares kernels, is the slowest."""
    import torch

    best_s = float("inf")
    for _ in range(tries):
        started = time.perf_counter()
        torch.mm(left, right)
        if left.is_cuda:
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started)
    return best_s


def autocast_dtype(precision: ComputePrecision) -> torch.dtype | None:
    """The dtype that `model.train.autocast` takes; None computes in float32."""
    import torch

    return torch.bfloat16 if precision == "bfloat16" else None


def torch_dtype(precision: ComputePrecision) -> torch.dtype:
    """The dtype of weights that are stored or sent in this precision."""
    import torch

    return torch.bfloat16 if precision == "bfloat16" else torch.float32
