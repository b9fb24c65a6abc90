"""Int8 compression of a Llama folder: W8A8 in the compressed-tensors layout that vLLM loads on CPU and GPU.

Each linear layer inside the blocks keeps an int8 weight with one float scale per output channel; activations are
rounded at run time with one scale per token, so no calibration text is needed. Embeddings, head and norms stay
floating point: int8 harms these most, and a lookup does not get faster.

Shape legend: O output channels, I input channels.
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
from model.precision import ComputePrecision, torch_dtype

INT8_MAX = 127
SCALE_SUFFIX = "_scale"
"""compressed-tensors stores the scale of `x.weight` as `x.weight_scale`."""

_LINEAR_WEIGHT = re.compile(r"^model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")
_WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class CompressedSize:
    """The sizes of a model before and after compression."""

    original_bytes: int
    """Bytes of the weight files."""
    compressed_bytes: int
    num_quantized: int
    """Parameters that are int8 now."""
    num_kept: int
    """Parameters that stayed floating point."""


def quantize_weight(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 weight [O, I] and float32 scale [O, 1] with weight ≈ int8 · scale, within scale / 2 everywhere.

    Symmetric: the largest magnitude of a channel becomes ±127, so -128 is never used and zero stays zero.
    """
    largest_O1 = weight_OI.float().abs().amax(dim=1, keepdim=True)
    scale_O1 = largest_O1.clamp(min=torch.finfo(torch.float32).tiny) / INT8_MAX
    rounded_OI = (weight_OI.float() / scale_O1).round().clamp(-INT8_MAX, INT8_MAX)
    return rounded_OI.to(torch.int8), scale_O1


def dequantize_weight(int8_OI: Tensor, scale_O1: Tensor) -> Tensor:
    """The float32 weight [O, I] that an int8 one represents."""
    return int8_OI.float() * scale_O1.float()


def round_activations(x: Tensor) -> Tensor:
    """x [..., I] rounded to int8 with one symmetric scale per token, and back in x's dtype."""
    x_float = x.float()
    scale = x_float.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / INT8_MAX
    return ((x_float / scale).round() * scale).to(x.dtype)


class Int8Linear(nn.Module):
    """What an engine's int8 kernel computes for a bias-free linear layer, up to the order of float sums.

    The products of int8 pairs are exact in float32, so multiplying the rounded factors gives the kernel's numbers
    without the kernel: for measuring quality, not for speed.
    """

    def __init__(self, int8_OI: Tensor, scale_O1: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", dequantize_weight(int8_OI, scale_O1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(round_activations(x), self.get_buffer("weight").to(x.dtype))


def simulate_int8(model: nn.Module) -> None:
    """Replace every linear layer inside the blocks by its int8 version, in place; head and embeddings stay.

    Afterwards the model computes what an engine computes with the compressed folder.
    """
    for block in model.get_submodule("layers").children():
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                parent = block.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], Int8Linear(*quantize_weight(module.weight.detach())))


def compress_folder(source: Path, target: Path, *, kept_dtype: ComputePrecision = "bfloat16") -> CompressedSize:
    """Write the int8 version of a Hugging Face Llama folder; tokenizer and other files are copied.

    `kept_dtype` is the type of the weights that stay floating point, and the one that an engine computes in by default.
    Raises ValueError for a folder that holds no float Llama model (`huggingface.read_config`), or a compressed one.
    """
    tensors = {hf_name(name): tensor for name, tensor in load_hf_model(source).state_dict().items()}
    linear = {name for name in tensors if _LINEAR_WEIGHT.match(name)}
    config = json.loads((source / "config.json").read_text())
    compressed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in linear:
            compressed[name], compressed[name + SCALE_SUFFIX] = quantize_weight(tensor)
        else:
            compressed[name] = tensor.to(torch_dtype(kept_dtype))
    _write_folder(
        source,
        target,
        compressed,
        config | {"dtype": kept_dtype, "quantization_config": quantization_config()},
    )
    return CompressedSize(
        original_bytes=sum(file.stat().st_size for file in source.glob("*.safetensors")),
        compressed_bytes=(target / _WEIGHTS_FILE).stat().st_size,
        num_quantized=sum(tensors[name].numel() for name in linear),
        num_kept=sum(tensor.numel() for name, tensor in tensors.items() if name not in linear),
    )


def decompress_folder(source: Path, target: Path) -> None:
    """Write a compressed folder as a plain float32 one, with the rounding errors of int8."""
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
    """Write weights and config.json, which comes last, beside copies of the source's other files."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").unlink(missing_ok=True)
    for file in source.iterdir():
        if file.is_file() and ".safetensors" not in file.name and file.name != "config.json":
            shutil.copyfile(file, target / file.name)
    save_file(tensors, target / _WEIGHTS_FILE, metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def quantization_config() -> dict[str, Any]:
    """The `quantization_config` of config.json that says W8A8: int8 weights by channel, int8 activations by token."""
    number = {"num_bits": 8, "type": "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**number, "strategy": "channel", "dynamic": False},
                "input_activations": {**number, "strategy": "token", "dynamic": True},
            }
        },
    }
