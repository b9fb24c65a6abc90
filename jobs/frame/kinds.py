"""Kinds of artifact: what a stage makes and what an input accepts. Stages know each other by kind, never by name.

The sizes of what a job will make are computed by its stage from the config; those of a finished artifact are read.
"""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "corpus", "tokenizer", "shards", "model", "reward_model", "compressed_model", "evaluation", "served_model"
]

HUGGING_FACE_KINDS: tuple[Kind, ...] = ("model", "reward_model", "compressed_model")
"""Artifacts of these kinds hold a Hugging Face folder with weights, which `export` and `serve` accept."""


@dataclass(frozen=True, kw_only=True)
class CorpusSizes:
    """The approximate sizes of a corpus."""

    num_bytes: float
    """Bytes of text."""
    num_parts: int


@dataclass(frozen=True, kw_only=True)
class TokenizerSizes:
    """What later stages need to know of a tokenizer."""

    vocab_size: int
    corpus_id: str | None = None
    """Id of the corpus that it was learned from; None for a tokenizer that Raymill did not learn."""
    held_out_fraction: float = 0.0
    """Fraction of that corpus's documents that it did not learn from."""


@dataclass(frozen=True, kw_only=True)
class ShardsSizes:
    """The approximate sizes of shards."""

    vocab_size: int
    num_bytes: float
    """Bytes of text, training and validation together."""
    validation_bytes: float


def huggingface_kind(config: dict[str, Any]) -> Kind:
    """The kind of a Hugging Face folder that Raymill did not make, from its config.json."""
    if "quantization_config" in config:
        return "compressed_model"
    heads = config.get("architectures") or []
    return "reward_model" if any(head.endswith("ForSequenceClassification") for head in heads) else "model"
