"""FSDP2 sharding, activation checkpointing and compilation of a model.

The code of the model (`model.transformer`) has none of these. The functions here modify a model that already exists.
They work with gloo on CPU and with NCCL on GPUs, depending on the device mesh.

FSDP and DTensor are imported inside the functions that use them. They import sympy, which takes a second, and processes
whose model is not sharded do not need them.
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
    """Shard the parameters of an initialized model over the one-dimensional `mesh`, in place.

    Each layer is an FSDP unit. Parameters and gradient reduction stay float32, and only autocast changes the precision
    of matmuls, so that the results are those of the unsharded model. With `activation_checkpointing` each layer
    recomputes its activations in backward. With `compile_layers` each layer is compiled separately, so that the
    compilation time does not grow with the number of layers.
    """
    from torch.distributed.fsdp import fully_shard

    layers = [module for module in model.modules() if isinstance(module, Layer)]
    for layer in layers:
        prepare_layer(layer, activation_checkpointing=activation_checkpointing, compile_layer=compile_layers)
        fully_shard(layer, mesh=mesh)
    # The root FSDP unit has the remaining parameters: embedding, final norm and head. They stay unsharded from forward
    # to the end of backward, because `Transformer.logits` uses the head after forward has returned.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def prepare_layer(layer: Layer, *, activation_checkpointing: bool, compile_layer: bool) -> None:
    """Add activation checkpointing and compilation to a layer, in place. The names of its parameters do not change."""
    # Compilation is applied before activation checkpointing. In the opposite order nothing would be compiled, without
    # an error.
    if compile_layer:
        layer.forward = torch.compile(layer.forward)
    if activation_checkpointing:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def mesh_of(model: nn.Module) -> DeviceMesh | None:
    """Return the device mesh over which `shard` sharded the model. None for an unsharded model."""
    from torch.distributed.tensor import DTensor

    for tensor in model.state_dict().values():
        return tensor.device_mesh if isinstance(tensor, DTensor) else None
    raise ValueError("the model has no parameters")


def sum_over_ranks(tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """Add up `tensor` over the ranks of `mesh`, in place, and return it. With mesh None nothing is added."""
    if mesh is not None:
        dist.all_reduce(tensor, group=mesh.get_group())
    return tensor


def set_gradient_sync(model: nn.Module, *, is_last: bool) -> None:
    """Set whether the next backward of a sharded model reduces the gradients over the ranks.

    `is_last` is true for the last micro-batch of a step. Only its backward reduces the gradients.
    """
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        model.set_is_last_backward(is_last)


def full_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the unsharded value of each parameter, one at a time, on every rank.

    This function is collective: all ranks must call it. The tensors are on the model's device. For an unsharded model
    they are the model's parameters, so copy them if they must not change in later training steps.
    """
    from torch.distributed.tensor import DTensor

    # state_dict() instead of named_parameters(), because state_dict() first reshards parameters that a forward left
    # unsharded.
    for name, tensor in model.state_dict().items():
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters, unsharded, as copies in CPU memory on rank 0, and an empty dict on the other ranks.

    This function is collective: all ranks must call it.
    """
    keeps_copy = mesh_of(model) is None or dist.get_rank() == 0
    state: dict[str, Tensor] = {}
    for name, tensor in full_tensors(model):
        if keeps_copy:
            state[name] = tensor.to("cpu", copy=True)
    return state
