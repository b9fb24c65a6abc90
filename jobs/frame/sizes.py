"""Sizes of inputs, from which `plan` and the forecast compute tokens, FLOP and memory.

The sizes of an artifact are read from it. Those of a job that has not run come from its stage, which computes them from
its config and the sizes of its inputs.
"""

import math
from collections.abc import Iterable
from typing import cast

from data.corpus.accounting import CorpusSummary
from data.tokens.shards_summary import ShardsSummary
from data.tokens.tokenizer import vocab_size
from jobs.frame.artifact import Artifact
from jobs.frame.job import Job
from jobs.frame.kinds import CorpusSizes, ShardsSizes, TokenizerSizes
from model.huggingface_config import read_config
from model.transformer_config import TransformerConfig, flop_per_token, num_parameters

_STATE_BYTES = 16
"""Bytes of one parameter in training: float32 weight, gradient and AdamW's two moments."""
_BYTES_PER_TOKEN_4096 = 3.5
"""Bytes of English prose in one token of a BPE vocabulary of 4,096, measured on the demo's corpus."""
_MARKERS_PER_MESSAGE = 3
"""Tokens that a chat template adds to each message."""


def corpus_sizes(need: Job | Artifact) -> CorpusSizes:
    """The sizes of a corpus."""
    if isinstance(need, Artifact):
        summary = need.read_summary(CorpusSummary)
        return CorpusSizes(num_bytes=summary.bytes, num_parts=summary.parts)
    return cast(CorpusSizes, need.output_sizes)


def tokenizer_sizes(need: Job | Artifact) -> TokenizerSizes:
    """The sizes of a tokenizer, or of the tokenizer of a model."""
    if need.kind != "tokenizer":
        return TokenizerSizes(vocab_size=model_config_of(need).vocab_size)
    if not isinstance(need, Artifact):
        return cast(TokenizerSizes, need.output_sizes)
    size = vocab_size(need.tokenizer.local())
    if need.is_external:
        return TokenizerSizes(vocab_size=size)
    return TokenizerSizes(
        vocab_size=size,
        corpus_id=need.record.inputs["corpus"].id,
        held_out_fraction=need.config.held_out_fraction,
    )


def shards_sizes(need: Job | Artifact) -> ShardsSizes:
    """The sizes of shards."""
    if not isinstance(need, Artifact):
        return cast(ShardsSizes, need.output_sizes)
    summary = need.read_summary(ShardsSummary)
    return ShardsSizes(
        vocab_size=summary.vocab_size,
        num_bytes=summary.train.bytes + summary.validation.bytes,
        validation_bytes=summary.validation.bytes,
    )


def model_config_of(need: Job | Artifact) -> TransformerConfig:
    """The sizes of a model with any head."""
    if isinstance(need, Artifact):
        return read_config(need.model.local())
    return cast(TransformerConfig, need.output_sizes)


def bytes_per_token(vocab_size: int) -> float:
    """The approximate number of bytes of English in one token of a vocabulary of this size."""
    return max(1.0, _BYTES_PER_TOKEN_4096 + 0.4 * math.log2(vocab_size / 4096))


def chat_tokens(texts: Iterable[str], vocab_size: int) -> float:
    """The approximate number of tokens in a chat of these messages, those that its template adds included."""
    return sum(len(text.encode()) / bytes_per_token(vocab_size) + _MARKERS_PER_MESSAGE for text in texts)


def forward_flop_per_token(sizes: TransformerConfig, length: int) -> float:
    """FLOP of one token's forward pass."""
    return flop_per_token(sizes, length) / 3


def checkpoint_gib(sizes: TransformerConfig) -> float:
    """Size of a checkpoint: float32 weights and AdamW's two moments."""
    return parameters_mib(sizes, 12) / 1024


def activation_gib(sizes: TransformerConfig, *, tokens: int, length: int) -> float:
    """The approximate memory, in GiB, of the activations of one forward and backward pass over rows of `length`.

    In float32, as on a CPU: for each layer the inputs of its products and norms, and below 1,024 tokens the matrix of
    attention weights; for the head the logits and their gradient.
    """
    layer = 14 * sizes.width + 4 * sizes.ffn_width + 2 * sizes.num_heads * min(length, 1024)
    return tokens * 4 * (sizes.num_layers * layer + 3 * sizes.vocab_size) / 2**30


def parameters_mib(sizes: TransformerConfig, bytes_per_parameter: float) -> float:
    """A model's parameters in MiB."""
    return num_parameters(sizes) * bytes_per_parameter / 2**20


def weights_gib(need: Job | Artifact) -> float:
    """The memory of a model's weights: the size of its files, or float32 where it is not made yet."""
    if isinstance(need, Artifact):
        return need.model.num_bytes() / 2**30
    return parameters_mib(model_config_of(need), 4) / 1024


def training_state_mib(sizes: TransformerConfig, *, workers: int = 1) -> float:
    """The memory of weights, gradients and optimizer state on each of the workers that share them."""
    return parameters_mib(sizes, _STATE_BYTES) / workers
