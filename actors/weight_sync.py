"""How the learner's weights reach the engines.

The learner sends a snapshot (`WeightSender`), and each generator loads it through vLLM's weight-transfer interface
(`actors.transfer_engine` is the engine's end of the object store). Nothing is learned from a rollout before
`actors.sync_check` has passed. The check is no formality: on CPU a tied output head is repacked only on request, and
without that the engine samples from old weights and reports no error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle
from torch import Tensor, nn

from actors.engine import TransferBackend
from model.huggingface import hf_tensors

_CHUNK_BYTES = 256 * 2**20
"""Weights are stored in objects of about this size, so that a snapshot needs little memory beside the model."""


class WeightSyncError(RuntimeError):
    """An engine does not compute what the learner computes; learning stops before using its rollouts."""


class StaleWeightsError(WeightSyncError):
    """The engine holds weights, or a part of them, from before the last snapshot."""


class TokenizationError(WeightSyncError):
    """The engine read or sampled other tokens than were asked for."""


class NumericsError(WeightSyncError):
    """Same weights, same tokens, and still logprobs further apart than the bound."""


@dataclass(frozen=True)
class WeightSnapshot:
    """One version of the policy's weights, ready for engines to load."""

    version: int
    chunks: list[ray.ObjectRef] = field(repr=False)
    """Each a list of (Hugging Face name, dtype name, array); empty for nccl and ipc, where nothing is stored."""
    checksums: Mapping[str, str] = field(repr=False)
    """sha256 of each parameter's bytes, by Hugging Face name; empty where nothing is stored."""


@dataclass(frozen=True)
class LoadReport:
    """What an engine reports after loading a snapshot."""

    version: int
    checksums: Mapping[str, str] = field(repr=False)
    """sha256 by Hugging Face name of the parameters that it holds unchanged (not fused, packed or padded)."""


class WeightSender(Protocol):
    """The learner's end of a transfer. All ranks call `send` together; only rank 0's snapshot holds the weights."""

    def send(self, model: nn.Module, version: int) -> WeightSnapshot: ...


class ObjectStoreSender:
    """Puts whole weights into Ray's object store: for any device, between any processes of a cluster."""

    def __init__(self, *, rank: int, dtype: torch.dtype) -> None:
        self._rank = rank
        self._dtype = dtype

    def send(self, model: nn.Module, version: int) -> WeightSnapshot:
        chunks: list[ray.ObjectRef] = []
        checksums: dict[str, str] = {}
        pending: list[tuple[str, str, NDArray]] = []
        pending_bytes = 0
        for name, tensor in hf_tensors(model):  # a collective: every rank iterates, rank 0 keeps
            if self._rank != 0:
                continue
            array = to_array(tensor.to(self._dtype))
            checksums[name] = hashlib.sha256(array.tobytes()).hexdigest()
            pending.append((name, str(self._dtype).removeprefix("torch."), array))
            pending_bytes += array.nbytes
            if pending_bytes >= _CHUNK_BYTES:
                chunks.append(ray.put(pending))
                pending, pending_bytes = [], 0
        if pending:
            chunks.append(ray.put(pending))
        return WeightSnapshot(version, chunks, checksums)


class DeviceSender:
    """Sends through vLLM's own nccl or ipc trainer engine, straight from GPU to GPU.

    Written to vLLM 0.32's interface; it needs GPUs and has not been run on any. The generators' `load` is a
    no-op for it: the trainer engine drives their update itself.
    """

    def __init__(
        self, *, backend: TransferBackend, rank: int, generators: Sequence[ActorHandle], address: tuple[str, int]
    ) -> None:
        self._backend = backend
        self._rank = rank
        self._generators = list(generators)
        self._address = address
        self._engine: Any = None

    def send(self, model: nn.Module, version: int) -> WeightSnapshot:
        if self._engine is None:
            self._engine = self._connect(model)
        self._engine.send_weights()
        if self._rank == 0:
            ray.get([generator.set_weight_version.remote(version) for generator in self._generators])
        return WeightSnapshot(version, [], {})

    def _connect(self, model: nn.Module) -> Any:
        from vllm.distributed.weight_transfer import RayVLLMWeightSyncClient, WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        if self._backend == "ipc":
            info: Any = IPCTrainerInitInfo(rank=self._rank)
        else:
            address, port = self._address
            world_size = 1 + len(self._generators)
            info = NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=world_size, rank=self._rank)
        client = RayVLLMWeightSyncClient(self._generators)
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=_hf_source(model))


def _hf_source(model: nn.Module) -> Any:
    """vLLM's view of our parameters: their Hugging Face names, gathered one at a time."""
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    from model.huggingface import hf_name

    class Source(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(hf_name(n), p.dtype, tuple(p.shape)) for n, p in model.state_dict().items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return hf_tensors(model)

    return Source()


def read_weights(snapshot: WeightSnapshot) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a snapshot, by Hugging Face name."""
    return read_chunks(snapshot.chunks)


def read_chunks(chunks: Sequence[ray.ObjectRef]) -> Iterator[tuple[str, Tensor]]:
    """The parameters in objects of the store, by Hugging Face name; each tensor is a copy."""
    for chunk in chunks:
        for name, dtype, array in ray.get(chunk):
            yield name, from_array(array, dtype)


def to_array(tensor: Tensor) -> NDArray:
    """The bytes of a tensor as an array, which Ray shares without a copy; bfloat16, which numpy lacks, as int16."""
    tensor = tensor.detach().contiguous().cpu()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def from_array(array: NDArray, dtype: str) -> Tensor:
    """The inverse of `to_array`. It copies, because the store's memory is read-only."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
