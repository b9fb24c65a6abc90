"""Int8 quantization of a Llama model (W8A8), in the compressed-tensors format that vLLM loads on CPU and GPU.

The weight of each linear layer in the transformer blocks becomes int8, with a float scale per output channel. vLLM
quantizes the activations at run time, with a scale per token, so no calibration data is needed. The embedding, the
lm_head and the norm weights stay floating point: quantizing them would reduce the quality most, and int8 does not make
an embedding lookup faster.

Suffixes of tensor names give their dimensions: O output channels, I input channels.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.huggingface import hf_name, load_hf_model
from model.huggingface_config import int8_quantization
from model.precision import ComputePrecision, torch_dtype

INT8_MAX = 127
SCALE_SUFFIX = "_scale"
"""In the compressed-tensors format the scale of `x.weight` has the name `x.weight_scale`."""

_LINEAR_WEIGHT = re.compile(r"^model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")
_WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class CompressedSize:
    """The size of a model before and after quantization."""

    original_bytes: int
    """Bytes of the weight files before quantization."""
    compressed_bytes: int
    """Bytes of the weight file after quantization."""
    num_quantized: int
    """Number of parameters that are now int8. The scales do not count as parameters."""
    num_kept: int
    """Number of parameters that are still floating point."""


def adds_int8_exactly(device: str) -> bool:
    """Return whether this machine's processors (`cpu`) or GPUs (`cuda`) add products of int8 numbers without overflow.

    A processor needs int8 dot products (VNNI or AMX) for this. Others add pairs of products in 16 bits.
    """
    capabilities = torch.cpu.get_capabilities()
    return device != "cpu" or any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def quantize_weight(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return an int8 weight [O, I] and a float32 scale [O, 1], so that int8 · scale approximates the weight.

    The error of an entry is at most scale / 2. The quantization is symmetric: the largest magnitude of a channel
    becomes ±127, -128 is not used, and 0 stays 0.
    """
    largest_O1 = weight_OI.float().abs().amax(dim=1, keepdim=True)
    scale_O1 = largest_O1.clamp(min=torch.finfo(torch.float32).tiny) / INT8_MAX
    rounded_OI = (weight_OI.float() / scale_O1).round().clamp(-INT8_MAX, INT8_MAX)
    return rounded_OI.to(torch.int8), scale_O1


def dequantize_weight(int8_OI: Tensor, scale_O1: Tensor) -> Tensor:
    """Return the float32 weight [O, I] that an int8 weight and its scale represent."""
    return int8_OI.float() * scale_O1.float()


def round_activations(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Quantize x [..., I] to int8 with a symmetric scale per token, and return the dequantized values in x's dtype.

    With a generator, each value is rounded up or down at random, up with the probability of its distance from the lower
    int8 value.
    """
    x_float = x.float()
    scale = x_float.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / INT8_MAX
    steps = x_float / scale
    if generator is None:
        return (steps.round() * scale).to(x.dtype)
    thresholds = torch.rand(steps.shape, generator=generator, device=steps.device)
    return ((steps + thresholds).floor() * scale).to(x.dtype)


class Int8Linear(nn.Module):
    """A linear layer without bias that computes the same as vLLM's int8 kernels, except for floating point rounding.

    It multiplies the dequantized weight and activations in floating point, in the dtype of autocast if that is on. vLLM
    multiplies the int8 numbers and applies the scales to the sums. The layer is for measuring the quality of a
    quantized model and is not faster than a float layer.
    """

    def __init__(self, int8_OI: Tensor, scale_O1: Tensor, *, generator: torch.Generator | None = None) -> None:
        """With a generator, the activations are rounded up or down at random."""
        super().__init__()
        self.register_buffer("weight", dequantize_weight(int8_OI, scale_O1))
        self._generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(round_activations(x, self._generator), self.get_buffer("weight").to(x.dtype))


def simulate_int8(model: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Replace every linear layer in the transformer blocks by an `Int8Linear`, in place.

    The model then computes what vLLM computes with the quantized model. The embedding and the lm_head do not change.
    With a generator on the model's device, the activations are rounded up or down at random, which shows how much
    rounding alone changes this model's logprobs.
    """
    for block in model.get_submodule("layers").children():
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                parent = block.get_submodule(name.rpartition(".")[0])
                setattr(
                    parent,
                    name.rpartition(".")[2],
                    Int8Linear(*quantize_weight(module.weight.detach()), generator=generator),
                )


def compress_folder(source: Path, target: Path, *, kept_dtype: ComputePrecision = "bfloat16") -> CompressedSize:
    """Quantize the Llama model in the Hugging Face folder `source` and write it to `target`.

    The other files of `source` are copied. `kept_dtype` is the dtype of the weights that stay floating point, and the
    dtype in which vLLM computes by default. Raises ValueError if `source` does not contain a Llama model in floating
    point. Returns the size before and after.
    """
    tensors = {hf_name(name): tensor for name, tensor in load_hf_model(source).state_dict().items()}
    linear_names = {name for name in tensors if _LINEAR_WEIGHT.match(name)}
    config = json.loads((source / "config.json").read_text())
    compressed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in linear_names:
            compressed[name], compressed[name + SCALE_SUFFIX] = quantize_weight(tensor)
        else:
            compressed[name] = tensor.to(torch_dtype(kept_dtype))
    _write_folder(
        source,
        target,
        compressed,
        config | {"dtype": kept_dtype, "quantization_config": int8_quantization()},
    )
    return CompressedSize(
        original_bytes=sum(file.stat().st_size for file in source.glob("*.safetensors")),
        compressed_bytes=(target / _WEIGHTS_FILE).stat().st_size,
        num_quantized=sum(tensors[name].numel() for name in linear_names),
        num_kept=sum(tensor.numel() for name, tensor in tensors.items() if name not in linear_names),
    )


def decompress_folder(source: Path, target: Path) -> None:
    """Dequantize the model in the folder `source` and write it to `target` in float32.

    The weights include the rounding errors of int8.
    """
    stored = load_file(source / _WEIGHTS_FILE)
    tensors = {
        name: dequantize_weight(tensor, stored[name + SCALE_SUFFIX])
        if name + SCALE_SUFFIX in stored
        else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith(".weight" + SCALE_SUFFIX)
    }
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    _write_folder(source, target, tensors, config | {"dtype": "float32"})


def _write_folder(source: Path, target: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write the weights to `target`, copy the other files of `source`, and write config.json last."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").unlink(missing_ok=True)
    for file in source.iterdir():
        if file.is_file() and ".safetensors" not in file.name and file.name != "config.json":
            shutil.copyfile(file, target / file.name)
    save_file(tensors, target / _WEIGHTS_FILE, metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
