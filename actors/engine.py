"""How a vLLM engine is set up: its settings, its environment and the size of its prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.storage import Storage
from model.precision import ComputePrecision

TransferBackend = Literal["object_store", "nccl", "ipc"]
"""How weights travel from learner to engine: through Ray's object store, or from GPU to GPU."""
OBJECT_STORE: TransferBackend = "object_store"


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings of an engine."""

    model: Storage
    """Hugging Face folder."""
    max_length: int
    """Longest prompt and completion together, in tokens."""
    max_sequences: int
    """Sequences decoded side by side: all of a generation batch."""
    precision: ComputePrecision = "float32"
    kv_cache_gib: float = 0.5
    """Memory for keys and values, on CPU."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory for weights, activations and cache together."""
    weight_transfer: TransferBackend = OBJECT_STORE
    is_cuda: bool = False


def engine_env() -> dict[str, str]:
    """The environment of an engine's process, set before vllm is imported."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the actor's process and dies with it
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines and the learner share the cores
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def max_prefill_tokens(max_length: int, max_sequences: int) -> int:
    """The number of tokens of one prefill with which an engine never splits a prompt of up to `max_length` tokens.

    For engines without chunked prefill: after a part of a prompt, a seeded request would have to undo a draw of its
    random generator, which vLLM cannot do on a CPU; the engine would crash.
    """
    return max(2048, max_length) + max_sequences
