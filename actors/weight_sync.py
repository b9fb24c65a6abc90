"""The weight sync: how the learner's weights reach the engines.

The learner sends a weight snapshot (`WeightSender`), and each generator loads it through vLLM's weight-transfer
interface. When weights go through Ray's object store, `actors.transfer_engine` receives them inside the engine.

No rollout is used for training before `actors.sync_check` has passed, because a weight sync can fail without an error.
For example, with tied embeddings vLLM on CPU computes the logits from a packed copy of the embeddings, which loading
new weights does not change. If `actors.transfer_engine` did not pack them again, the engine would sample with the old
ones.
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
"""Approximate size of one object in Ray's object store. The weights are split into several objects, so that the learner
copies only a small part of the model at a time."""


class EngineMismatchError(RuntimeError):
    """An engine's results differ from those of the PyTorch model with the same weights.

    In RLHF the PyTorch model is the learner's, and in `evaluate` it is loaded for the comparison. The run stops before
    it uses the engine's completions.
    """


class StaleWeightsError(EngineMismatchError):
    """The engine has older weights than the last snapshot, in all or some of its parameters."""


class InvalidRolloutError(EngineMismatchError):
    """The engine returned an invalid rollout: it read other prompt tokens than were sent, returned an empty completion
    or a wrong number of logprobs, or sampled tokens that are not in the model's vocabulary."""


class NumericsError(EngineMismatchError):
    """Engine and PyTorch model seem to have the same weights and tokens, but their logprobs differ by more than the
    bound."""


@dataclass(frozen=True)
class WeightSnapshot:
    """One version of the policy's weights, which engines can load."""

    version: int
    """The weight version. In RLHF it is the number of RLHF steps that were done when the snapshot was made."""
    chunks: list[ray.ObjectRef] = field(repr=False)
    """Objects in Ray's object store, each a list of (Hugging Face name, dtype name, array). Empty with nccl and ipc,
    which send the weights from GPU to GPU and store nothing."""
    checksums: Mapping[str, str] = field(repr=False)
    """sha256 of each parameter's bytes, by Hugging Face name. Empty with nccl and ipc."""
    is_in_folder: bool = False
    """Whether the engine has read these weights from the folder with which it was started, so that nothing is sent."""


@dataclass(frozen=True)
class LoadReport:
    """What a generator reports about its engine after the engine has loaded a snapshot."""

    version: int
    """The engine's weight version."""
    checksums: Mapping[str, str] = field(repr=False)
    """sha256 of the engine's parameters, by vLLM's name. It is the Hugging Face name unless vLLM fuses the parameter
    with others. Packed and padded parameters are left out."""


class WeightSender(Protocol):
    """The learner's side of a weight transfer. All ranks must call `send`, because it runs collectives. Generators load
    the snapshot that `send` returns on rank 0, and the snapshots of other ranks have no weights."""

    def send(self, model: nn.Module, version: int) -> WeightSnapshot: ...


class ObjectStoreSender:
    """Sends weights through Ray's object store, converted to `dtype`.

    It works on any device and between any two processes of a cluster.
    """

    def __init__(self, *, rank: int, dtype: torch.dtype) -> None:
        self._rank = rank
        self._dtype = dtype

    def send(self, model: nn.Module, version: int) -> WeightSnapshot:
        chunks: list[ray.ObjectRef] = []
        checksums: dict[str, str] = {}
        pending: list[tuple[str, str, NDArray]] = []
        pending_bytes = 0
        for name, tensor in hf_tensors(model):  # all ranks must iterate, because each tensor is all-gathered
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
    """Sends weights from GPU to GPU with vLLM's trainer engine for nccl or ipc.

    This class is written for the interface of vLLM 0.32. It needs GPUs, and has not been run on GPUs yet. `address` is
    the host and the port at which nccl connects learner and generators. vLLM's trainer engine updates the generators'
    engines by itself, so `Generator.load` has nothing to load from the snapshot.
    """

    def __init__(
        self, *, backend: TransferBackend, rank: int, generators: Sequence[ActorHandle], address: tuple[str, int]
    ) -> None:
        self._backend = backend
        self._rank = rank
        self._generators = list(generators)
        self._address = address
        self._engine: Any = None
        """vLLM's trainer engine, which sends the weights. None before the first call of `send`."""

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
    """Return the model's parameters as vLLM's `WeightSource`: by Hugging Face name, all-gathered one at a time."""
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    from model.huggingface import hf_name

    class Source(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(hf_name(n), p.dtype, tuple(p.shape)) for n, p in model.state_dict().items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return hf_tensors(model)

    return Source()


def read_weights(snapshot: WeightSnapshot) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a snapshot with their Hugging Face names."""
    return read_chunks(snapshot.chunks)


def read_chunks(chunks: Sequence[ray.ObjectRef]) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters in these `WeightSnapshot.chunks` with their Hugging Face names. Each tensor is a copy."""
    for chunk in chunks:
        for name, dtype, array in ray.get(chunk):
            yield name, from_array(array, dtype)


def to_array(tensor: Tensor) -> NDArray:
    """Return a tensor as a numpy array. Ray's object store holds arrays as they are, without pickling.

    numpy has no bfloat16, so a bfloat16 tensor becomes an int16 array with the same bytes.
    """
    tensor = tensor.detach().contiguous().cpu()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def from_array(array: NDArray, dtype: str) -> Tensor:
    """Return the tensor from which `to_array` made this array. `dtype` is the name of the tensor's dtype.

    The tensor is a copy, because the memory of the object store is read-only.
    """
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
