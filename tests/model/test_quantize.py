"""Int8 quantization: rounding errors, the written folder, and the simulation of the int8 kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from torch import Tensor

from model.batch import batch_from_sequences
from model.huggingface import load_hf_model, save_hf_model
from model.huggingface_config import SpecialTokens
from model.objectives import logprobs
from model.quantize import (
    Int8Linear,
    compress_folder,
    decompress_folder,
    dequantize_weight,
    quantize_weight,
    round_activations,
    simulate_int8,
)
from model.transformer import Transformer
from model.transformer_config import TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=320, width=64, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=128, max_length=128
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a random Llama model whose weights are so large that int8 changes its logprobs."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.12) if parameter.ndim == 2 else None
    special = SpecialTokens(bos=0, eos=1, pad=2)
    save_hf_model(tmp_path / "original", model.state_dict(), CONFIG, special_tokens=special, tokenizer_folder=None)
    return tmp_path / "original"


def test_rounding_error_is_at_most_half_the_scale_of_the_channel() -> None:
    weight = torch.randn(16, 200, generator=torch.Generator().manual_seed(1)) * torch.logspace(-4, 2, 16)[:, None]
    int8, scale = quantize_weight(weight)
    error = (dequantize_weight(int8, scale) - weight).abs()
    assert (error <= 0.5 * scale * (1 + 1e-5)).all()
    assert error.max() > 0.4 * scale.max()  # errors near the bound occur, so the bound is tight
    assert (int8.abs().amax(dim=1) == 127).all()


def test_int8_by_hand_and_a_channel_of_zeros() -> None:
    int8, scale = quantize_weight(torch.tensor([[1.27, -0.635, 0.004], [0.0, 0.0, 0.0]]))
    assert int8.tolist() == [[127, -64, 0], [0, 0, 0]]  # -63.5 is rounded to the even neighbor
    assert scale[0].item() == pytest.approx(0.01)
    assert dequantize_weight(int8, scale)[1].abs().max() == 0.0


def test_quantizing_a_dequantized_weight_does_not_change_it() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    first = quantize_weight(weight)
    assert torch.equal(first[0], quantize_weight(dequantize_weight(*first))[0])


def test_activations_have_a_scale_per_token() -> None:
    x = torch.tensor([[[127.0, 1.4, -2.6], [1.27, 0.014, -0.026]]])
    assert torch.allclose(round_activations(x), torch.tensor([[[127.0, 1.0, -3.0], [1.27, 0.01, -0.03]]]))


def test_the_int8_folder_is_smaller_and_has_a_quantization_config(folder: Path, tmp_path: Path) -> None:
    size = compress_folder(folder, tmp_path / "int8", kept_dtype="bfloat16")
    assert size.num_quantized + size.num_kept == sum(p.numel() for p in load_hf_model(folder).parameters())
    assert size.compressed_bytes == (tmp_path / "int8" / "model.safetensors").stat().st_size
    assert size.compressed_bytes < 0.4 * size.original_bytes
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    assert stored["model.layers.1.mlp.down_proj.weight"].dtype == torch.int8
    assert stored["model.layers.1.mlp.down_proj.weight_scale"].shape == (CONFIG.width, 1)
    assert stored["model.embed_tokens.weight"].dtype == torch.bfloat16
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    parsed = QuantizationConfig.model_validate(config["quantization_config"])
    assert parsed.format == "int-quantized" and parsed.ignore == ["lm_head"]


def test_the_simulation_has_the_same_logprobs_as_the_written_folder(folder: Path, tmp_path: Path) -> None:
    compress_folder(folder, tmp_path / "int8", kept_dtype="float32")
    decompress_folder(tmp_path / "int8", tmp_path / "dequantized")
    loaded, simulated = load_hf_model(tmp_path / "dequantized"), load_hf_model(folder)
    for model in (loaded, simulated):
        simulate_int8(model)
    batch = batch_from_sequences([list(range(1, 60))], [[True] * 59], length=58, pad_id=2)
    original = logprobs(load_hf_model(folder), batch)
    assert torch.allclose(logprobs(loaded, batch), logprobs(simulated, batch), atol=1e-5)
    difference = (logprobs(simulated, batch) - original).abs()
    assert 1e-4 < difference.mean() < 0.1


def test_activations_that_are_rounded_at_random_become_a_neighbor_and_are_right_on_average() -> None:
    x = torch.tensor([[127.0, 1.25, -2.75, 3.0]]).expand(4000, 4)
    rounded = round_activations(x, torch.Generator().manual_seed(0))
    assert [sorted(set(column.tolist())) for column in rounded.T] == [[127.0], [1.0, 2.0], [-3.0, -2.0], [3.0]]
    assert rounded.mean(0).tolist() == pytest.approx([127.0, 1.25, -2.75, 3.0], abs=0.03)


def misread(model: Transformer, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Transformer:
    """Return the model that an engine computes which misreads weights and scales."""
    simulate_int8(model)
    for module in model.modules():
        if isinstance(module, Int8Linear):
            int8, scale = quantize_weight(module.weight)
            module.weight.copy_(dequantize_weight(*change(int8, scale)))
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda int8, scale: (int8, scale.roll(1, 0)),  # each scale belongs to the row before
        lambda int8, scale: (int8, scale.flip(0)),
        lambda int8, scale: (int8, scale * 2),
        lambda int8, scale: (int8.float() + 8, scale),  # a wrong zero point
        lambda int8, scale: (int8.roll(1, 0), scale),  # rows in another order
        lambda int8, scale: (int8.roll(32, 1), scale),  # groups of columns in another order
        lambda int8, scale: (int8.reshape(int8.shape[1], -1).T, scale),  # transposed
    ],
)
def test_a_misread_folder_differs_by_more_than_rounding_explains(folder: Path, change: Any) -> None:
    ids = torch.randint(0, 320, (4, 60), generator=torch.Generator().manual_seed(1)).tolist()
    batch = batch_from_sequences(ids, [[True] * 60] * 4, length=59, pad_id=2)
    models = [load_hf_model(folder) for _ in range(3)]
    simulate_int8(models[0])
    simulate_int8(models[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right, at_random, wrong = (
            logprobs(m, batch).flatten().numpy() for m in (*models[:2], misread(models[2], change))
        )
    assert np.abs(wrong - right).mean() > 8 * np.abs(at_random - right).mean()  # MAX_SATURATION_RATIO


def test_a_quantized_folder_is_rejected(folder: Path, tmp_path: Path) -> None:
    compress_folder(folder, tmp_path / "int8")
    with pytest.raises(ValueError, match="quantization_config"):
        compress_folder(tmp_path / "int8", tmp_path / "again")
