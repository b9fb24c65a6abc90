"""`Transformer` and `ScalarModel`, compared with Hugging Face transformers after saving and after loading a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from model.batch import row_positions
from model.heads import ScalarModel
from model.huggingface import hf_name, hf_tensors, load_hf_model, load_hf_scalar_model, save_hf_model
from model.huggingface_config import SpecialTokens, read_config
from model.parallel import full_state_dict
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

SPECIAL = SpecialTokens(bos=1, eos=2, pad=0)


def make_config(*, tie_embeddings: bool = True, num_kv_heads: int = 2) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=61,
        width=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        ffn_width=48,
        max_length=64,
        rope_theta=5_000.0,
        norm_eps=3e-5,
        tie_embeddings=tie_embeddings,
    )


def make_model(config: TransformerConfig) -> Transformer:
    model = Transformer(config)
    initialize(model, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than initial weights, so that an error in the rotary embedding or a norm changes the logits.
            parameter.mul_(1.3 if "norm" in name else 6.0)
    return model.eval()


def make_hf(*, tie_embeddings: bool = False, num_kv_heads: int = 2, **other: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(make_hf_config(tie_embeddings=tie_embeddings, num_kv_heads=num_kv_heads, **other)).eval()


def make_hf_config(*, tie_embeddings: bool, num_kv_heads: int, **other: object) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=num_kv_heads,
        intermediate_size=48,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5_000.0},
        rms_norm_eps=3e-5,
        tie_word_embeddings=tie_embeddings,
        initializer_range=0.3,
        **other,
    )


def random_ids() -> torch.Tensor:
    return torch.randint(3, 61, (2, 40), generator=torch.Generator().manual_seed(1))


def raymill_logits(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    return model.logits(model(ids, row_positions(ids)))


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_exported_model_has_the_same_logits_in_transformers(
    tmp_path: Path, tie_embeddings: bool, num_kv_heads: int
) -> None:
    config = make_config(tie_embeddings=tie_embeddings, num_kv_heads=num_kv_heads)
    model = make_model(config)
    save_hf_model(tmp_path, full_state_dict(model), config, special_tokens=SPECIAL, tokenizer_folder=None)
    hf_model, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = random_ids()
    with torch.no_grad():
        torch.testing.assert_close(raymill_logits(model, ids), hf_model(ids).logits, atol=1e-5, rtol=0)
    assert (hf_model.config.bos_token_id, hf_model.config.eos_token_id, hf_model.config.pad_token_id) == (1, 2, 0)
    assert hf_model.config.rope_parameters["rope_theta"] == 5_000.0
    assert hf_model.dtype == torch.float32


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_a_folder_of_transformers_has_the_same_logits_in_raymill(
    tmp_path: Path, tie_embeddings: bool, max_shard_size: str
) -> None:
    hf_model = make_hf(tie_embeddings=tie_embeddings)
    hf_model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
    model = load_hf_model(tmp_path)
    assert model.config == make_config(tie_embeddings=tie_embeddings)
    ids = random_ids()
    with torch.no_grad():
        torch.testing.assert_close(raymill_logits(model, ids), hf_model(ids).logits, atol=1e-5, rtol=0)


def test_bfloat16_folder_loads_as_float32_of_the_same_values(tmp_path: Path) -> None:
    hf_model = make_hf().to(torch.bfloat16)
    hf_model.save_pretrained(tmp_path)
    model = load_hf_model(tmp_path)
    assert model.embedding.weight.dtype == torch.float32
    assert torch.equal(model.embedding.weight, hf_model.model.embed_tokens.weight.float())


def test_an_exported_scalar_model_has_the_same_rewards_in_transformers(tmp_path: Path) -> None:
    config = make_config(tie_embeddings=False)
    model = ScalarModel(config)
    initialize(model, seed=5)
    with torch.no_grad():
        model.score.weight.copy_(torch.linspace(-1, 1, config.width)[None])
    save_hf_model(tmp_path, full_state_dict(model), model.config, special_tokens=SPECIAL, tokenizer_folder=None)
    hf_model, info = LlamaForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = random_ids()
    ids[1, 30:] = SPECIAL.pad
    with torch.no_grad():
        scalars = model(ids, row_positions(ids))[torch.arange(2), torch.tensor([39, 29])]
        expected = hf_model(ids, attention_mask=(ids != SPECIAL.pad).long()).logits.squeeze(1)
    torch.testing.assert_close(scalars, expected, atol=1e-5, rtol=0)
    loaded = load_hf_scalar_model(tmp_path)
    assert torch.equal(loaded.score.weight, model.score.weight)


def test_a_scalar_model_from_a_language_model_has_its_decoder_and_zero_weight(tmp_path: Path) -> None:
    make_hf(tie_embeddings=False).save_pretrained(tmp_path)
    model, language_model = load_hf_scalar_model(tmp_path), load_hf_model(tmp_path)
    assert not model.score.weight.any()
    assert torch.equal(model.transformer.layers[2].ffn.down.weight, language_model.layers[2].ffn.down.weight)


def test_hf_tensors_have_the_names_of_transformers() -> None:
    model = make_model(make_config(tie_embeddings=False))
    assert {name for name, _ in hf_tensors(model)} == set(make_hf(tie_embeddings=False).state_dict())
    with pytest.raises(ValueError, match="a Llama decoder has no parameter"):
        hf_name("layers.0.attention.bias")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "rope_type"),
        ({"head_dim": 16}, "head_dim"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_key_value_heads": 3}, "num_kv_heads"),
    ],
)
def test_a_model_with_unsupported_settings_is_rejected(tmp_path: Path, change: dict[str, object], message: str) -> None:
    make_hf().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_weights_that_do_not_match_config_json_are_rejected(tmp_path: Path) -> None:
    make_hf().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "intermediate_size": 50}))
    with pytest.raises(ValueError, match=r"ffn\.\w+\.weight has shape"):
        load_hf_model(tmp_path)
    path.write_text(json.dumps({**raw, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"unexpected layers\.2"):
        load_hf_model(tmp_path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_hf_model(tmp_path / "missing")
