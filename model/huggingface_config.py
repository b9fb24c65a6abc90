"""A Hugging Face folder without its weights: config.json and the tokenizer's files. Takes no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.transformer_config import TransformerConfig

if TYPE_CHECKING:
    import torch

_COMPUTED_VALUES = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "pretraining_tp": (1, None),
}
"""The only values that we compute of settings that change the network; a missing setting means the first."""

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
"""The files that a tokenizer may have in a model folder; those that exist are copied."""


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The token ids that a Hugging Face configuration names."""

    bos: int | None
    eos: int
    pad: int
    """Must differ from the last token of a scored sequence: classification reads the last token that is not it."""


def hf_config(
    config: TransformerConfig, special_tokens: SpecialTokens, *, is_scalar: bool, dtype: torch.dtype
) -> dict[str, Any]:
    """The config.json of an exported model."""
    head: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    if is_scalar:
        head = {
            "architectures": ["LlamaForSequenceClassification"],
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
        }
    return {
        **head,
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


def read_config(folder: Path) -> TransformerConfig:
    """The sizes of the Llama model in a folder.

    Raises ValueError for another kind of model, and for settings that we do not compute exactly.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: it must be a Hugging Face model folder")
    raw = json.loads(path.read_text())
    if raw.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type={raw.get('model_type')!r}, only 'llama' is supported")
    for name, allowed in _COMPUTED_VALUES.items():
        if raw.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {name}={raw[name]!r} is not supported, must be {allowed[0]!r}")
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"{path}: rope_parameters.rope_type={rope['rope_type']!r} is not supported, only 'default'")
    config = TransformerConfig(
        vocab_size=raw["vocab_size"],
        width=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        ffn_width=raw["intermediate_size"],
        max_length=raw["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_embeddings=raw.get("tie_word_embeddings", False),
    )
    config.check()
    if raw.get("head_dim") not in (None, config.head_dim):
        raise ValueError(f"{path}: head_dim={raw['head_dim']} is not supported, must be width/heads={config.head_dim}")
    return config
