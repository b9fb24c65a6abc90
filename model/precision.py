"""The precision of matmuls: the values of the config field `precision`, and how `auto` is resolved.

In PyTorch models, parameters, gradients and optimizer state are always float32. With bfloat16, autocast casts the
inputs of matmuls. A vLLM engine also stores its weights in the precision. A CPU without instructions for bfloat16
matmuls (AMX or AVX-512 BF16) emulates them, which is 20 to 70 times slower than float32.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the functions below import torch, so that reading a config does not import it
    import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""The values in a config. `auto` means bfloat16 on devices with bfloat16 matmuls in hardware, and float32 on others."""
ComputePrecision = Literal["float32", "bfloat16"]
"""The precision of a running stage, in which `auto` is resolved."""

PLACEMENT_KEY = "computed_by"
"""Key in the metadata of a precision field. Its value is the name of the placement whose workers use the precision."""
_TIMED_MATRIX_SIZE = 256
"""Rows and columns of the matrices that `bfloat16_slowdown` multiplies. Matmuls of this size in hardware take long
enough to be measured, and an emulated bfloat16 matmul of this size takes only 18 ms."""


def precision_field(*, placement: str) -> Any:
    """Return a config field of type Precision with the default `auto`.

    The workers of the placement named `placement` use the precision. If `placement` is empty, the driver's machine uses
    the precision.
    """
    return dataclasses.field(default="auto", metadata={PLACEMENT_KEY: placement})


def require_resolved(precision: Precision) -> ComputePrecision:
    """Return `precision`, which must not be `auto`: `jobs.frame.precision` resolves it before a stage runs."""
    assert precision != "auto", "`auto` must be resolved before a stage runs (jobs.frame.precision)"
    return precision


def choose_precision(*, on_gpu: bool) -> ComputePrecision:
    """Return the precision to which `auto` is resolved on this machine.

    With `on_gpu` this depends on the GPUs of the machine, otherwise on its CPU.
    """
    has_hardware_bfloat16 = gpu_multiplies_bfloat16() if on_gpu else cpu_multiplies_bfloat16()
    return "bfloat16" if has_hardware_bfloat16 else "float32"


def gpu_multiplies_bfloat16() -> bool:
    """Return whether this machine's GPUs have bfloat16 matmuls in hardware. NVIDIA GPUs have them since Ampere.

    Without a GPU on this machine the result is True, because the workers' GPUs cannot be queried here. It is also True
    for AMD GPUs, which are not queried.
    """
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        return True
    return torch.cuda.get_device_capability() >= (8, 0)


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 matmuls in hardware, by its CPU flags and a short measurement.

    The flags alone are not enough: the CPU may be emulated, or the matmul library may be restricted to older
    instructions.
    """
    import torch

    capabilities = torch.cpu.get_capabilities()
    has_instructions = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return has_instructions and bfloat16_slowdown() < 1.0


def bfloat16_emulation_slowdown() -> float | None:
    """Return `bfloat16_slowdown()` if this CPU emulates bfloat16 matmuls, and None if it has them in hardware."""
    return None if cpu_multiplies_bfloat16() else bfloat16_slowdown()


@functools.cache
def bfloat16_slowdown() -> float:
    """Return how many times longer a bfloat16 matmul takes than a float32 matmul of the same size on this CPU.

    The measurement uses one thread. With several threads on a busy machine, the threads would wait for each other. That
    would add relatively more to the shorter of the two times, and so distort their ratio.
    """
    import torch

    matrix, threads = torch.randn(_TIMED_MATRIX_SIZE, _TIMED_MATRIX_SIZE), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bfloat16_s = fastest_matmul_s(matrix.bfloat16(), matrix.bfloat16(), tries=4)
        return bfloat16_s / fastest_matmul_s(matrix, matrix, tries=40)
    finally:
        torch.set_num_threads(threads)


def fastest_matmul_s(left: torch.Tensor, right: torch.Tensor, *, tries: int) -> float:
    """Return the seconds of the fastest of `tries` matmuls. The first matmul is slower, because it loads kernels."""
    import torch

    best_s = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        torch.mm(left, right)
        if left.is_cuda:
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - start)
    return best_s


def autocast_dtype(precision: ComputePrecision) -> torch.dtype | None:
    """Return the dtype to pass to `model.train.autocast`. It is None for float32."""
    import torch

    return torch.bfloat16 if precision == "bfloat16" else None


def torch_dtype(precision: ComputePrecision) -> torch.dtype:
    """Return the dtype of weights that are stored or sent in this precision."""
    import torch

    return torch.bfloat16 if precision == "bfloat16" else torch.float32
