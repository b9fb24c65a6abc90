"""The plugin that vLLM loads in each of its processes: our weight transfer engine, and two fixes for CPUs with AMX."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import torch

from actors.engine import OBJECT_STORE


def register() -> None:
    """Make our transfer engine known to vLLM in this process; the `vllm.general_plugins` entry point calls it too."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if torch.cpu._is_amx_tile_supported():
        _prepare_amx()
    try:
        WeightTransferEngineFactory.register_engine(OBJECT_STORE, "actors.transfer_engine", "ObjectStoreEngine")
    except ValueError as error:
        if "already registered" not in str(error):
            raise


def _prepare_amx() -> None:
    """Two things that vLLM 0.32 leaves undone on a CPU with AMX.

    Its bfloat16 attention uses the tile registers without having asked the kernel for them unless it binds threads,
    which several engines on the same cores must not (an illegal instruction ends the process). And its int8 kernel for
    AMX takes 16-bit activations alone: a model that computes in float32 has to stay with oneDNN's.
    """
    cpu: Any = import_module("vllm.model_executor.kernels.linear.scaled_mm.cpu")
    torch.cpu._init_amx()
    if not hasattr(cpu.check_cpu_sgl_kernel, "__wrapped__"):
        cpu.check_cpu_sgl_kernel = _unless_float32(cpu.check_cpu_sgl_kernel)


def _unless_float32(check: Callable[[int, int, torch.dtype], bool]) -> Callable[[int, int, torch.dtype], bool]:
    @wraps(check)
    def check_too(n: int, k: int, dtype: torch.dtype) -> bool:
        # vLLM makes the model's dtype the default one for as long as it loads it.
        return check(n, k, dtype) and not (dtype == torch.int8 and torch.get_default_dtype() == torch.float32)

    return check_too
