"""Writes and reads the config.json of a Hugging Face model folder. Does not import torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.transformer_config import TransformerConfig

if TYPE_CHECKING:
    import torch

_SUPPORTED_VALUES = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "pretraining_tp": (1, None),
}
"""The values that `Transformer` supports, by the name of a setting that changes what a Llama model computes.

If config.json does not have a setting, its first value here is assumed.
"""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
"""The files of a tokenizer in a model folder. Few tokenizers have all of them, and those that exist are copied."""


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The ids of the special tokens in config.json."""

    bos: int | None
    """Id of the token at the beginning of a text. None if the tokenizer has no such token."""
    eos: int
    """Id of the token at the end of a text."""
    pad: int
    """Id of the padding token. No scored sequence may end with this token, because `LlamaForSequenceClassification`
    reads the scalar at the last token that is not padding."""


def hf_config(
    config: TransformerConfig, special_tokens: SpecialTokens, *, is_scalar: bool, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the content of config.json. With `is_scalar` the model is a `ScalarModel`, otherwise a `Transformer`."""
    architecture: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    if is_scalar:
        architecture = {
            "architectures": ["LlamaForSequenceClassification"],
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
        }
    return {
        **architecture,
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        # transformers 5 reads rope_parameters; earlier versions read rope_theta.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": special_tokens.bos,
        "eos_token_id": special_tokens.eos,
        "pad_token_id": special_tokens.pad,
        "dtype": str(dtype).removeprefix("torch."),
    }


def int8_quantization() -> dict[str, Any]:
    """Return the `quantization_config` of a model that `model.quantize.compress_folder` wrote.

    It says that weights are int8 with a scale per channel, and activations int8 with a scale per token.
    """
    int8_format = {"num_bits": 8, "type": "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**int8_format, "strategy": "channel", "dynamic": False},
                "input_activations": {**int8_format, "strategy": "token", "dynamic": True},
            }
        },
    }


def is_quantized(folder: Path) -> bool:
    """Return whether the model in a folder with a config.json is compressed."""
    return "quantization_config" in json.loads((folder / "config.json").read_text())


def read_config(folder: Path, *, allow_int8: bool = False) -> TransformerConfig:
    """Read the architecture of the Llama model in a folder from its config.json.

    With `allow_int8`, the model may be compressed as `int8_quantization` says. Raises ValueError for a folder without
    config.json, for a model of a different type, and for a setting that `Transformer` does not support.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: give the path of a Hugging Face model folder")
    values = json.loads(path.read_text())
    if values.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type={values.get('model_type')!r}, only 'llama' is supported")
    if allow_int8 and values.get("quantization_config") == int8_quantization():
        values["quantization_config"] = None
    for name, allowed in _SUPPORTED_VALUES.items():
        if values.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {name}={values[name]!r} is not supported, it must be {allowed[0]!r}")
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"{path}: rope_parameters.rope_type={rope['rope_type']!r} is not supported, it must be 'default'"
        )
    config = TransformerConfig(
        vocab_size=values["vocab_size"],
        width=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
        ffn_width=values["intermediate_size"],
        max_length=values["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 10_000.0))),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        tie_embeddings=values.get("tie_word_embeddings", False),
    )
    config.check()
    if values.get("head_dim") not in (None, config.head_dim):
        raise ValueError(
            f"{path}: head_dim={values['head_dim']} is not supported, it must be hidden_size / num_attention_heads = "
            f"{config.head_dim}"
        )
    return config
