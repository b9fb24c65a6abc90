"""The sizes that a model will have, told before it is made: what `plan` counts tokens' FLOP and memory with.

A need that stands is read; one that does not is asked for its config, and so on up the road.
"""

import math
from collections.abc import Iterable
from typing import Any

from cluster.paths import list_files_with_sizes
from data.tokens.tokenizer import vocab_size
from jobs.frame.artifact import FOREIGN_TOKENIZER, Artifact
from jobs.frame.stage import Job, Needs
from model.huggingface import read_config
from model.transformer import TransformerConfig, flops_per_token, num_parameters

_STATE_BYTES = 16
"""Of each parameter in training: float32 weight, gradient and AdamW's two moments."""
_KEPT_TEXT = 0.45
"""Part of the bytes of source files that become text: the rest is other fields, markup and what is dropped. That of the
demo; once the corpus is made its own size counts."""
_BYTES_PER_TOKEN_4096 = 3.5
"""Of English prose with a BPE vocabulary of 4,096, measured on the demo's corpus."""
_MARKS_OF_MESSAGE = 3
"""Tokens of a chat template around each message."""
_MODEL_FROM = {"sft": "init", "reward": "init", "rlhf": "policy", "compress": "model"}
"""The input that each stage's model has its sizes from; pretrain is told them by its config, or by `init`."""


def sizes_of(need: Job | Artifact) -> TransformerConfig:
    """The sizes of the model that an artifact holds, or that a job will make."""
    if isinstance(need, Artifact):
        return read_config(need.model.local())
    if need.stage.name != "pretrain":
        return sizes_of(need.needs[_MODEL_FROM[need.stage.name]])
    return pretrained_sizes(need.config, need.needs)


def pretrained_sizes(config: Any, needs: Needs) -> TransformerConfig:
    """The sizes that pretraining gives its model: those of `init`, or of its config and the shards' vocabulary."""
    if "init" in needs:
        return sizes_of(needs["init"])
    return config.model.transformer(vocab_size_of(needs["shards"]), config.max_length)


def vocab_size_of(need: Job | Artifact) -> int:
    """The number of tokens of shards, of a vocabulary or of a model."""
    stage = need.stage if isinstance(need, Artifact) else need.stage.name
    if stage == "shards":
        return need.summary["vocab_size"] if isinstance(need, Artifact) else vocab_size_of(need.needs["tokenizer"])
    if stage == FOREIGN_TOKENIZER:
        assert isinstance(need, Artifact), "no job makes it"
        return vocab_size(need.model.local())
    if stage == "vocabulary":
        return vocab_size((need.storage / "tokenizer").local()) if isinstance(need, Artifact) else need.config.size
    return sizes_of(need).vocab_size


def text_bytes_of(need: Job | Artifact) -> float:
    """About how many bytes of text a corpus holds, or will hold, or shards were made of."""
    if isinstance(need, Artifact):
        if need.stage == "corpus":
            return need.summary["bytes"]
        return sum(need.summary[split]["bytes"] for split in ("train", "validation"))
    if need.stage.name == "shards":
        return text_bytes_of(need.needs["corpus"])
    sizes = list_files_with_sizes([source.path for source in need.config.sources])
    return _KEPT_TEXT * sum(size or 0 for _, size in sizes)


def num_parts_of(need: Job | Artifact) -> int:
    """About how many parts a corpus has, or will have: tasks over it can be no more."""
    part_mib = need.record["config"]["part_mib"] if isinstance(need, Artifact) else need.config.part_mib
    return max(1, math.ceil(text_bytes_of(need) / (part_mib << 20)))


def held_out_bytes_of(need: Job | Artifact) -> float:
    """About how many bytes of text shards hold out for validation."""
    if isinstance(need, Artifact):
        return need.summary["validation"]["bytes"]
    return text_bytes_of(need) * need.config.validation_fraction


def bytes_per_token(vocab_size: int) -> float:
    """About how many bytes of English a token of a vocabulary of this size holds."""
    return max(1.0, _BYTES_PER_TOKEN_4096 + 0.4 * math.log2(vocab_size / 4096))


def chat_tokens(texts: Iterable[str], vocab_size: int) -> float:
    """About how many tokens a chat of these messages has, its template's marks included."""
    return sum(len(text.encode()) / bytes_per_token(vocab_size) + _MARKS_OF_MESSAGE for text in texts)


def forward_flop(sizes: TransformerConfig, length: int) -> float:
    """FLOP of one token's forward pass."""
    return flops_per_token(sizes, length) / 3


def checkpoint_gib(sizes: TransformerConfig) -> float:
    """Size of a checkpoint: float32 weights and AdamW's two moments."""
    return mib(sizes, 12) / 1024


def activation_gib(sizes: TransformerConfig, *, tokens: int, length: int) -> float:
    """About what one forward and backward over so many tokens, in rows of `length`, holds beside the state, in GiB.

    Float32, as on CPU: of each layer the inputs of its products and norms, and below 1,024 tokens the attention's
    matrix; of the head the logits and their gradient.
    """
    layer = 14 * sizes.width + 4 * sizes.ffn_width + 2 * sizes.num_heads * min(length, 1024)
    return tokens * 4 * (sizes.num_layers * layer + 3 * sizes.vocab_size) / 2**30


def mib(sizes: TransformerConfig, bytes_per_parameter: float) -> float:
    """A model's parameters in MiB."""
    return num_parameters(sizes) * bytes_per_parameter / 2**20


def weights_gib(need: Job | Artifact) -> float:
    """What a model of any layout takes in memory: as much as its files, or float32 where it is not made yet."""
    if isinstance(need, Artifact):
        return need.model.num_bytes() / 2**30
    return mib(sizes_of(need), 4) / 1024


def state_mib(sizes: TransformerConfig, *, workers: int = 1) -> float:
    """What weights, gradients and optimizer take on each of the workers that share them; activations come on top."""
    return mib(sizes, _STATE_BYTES) / workers
