"""The number format of matrix products: what `precision` may say, what `auto` becomes, and what torch calls it.

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
"""What a config may say. `auto` is bfloat16 where the device multiplies it in hardware, and float32 elsewhere."""
ComputePrecision = Literal["float32", "bfloat16"]
"""What `auto` has become before anything computes."""

COMPUTED_BY = "computed_by"
"""The mark that `precision_field` leaves: the name of the placement whose workers compute in this precision."""
_PROBE_SIZE = 256
"""Rows and columns of the measured product: 18 ms where bfloat16 is emulated, long enough to time where it is not."""


def precision_field(group: str) -> Any:
    """A config field of type Precision, `auto` by default, for what the workers of the placement `group` compute.

    An empty group is the machine of the driver itself.
    """
    return dataclasses.field(default="auto", metadata={COMPUTED_BY: group})


def resolved(precision: Precision) -> ComputePrecision:
    """The precision in a config of which every `auto` has been settled, as that of a running stage has."""
    assert precision != "auto", "`auto` is settled before a stage runs (jobs.frame.precision)"
    return precision


def choose_precision(*, on_gpu: bool) -> ComputePrecision:
    """What `auto` becomes on this machine."""
    multiplies = gpu_multiplies_bfloat16() if on_gpu else cpu_multiplies_bfloat16()
    return "bfloat16" if multiplies else "float32"


def gpu_multiplies_bfloat16() -> bool:
    """Whether this machine's GPUs do, as NVIDIA's from Ampere on; taken for granted where none is here to be asked."""
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        return True
    return torch.cuda.get_device_capability() >= (8, 0)


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, and a short measurement bears it out.

    The measurement catches what the flags do not know: a library held to older instructions, an emulated processor.
    """
    import torch

    capabilities = torch.cpu.get_capabilities()
    has_instructions = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return has_instructions and bfloat16_slowdown() < 1.0


def bfloat16_emulation() -> float | None:
    """`bfloat16_slowdown` where this processor only emulates it; None where it multiplies bfloat16 in hardware."""
    return None if cpu_multiplies_bfloat16() else bfloat16_slowdown()


@functools.cache
def bfloat16_slowdown() -> float:
    """Time of a bfloat16 matrix product over that of the same product in float32, on this machine's processor.

    On one thread: several would wait for each other on a busy machine, and the shorter product would lose more by it.
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
    """Seconds that a matrix product takes at best; the first try, which prepares kernels, is the longest."""
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
    """What `model.train.autocast` takes: None computes in float32."""
    import torch

    return torch.bfloat16 if precision == "bfloat16" else None


def torch_dtype(precision: ComputePrecision) -> torch.dtype:
    """The type of weights that are stored or sent in this precision."""
    import torch

    return torch.bfloat16 if precision == "bfloat16" else torch.float32
