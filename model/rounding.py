"""Perturbs a model by the size of its rounding errors, to measure what rounding alone does to its logprobs.

Two programs that compute the same model round at different places, and no constant says how much their logprobs may
then differ: the errors of all layers add up, and some models amplify them far more than others. A second computation
whose values are moved by at most one rounding step measures it on the model and the tokens in question.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model.precision import ComputePrecision, torch_dtype

_ROUNDED_MODULES = (nn.Linear, nn.Embedding, nn.RMSNorm)


@contextmanager
def perturbed(model: nn.Module, precision: ComputePrecision, *, seed: int = 0) -> Iterator[None]:
    """Within the block, the output of each linear layer, embedding and norm of the model is moved at random.

    Each value is moved by at most one rounding step, the distance to the next number of the precision.
    """
    step = torch.finfo(torch_dtype(precision)).eps
    generators: dict[torch.device, torch.Generator] = {}

    def move(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        generator = generators.setdefault(output.device, torch.Generator(output.device).manual_seed(seed))
        noise = torch.rand(output.shape, generator=generator, device=output.device) * 2 - 1
        return (output.float() * (1 + step * noise)).to(output.dtype)

    hooks = [module.register_forward_hook(move) for module in model.modules() if isinstance(module, _ROUNDED_MODULES)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
