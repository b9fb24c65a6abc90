"""Raymill's vLLM plugin: registers the weight transfer engine, and fixes two problems of vLLM on CPUs with AMX.

AMX is Intel's matrix extension with tile registers. vLLM loads the plugin in each of its processes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import torch

from actors.engine import OBJECT_STORE


def register() -> None:
    """Register `actors.transfer_engine` with vLLM in this process. May be called more than once.

    vLLM calls this function too, through the entry point `vllm.general_plugins` in pyproject.toml.
    """
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if torch.cpu._is_amx_tile_supported():
        _prepare_amx()
    try:
        WeightTransferEngineFactory.register_engine(OBJECT_STORE, "actors.transfer_engine", "ObjectStoreEngine")
    except ValueError as error:
        if "already registered" not in str(error):
            raise


def _prepare_amx() -> None:
    """Work around two problems of vLLM 0.32 on a CPU with AMX.

    - vLLM's bfloat16 attention uses the tile registers. A process must ask the Linux kernel for them first, or it dies
      of an illegal instruction. vLLM asks only when it binds threads to cores, and Raymill's engines do not bind
      threads, because several engines share the cores.
    - vLLM's int8 kernel for AMX supports 16-bit activations only. A model that computes in float32 must use oneDNN's
      int8 kernel instead.
    """
    cpu: Any = import_module("vllm.model_executor.kernels.linear.scaled_mm.cpu")
    torch.cpu._init_amx()
    if not hasattr(cpu.check_cpu_sgl_kernel, "__wrapped__"):
        cpu.check_cpu_sgl_kernel = _except_in_float32(cpu.check_cpu_sgl_kernel)


def _except_in_float32(check: Callable[[int, int, torch.dtype], bool]) -> Callable[[int, int, torch.dtype], bool]:
    """Return a copy of vLLM's check for the AMX kernel that is false for int8 weights of a float32 model."""

    @wraps(check)
    def is_supported(n: int, k: int, dtype: torch.dtype) -> bool:
        # While vLLM loads a model, the default dtype is the model's dtype.
        return check(n, k, dtype) and not (dtype == torch.int8 and torch.get_default_dtype() == torch.float32)

    return is_supported
