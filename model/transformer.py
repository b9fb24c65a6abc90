"""The Llama-family decoder: the network that every stage trains, scores or exports.

It computes what transformers' `LlamaForCausalLM` computes, up to the order of float sums. It knows
nothing of devices, shards or losses: precision comes from autocast, parallelism from `model.parallel`.

Shape legend, used as suffix: B batch rows, T tokens of a row, D width, H query heads, K key-value heads,
C channels of a head, R query rows of one key-value head, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer_config import TransformerConfig

INITIAL_STD = 0.02


# Up to this many tokens the score matrices of a training batch are small beside its other activations.
CPU_MATRIX_ATTENTION_LENGTH = 1024


class Transformer(nn.Module):
    """Decoder from token ids to final hidden states; `logits` is its head.

    The head is separate from `forward` because most uses need it at few positions: gather the rows first, then
    call `logits`. Under FSDP the root's parameters stay gathered from `forward` until backward ends, so `logits`
    may follow any `forward` of the same step.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        # A tied head has no module of its own: one parameter cannot come untied under sharding or loading.
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, input_ids_BT: Tensor, positions_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """Final normed hidden states [B, T, D].

        input_ids, positions: int64 [B, T]; positions count from 0 inside each document. A token attends to the
        tokens at or before it in its row that have its document id (int64 [B, T], padding is a document of its
        own, -1 by custom); with None the whole row is one document, which is the faster path.
        """
        rotation = rotary_cos_sin(positions_BT, self.config)
        mask_B1TT = None if document_ids_BT is None else document_mask(document_ids_BT)
        x_BTD = self.embedding(input_ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotation, mask_B1TT)
        return self.norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of the next token for hidden states [..., D]."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """The output table [V, D]: the head's own, or the embedding's when tied."""
        return self.embedding.weight if self.head is None else self.head.weight


class Layer(nn.Module):
    """One pre-norm block: attention, then the gated feed-forward layer, each added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], mask_B1TT: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation, mask_B1TT)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245) with rotary positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.width, config.num_heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.width, config.num_kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.num_heads * config.head_dim, config.width, bias=False)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], mask_B1TT: Tensor | None) -> Tensor:
        query_BHTC = rotate(self._split_heads(self.query(x_BTD)), rotation)
        key_BKTC = rotate(self._split_heads(self.key(x_BTD)), rotation)
        value_BKTC = self._split_heads(self.value(x_BTD))
        mixed_BHTC = attend(query_BHTC, key_BKTC, value_BKTC, mask_B1TT)
        return self.output(mixed_BHTC.transpose(1, 2).flatten(2))

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


def document_mask(document_ids_BT: Tensor) -> Tensor:
    """Boolean mask [B, 1, T, T], true where a query (third axis) may see a key (fourth axis).

    A token always sees itself, so no row of the softmax is empty, padding included.
    """
    length = document_ids_BT.shape[1]
    same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=document_ids_BT.device).tril()
    return (same_BTT & causal_TT)[:, None]


def rotary_cos_sin(positions_BT: Tensor, config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, T, C] in float32 of the angle position · theta^(-2i/C) (RoPE, arXiv 2104.09864).

    Channel i and channel i + C/2 form a pair, the layout of transformers' Llama ("rotate half").
    """
    channels = torch.arange(0, config.head_dim, 2, device=positions_BT.device, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (channels / config.head_dim)
    angles_BTC = (positions_BT[..., None].float() * frequencies).repeat(1, 1, 2)
    return angles_BTC.cos()[:, None], angles_BTC.sin()[:, None]


def rotate(x_BHTC: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair of channels (i, i + C/2) by its angle, in the dtype of x.

    The angle is computed in float32; its cosine is rounded to bfloat16 with x, as transformers and vLLM do.
    """
    cos_B1TC, sin_B1TC = (part.to(x_BHTC.dtype) for part in rotation)
    first, second = x_BHTC.chunk(2, dim=-1)
    return x_BHTC * cos_B1TC + torch.cat((-second, first), dim=-1) * sin_B1TC


