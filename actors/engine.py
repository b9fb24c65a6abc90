"""The setup of a vLLM engine: its settings, its environment variables and its token limit in one iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.storage import Storage
from model.precision import ComputePrecision

TransferBackend = Literal["object_store", "nccl", "ipc"]
"""How the learner's weights reach the engines: through Ray's object store, or from GPU to GPU with nccl or ipc."""
OBJECT_STORE: TransferBackend = "object_store"


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings of a vLLM engine."""

    model: Storage
    """Hugging Face folder of the model."""
    max_length: int
    """Maximum length of a prompt together with its completion, in tokens."""
    max_sequences: int
    """Maximum number of sequences that are decoded at the same time. Further sequences of a generation batch
    (`actors.rollout.GenerationBatch`) wait, so this should be the number of sequences in a full batch."""
    precision: ComputePrecision = "float32"
    kv_cache_gib: float = 0.5
    """Size of the KV cache in GiB. Used on CPU only."""
    gpu_memory_utilization: float = 0.9
    """Fraction of a GPU's memory for weights, activations and KV cache together. Used on GPU only."""
    weight_transfer: TransferBackend = OBJECT_STORE
    is_cuda: bool = False
    """Whether the engine runs on a GPU."""


def engine_env() -> dict[str, str]:
    """Return the environment variables of an engine's process. They must be set before vllm is imported."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the actor's process and dies with it
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines and the learner share the cores
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def max_batched_tokens(max_length: int, max_sequences: int) -> int:
    """Return vLLM's `max_num_batched_tokens`, the maximum number of tokens in one iteration of the engine.

    It has room for the longest prompt and one token of each running sequence, so that the engine never has to split a
    prompt. The arguments are fields of `EngineSettings`. Raymill disables chunked prefill, which would process a long
    prompt in several parts. After each part but the last, vLLM would have to undo a draw of the request's random number
    generator. It cannot do this on CPU, and the engine would crash.
    """
    return max(2048, max_length) + max_sequences
