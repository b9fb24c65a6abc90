"""The kinds of artifacts, and the sizes of corpora, tokenizers and shards that other stages need to know.

A stage makes artifacts of one kind, and an input accepts artifacts of certain kinds. Therefore no stage's code refers
to a different stage. The sizes of a finished artifact are read from it. The sizes of an artifact that does not exist
yet are computed by its stage (`Stage.output_sizes`).
"""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "corpus", "tokenizer", "shards", "model", "reward_model", "compressed_model", "evaluation", "served_model"
]

HUGGING_FACE_KINDS: tuple[Kind, ...] = ("model", "reward_model", "compressed_model")
"""The kinds whose artifacts contain a Hugging Face model folder. `raymill export` and `raymill serve` accept artifacts
of these kinds."""


@dataclass(frozen=True, kw_only=True)
class CorpusSizes:
    """The approximate sizes of a corpus."""

    num_bytes: float
    """UTF-8 bytes of text in all documents."""
    num_parts: int
    """Number of parts, the files that the documents are divided into."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSizes:
    """The size of a tokenizer's vocabulary, and the documents that the tokenizer was trained on."""

    vocab_size: int
    corpus_id: str | None = None
    """Id of the corpus that the tokenizer was trained on. None for a tokenizer that Raymill did not train."""
    held_out_fraction: float = 0.0
    """Fraction of the corpus's documents that was held out from the training of the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class ShardsSizes:
    """The approximate sizes of the shards of one `shards` artifact."""

    vocab_size: int
    num_bytes: float
    """UTF-8 bytes of the text that was encoded, training and validation together."""
    validation_bytes: float
    """UTF-8 bytes of the validation text alone."""


def huggingface_kind(config: dict[str, Any]) -> Kind:
    """Return the kind of a Hugging Face model folder that Raymill did not make.

    `config` is the content of its config.json.
    """
    if "quantization_config" in config:
        return "compressed_model"
    architectures = config.get("architectures") or []
    is_classifier = any(name.endswith("ForSequenceClassification") for name in architectures)
    return "reward_model" if is_classifier else "model"
