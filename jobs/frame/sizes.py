"""Functions that return the sizes of inputs, and the memory and FLOP that follow from the config of a model.

The functions `output_sizes`, `estimate` and `workload` of the stages call them. An input is a finished artifact, or the
planned job that will write it. The sizes of an artifact are read from its files. The sizes of a job are computed by
`output_sizes` of the job's stage.
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
"""Bytes per parameter during training: weight, gradient and the two AdamW moments, all float32."""
_BYTES_PER_TOKEN_4096 = 3.5
"""Bytes of English prose per token with a BPE vocabulary of 4,096 tokens, measured on the demo's corpus."""
_TEMPLATE_TOKENS_PER_MESSAGE = 3
"""Number of tokens that a chat template adds to each message."""


def corpus_sizes(planned_input: Job | Artifact) -> CorpusSizes:
    """Return the sizes of the corpus that an input refers to."""
    if isinstance(planned_input, Artifact):
        summary = planned_input.read_summary(CorpusSummary)
        return CorpusSizes(num_bytes=summary.bytes, num_parts=summary.parts)
    return cast(CorpusSizes, planned_input.output_sizes)


def tokenizer_sizes(planned_input: Job | Artifact) -> TokenizerSizes:
    """Return the sizes of the tokenizer that an input refers to. The input is a tokenizer, or a model, which contains a
    tokenizer."""
    if planned_input.kind != "tokenizer":
        return TokenizerSizes(vocab_size=model_config_of(planned_input).vocab_size)
    if not isinstance(planned_input, Artifact):
        return cast(TokenizerSizes, planned_input.output_sizes)
    num_ids = vocab_size(planned_input.tokenizer.local())
    corpus = planned_input.record.inputs.get("corpus")
    if corpus is None:  # nothing is known about the text that the tokenizer was trained on
        return TokenizerSizes(vocab_size=num_ids)
    return TokenizerSizes(
        vocab_size=num_ids,
        corpus_id=corpus.id,
        held_out_fraction=planned_input.config.held_out_fraction,
    )


def shards_sizes(planned_input: Job | Artifact) -> ShardsSizes:
    """Return the sizes of the shards that an input refers to."""
    if not isinstance(planned_input, Artifact):
        return cast(ShardsSizes, planned_input.output_sizes)
    summary = planned_input.read_summary(ShardsSummary)
    return ShardsSizes(
        vocab_size=summary.vocab_size,
        num_bytes=summary.train.bytes + summary.validation.bytes,
        validation_bytes=summary.validation.bytes,
    )


def model_config_of(planned_input: Job | Artifact) -> TransformerConfig:
    """Return the config of the model that an input refers to. The model is a language model or a reward model."""
    if isinstance(planned_input, Artifact):
        return read_config(planned_input.model.local(), allow_int8=planned_input.kind == "compressed_model")
    return cast(TransformerConfig, planned_input.output_sizes)


def bytes_per_token(vocab_size: int) -> float:
    """Return the approximate number of bytes of English text per token for a BPE vocabulary of this size."""
    return max(1.0, _BYTES_PER_TOKEN_4096 + 0.4 * math.log2(vocab_size / 4096))


def chat_tokens(texts: Iterable[str], vocab_size: int) -> float:
    """Return the approximate number of tokens in a chat, including the tokens that the chat template adds.

    `texts` contains the text of each message.
    """
    return sum(len(text.encode()) / bytes_per_token(vocab_size) + _TEMPLATE_TOKENS_PER_MESSAGE for text in texts)


def forward_flop_per_token(model_config: TransformerConfig, length: int) -> float:
    """Return the floating-point operations of a forward pass per token, in a sequence of `length` tokens.

    This is a third of the floating-point operations of training, because a backward pass takes twice as many as a
    forward pass.
    """
    return flop_per_token(model_config, length) / 3


def checkpoint_gib(model_config: TransformerConfig) -> float:
    """Return the size of a training checkpoint in GiB: float32 weights and the two AdamW moments."""
    return parameters_mib(model_config, 12) / 1024


def activation_gib(
    model_config: TransformerConfig, *, tokens: int, length: int, logit_positions: int | None = None
) -> float:
    """Return the approximate memory in GiB of the activations in one forward and backward pass.

    The pass computes `tokens` tokens, which are all tokens of all rows, in rows of `length` tokens each. All
    activations are counted as float32, as on a CPU. Each layer keeps the inputs of its matmuls and norms, and for each
    token the attention weights of up to 1,024 positions. `logit_positions` is the number of tokens whose logits are in
    memory at the same time, by default all of them. For each there are three values for each entry of the vocabulary:
    logit, probability and gradient.
    """
    logit_positions = tokens if logit_positions is None else logit_positions
    layer = 14 * model_config.width + 4 * model_config.ffn_width + 2 * model_config.num_heads * min(length, 1024)
    logits = 3 * model_config.vocab_size
    return 4 * (tokens * model_config.num_layers * layer + logit_positions * logits) / 2**30


def forward_activation_gib(model_config: TransformerConfig, *, tokens: int, length: int) -> float:
    """Return the approximate memory in GiB of the activations in a forward pass without a backward pass.

    It keeps about half of the activations of `activation_gib`, which has the same arguments.
    """
    return activation_gib(model_config, tokens=tokens, length=length) / 2


def parameters_mib(model_config: TransformerConfig, bytes_per_parameter: float) -> float:
    """Return the size of a model's parameters in MiB."""
    return num_parameters(model_config) * bytes_per_parameter / 2**20


def weights_gib(planned_input: Job | Artifact) -> float:
    """Return the size of a model's weights in GiB.

    If the model exists, this is the size of its files. For a model that does not exist yet, float32 weights are
    assumed.
    """
    if isinstance(planned_input, Artifact):
        return planned_input.model.num_bytes() / 2**30
    return parameters_mib(model_config_of(planned_input), 4) / 1024


def training_state_mib(model_config: TransformerConfig, *, workers: int = 1) -> float:
    """Return the size in MiB of the weights, gradients and optimizer state that each worker holds.

    They are sharded equally over the workers, and `workers` is the number of workers.
    """
    return parameters_mib(model_config, _STATE_BYTES) / workers
