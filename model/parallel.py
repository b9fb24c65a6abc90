"""Parallelism, applied to a model from outside: FSDP2 shards, activation checkpoints, compilation.

The same calls work with gloo on CPU and NCCL on GPUs, as the mesh says. `model.transformer` knows nothing of it.

FSDP and DTensor are imported where they are used: they import sympy and take two seconds, which a command that only
plans need not wait for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from model.transformer import Layer


def shard(
    model: nn.Module,
    *,
    mesh: DeviceMesh,
    activation_checkpointing: bool = False,
    compile_layers: bool = False,
) -> None:
    """Shard the parameters of a whole, initialized model over `mesh`, in place, layer by layer.

    The mesh has one dimension. Parameters and the sums of gradients stay float32, and precision is left to autocast,
    so the results are those of the unsharded model. Layers recompute their activations in backward with
    `activation_checkpointing`, and are compiled one by one with `compile_layers`, so that compilation time does not
    grow with depth.
    """
    from torch.distributed.fsdp import fully_shard

    layers = [module for module in model.modules() if isinstance(module, Layer)]
    for layer in layers:
        prepare_layer(layer, activation_checkpointing=activation_checkpointing, compile_layer=compile_layers)
        fully_shard(layer, mesh=mesh)
    # The root's own parameters (embedding, last norm, head) stay gathered from forward to the end of backward,
    # because the head is called after forward (Transformer.logits).
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def prepare_layer(layer: Layer, *, activation_checkpointing: bool, compile_layer: bool) -> None:
    """Checkpoint the activations of one layer and compile it, in place, without renaming its parameters."""
    # Compiled first: layer.compile() around a checkpointed forward would silently compile nothing.
    if compile_layer:
        layer.forward = torch.compile(layer.forward)
    if activation_checkpointing:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def mesh_of(model: nn.Module) -> DeviceMesh | None:
    """The mesh over which `shard` has sharded the model; None for an unsharded model."""
    from torch.distributed.tensor import DTensor

    for tensor in model.state_dict().values():
        return tensor.device_mesh if isinstance(tensor, DTensor) else None
    raise ValueError("the model has no parameters")


def sum_over_ranks(tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """The sum of `tensor` over all ranks of `mesh`, in place; unchanged without a mesh."""
    if mesh is not None:
        dist.all_reduce(tensor, group=mesh.get_group())
    return tensor


def set_gradient_sync(model: nn.Module, *, is_last: bool) -> None:
    """Let a sharded model reduce its gradients over the ranks only in the last backward of a step."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        model.set_is_last_backward(is_last)


def full_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name and whole value, one at a time, on every rank: call it on all ranks together.

    The tensors are on the model's device; those of an unsharded model share its memory, so copy what must stay.
    """
    from torch.distributed.tensor import DTensor

    # state_dict() rather than named_parameters(): it first reshards what a forward left gathered.
    for name, tensor in model.state_dict().items():
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, whole, as copies on CPU, on rank 0; an empty dict elsewhere. Call it on all ranks together."""
    is_writer = mesh_of(model) is None or dist.get_rank() == 0
    state: dict[str, Tensor] = {}
    for name, tensor in full_tensors(model):
        if is_writer:
            state[name] = tensor.to("cpu", copy=True)
    return state
