"""The Llama-family decoder that every stage trains, scores or exports.

Its outputs equal those of `LlamaForCausalLM` in Hugging Face transformers, except for floating point rounding. The
code has no device placement, sharding or loss: autocast sets the precision, and `model.parallel` shards the model.

Suffixes of tensor names give their dimensions: B batch rows, T tokens of a row, D hidden size (`width`), H query heads,
K key-value heads, C head dim, E = H · C or K · C channels of all heads together, R = H/K · T queries that use one
key-value head, V vocabulary size.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer_config import TransformerConfig

INITIAL_STD = 0.02
"""Standard deviation of the initial weights."""

CPU_EXPLICIT_SCORES_MAX_LENGTH = 1024
"""Longest row, in tokens, for which attention in bfloat16 on a CPU stores the attention scores [B, H, T, T] in memory.
Up to this length they are small compared with the other activations of a training batch."""


class Transformer(nn.Module):
    """A decoder. `forward` returns the final hidden states, and `logits` applies the lm_head to hidden states.

    The two methods are separate because most callers need logits at few positions. A caller selects the hidden states
    of these positions and passes only them to `logits`. Under FSDP the embedding, the final norm and the lm_head stay
    unsharded from `forward` to the end of backward, so calling `logits` after `forward` needs no further all-gather.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        # A tied lm_head uses the embedding's parameter and has no module. With a second module for the same parameter,
        # sharding or loading could turn it into two parameters.
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, input_ids_BT: Tensor, positions_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """Return the final hidden states [B, T, D], after the last norm.

        All arguments are int64 [B, T]. Positions count from 0 in each document. A token attends to itself and to
        earlier tokens of its row with the same document id. Padding tokens have the document id -1, so no
        token of a document attends to them. With document_ids None each row is a single document, which is faster.
        """
        cos_sin = rotary_cos_sin(positions_BT, self.config)
        mask_B1TT = None if document_ids_BT is None else document_mask(document_ids_BT)
        x_BTD = self.embedding(input_ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_sin, mask_B1TT)
        return self.norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the next-token logits [..., V] of hidden states [..., D]."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """The weight [V, D] of the lm_head, which is the embedding weight if they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight


class Layer(nn.Module):
    """One pre-norm transformer block. It adds attention and then the feed-forward network to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x_BTD: Tensor, cos_sin: tuple[Tensor, Tensor], mask_B1TT: Tensor | None) -> Tensor:
        """Return the residual stream [B, T, D] after this block.

        `cos_sin` is the result of `rotary_cos_sin`, and the mask is that of `document_mask`, or None.
        """
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_sin, mask_B1TT)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245) with rotary position embedding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.width, config.num_heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.num_heads * config.head_dim, config.width, bias=False)

    def forward(self, x_BTD: Tensor, cos_sin: tuple[Tensor, Tensor], mask_B1TT: Tensor | None) -> Tensor:
        query_BHTC = apply_rotary(self._split_heads(self.query(x_BTD)), cos_sin)
        key_BKTC = apply_rotary(self._split_heads(self.key(x_BTD)), cos_sin)
        value_BKTC = self._split_heads(self.value(x_BTD))
        attended_BHTC = attend(query_BHTC, key_BKTC, value_BKTC, mask_B1TT)
        return self.output(attended_BHTC.transpose(1, 2).flatten(2))

    def _split_heads(self, projected_BTE: Tensor) -> Tensor:
        """Split the channels into heads: [B, T, heads · C] -> [B, heads, T, C]."""
        return projected_BTE.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU feed-forward network (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


def document_mask(document_ids_BT: Tensor) -> Tensor:
    """Return a boolean mask [B, 1, T, T], true where a query (third axis) may attend to a key (fourth axis).

    Every token attends to itself, padding tokens too, so that no softmax is over an empty set of keys.
    """
    length = document_ids_BT.shape[1]
    same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=document_ids_BT.device).tril()
    return (same_BTT & causal_TT)[:, None]


def rotary_cos_sin(positions_BT: Tensor, config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Return the float32 cosines and sines [B, 1, T, C] of the rotary embedding (RoPE, arXiv 2104.09864).

    Channels i and i + C/2 form a pair (the "rotate half" layout of Llama in transformers). The angle of a pair is
    position · theta^(-2i/C).
    """
    channels = torch.arange(0, config.head_dim, 2, device=positions_BT.device, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (channels / config.head_dim)
    angles_BTC = (positions_BT[..., None].float() * frequencies).repeat(1, 1, 2)
    return angles_BTC.cos()[:, None], angles_BTC.sin()[:, None]


def apply_rotary(x_BHTC: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair of channels (i, i + C/2) of queries or keys by its angle.

    The cosines and sines are computed in float32 and then cast to the dtype of x, as in transformers and vLLM.
    """
    cos_B1TC, sin_B1TC = (tensor.to(x_BHTC.dtype) for tensor in cos_sin)
    first, second = x_BHTC.chunk(2, dim=-1)
    return x_BHTC * cos_B1TC + torch.cat((-second, first), dim=-1) * sin_B1TC


def attend(query_BHTC: Tensor, key_BKTC: Tensor, value_BKTC: Tensor, mask_B1TT: Tensor | None) -> Tensor:
    """Return the attention output [B, H, T, C]. Query head h uses key-value head h // (H/K).

    The mask is that of `document_mask`. With None each row is a single document.
    """
    is_cpu_bfloat16 = query_BHTC.device.type == "cpu" and query_BHTC.dtype == torch.bfloat16
    if is_cpu_bfloat16 and query_BHTC.shape[2] <= CPU_EXPLICIT_SCORES_MAX_LENGTH:
        return _attend_with_explicit_scores(query_BHTC, key_BKTC, value_BKTC, mask_B1TT)
    query_heads_per_kv_head = query_BHTC.shape[1] // key_BKTC.shape[1]
    if mask_B1TT is None:
        return F.scaled_dot_product_attention(
            query_BHTC, key_BKTC, value_BKTC, is_causal=True, enable_gqa=query_heads_per_kv_head > 1
        )
    # The fused CUDA kernel that accepts a mask does not support grouped-query attention. With enable_gqa PyTorch would
    # use a kernel that stores all attention scores in memory, so the key-value heads are repeated here.
    key_BHTC, value_BHTC = (x.repeat_interleave(query_heads_per_kv_head, dim=1) for x in (key_BKTC, value_BKTC))
    return F.scaled_dot_product_attention(query_BHTC, key_BHTC, value_BHTC, attn_mask=mask_B1TT)


def _attend_with_explicit_scores(
    query_BHTC: Tensor, key_BKTC: Tensor, value_BKTC: Tensor, mask_B1TT: Tensor | None
) -> Tensor:
    """Return the attention output as in `attend`, computed by two matmuls with all attention scores in memory.

    In bfloat16 on a CPU this is twice as fast as PyTorch's flash attention kernel, whose backward does not use the
    CPU's matrix units well. Measured for forward and backward of 16 rows of 256 tokens on one thread: 30 ms compared
    with 59 ms for 6 heads of head dim 32, and 39 ms compared with 76 ms for 5 heads of head dim 64. In float32 the
    flash attention kernel is faster.
    """
    num_kv_heads, length = key_BKTC.shape[1:3]
    if mask_B1TT is None:
        mask_B1TT = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    bias_B1TT = torch.zeros(mask_B1TT.shape, dtype=query_BHTC.dtype).masked_fill_(~mask_B1TT, -math.inf)
    scaled_BHTC = query_BHTC * query_BHTC.shape[-1] ** -0.5
    # All queries that use one key-value head become the rows of one matrix, so that one matmul computes their scores.
    grouped_query_BKRC = scaled_BHTC.unflatten(1, (num_kv_heads, -1)).flatten(2, 3)
    scores_BKRT = grouped_query_BKRC @ key_BKTC.transpose(-1, -2)
    scores_BHTT = scores_BKRT.unflatten(2, (-1, length)).flatten(1, 2)
    probabilities_BHTT = scores_BHTT.add_(bias_B1TT).softmax(-1)
    attended_BKRC = probabilities_BHTT.unflatten(1, (num_kv_heads, -1)).flatten(2, 3) @ value_BKTC
    return attended_BKRC.unflatten(2, (-1, length)).flatten(1, 2)


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Set the initial values of all parameters of an unsharded model.

    Each parameter has its own random generator, seeded with `seed` and the parameter's name. Its values therefore do
    not depend on the order in which parameters are created, nor on the number of ranks.

    Weight matrices are sampled from a normal distribution with standard deviation 0.02. For the two matrices of each
    layer whose output is added to the residual stream the standard deviation is 0.02 / sqrt(2 · num_layers), so that
    the variance of the residual stream does not grow with depth (as in GPT-2). Norm weights start at 1. The weight of a
    scalar head starts at 0, so that all rewards and values start at 0 and the Bradley-Terry loss starts at ln 2.
    """
    num_layers = sum(isinstance(module, Layer) for module in model.modules())
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        elif name == "score.weight":
            parameter.zero_()
        else:
            adds_to_residual = name.endswith(("attention.output.weight", "ffn.down.weight"))
            std = INITIAL_STD / math.sqrt(2 * num_layers) if adds_to_residual else INITIAL_STD
            # Sampled on the CPU, because generators on other devices give different numbers for the same seed.
            sampled = torch.randn(parameter.shape, generator=_named_generator(seed, name))
            parameter.copy_(sampled * std)


def _named_generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