def attend(query_BHTC: Tensor, key_BKTC: Tensor, value_BKTC: Tensor, mask_B1TT: Tensor | None) -> Tensor:
    """Softmax attention [B, H, T, C]; query heads h share key-value head h // (H/K); mask None is causal."""
    is_cpu_bfloat16 = query_BHTC.device.type == "cpu" and query_BHTC.dtype == torch.bfloat16
    if is_cpu_bfloat16 and query_BHTC.shape[2] <= CPU_MATRIX_ATTENTION_LENGTH:
        return _attend_by_matrices(query_BHTC, key_BKTC, value_BKTC, mask_B1TT)
    num_shared = query_BHTC.shape[1] // key_BKTC.shape[1]
    if mask_B1TT is None:
        return F.scaled_dot_product_attention(
            query_BHTC, key_BKTC, value_BKTC, is_causal=True, enable_gqa=num_shared > 1
        )
    # The fused CUDA kernel that takes a mask has no grouped heads; asking for them would materialize the scores.
    key_BHTC, value_BHTC = (x.repeat_interleave(num_shared, dim=1) for x in (key_BKTC, value_BKTC))
    return F.scaled_dot_product_attention(query_BHTC, key_BHTC, value_BHTC, attn_mask=mask_B1TT)


def _attend_by_matrices(query_BHTC: Tensor, key_BKTC: Tensor, value_BKTC: Tensor, mask_B1TT: Tensor | None) -> Tensor:
    """Attention with the score matrix in memory: twice as fast as the CPU's flash kernel in bfloat16.

    Forward and backward of 16 x 256 tokens, one thread: 30 against 59 ms for 6 heads of 32 channels, 39 against
    76 ms for 5 of 64. The kernel's bfloat16 backward does not use the matrix units well; in float32 it wins.
    """
    num_kv_heads, length = key_BKTC.shape[1:3]
    if mask_B1TT is None:
        mask_B1TT = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    bias_B1TT = torch.zeros(mask_B1TT.shape, dtype=query_BHTC.dtype).masked_fill_(~mask_B1TT, -math.inf)
    scaled_BHTC = query_BHTC * query_BHTC.shape[-1] ** -0.5
    # The query heads of one key-value head become the rows of one matrix.
    rows_BKRC = scaled_BHTC.unflatten(1, (num_kv_heads, -1)).flatten(2, 3)
    scores_BKRT = rows_BKRC @ key_BKTC.transpose(-1, -2)
    scores_BHTT = scores_BKRT.unflatten(2, (-1, length)).flatten(1, 2)
    probabilities_BHTT = scores_BHTT.add_(bias_B1TT).softmax(-1)
    mixed_BKRC = probabilities_BHTT.unflatten(1, (num_kv_heads, -1)).flatten(2, 3) @ value_BKTC
    return mixed_BKRC.unflatten(2, (-1, length)).flatten(1, 2)


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Fill every parameter of an unsharded model, each from a generator seeded by (seed, its name).

    So a parameter depends neither on the order of construction nor on the number of ranks. Matrices are normal
    with deviation 0.02; those that write into the residual stream are smaller by sqrt(2 · layers), so that the
    stream's variance does not grow with depth (GPT-2). Norms start at one. A scalar head starts at zero: rewards
    and values start at 0 and Bradley-Terry at ln 2.
    """
    num_layers = sum(isinstance(module, Layer) for module in model.modules())
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        elif name == "score.weight":
            parameter.zero_()
        else:
            writes_to_residual = name.endswith(("attention.output.weight", "ffn.down.weight"))
            std = INITIAL_STD / math.sqrt(2 * num_layers) if writes_to_residual else INITIAL_STD
            # Drawn on CPU: a device's own generator would give other numbers.
            draw = torch.randn(parameter.shape, generator=_named_generator(seed, name))
            parameter.copy_(draw * std)


def _named_generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
