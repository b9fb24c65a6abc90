"""The configuration of a decoder, and its number of parameters and floating point operations. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The architecture of a decoder: its sizes and all other settings that its outputs depend on."""

    vocab_size: int
    """Number of tokens in the vocabulary, which is the number of rows of the embedding."""
    width: int
    """Hidden size: number of channels of the residual stream."""
    num_layers: int
    """Number of transformer blocks."""
    num_heads: int
    """Number of query heads. The head dim is width / num_heads."""
    num_kv_heads: int
    """Number of key-value heads. num_heads / num_kv_heads query heads share one key-value head."""
    ffn_width: int
    """Number of hidden channels of the feed-forward network."""
    max_length: int
    """Length in tokens of the longest sequence that the model is trained or served on."""
    rope_theta: float = 10_000.0
    """Base of the frequencies of the rotary position embedding."""
    norm_eps: float = 1e-5
    """Epsilon of the RMS norms."""
    tie_embeddings: bool = True
    """Whether the lm_head uses the embedding's weight."""

    @property
    def head_dim(self) -> int:
        """Number of channels of one head."""
        return self.width // self.num_heads

    def check(self) -> None:
        """Raises ValueError when a setting is out of range or two settings do not fit together."""
        for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "ffn_width", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} must be a multiple of num_heads={self.num_heads}: change one of the two"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"width/num_heads={self.head_dim} must be even, because the rotary embedding rotates pairs of "
                f"channels: change num_heads or width={self.width}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}: "
                f"every key-value head is shared by the same number of query heads"
            )
        if self.rope_theta <= 0 or self.norm_eps <= 0:
            raise ValueError(f"rope_theta={self.rope_theta} and norm_eps={self.norm_eps} must be above 0")


def num_parameters(config: TransformerConfig) -> int:
    """Return the number of parameters of a `Transformer`. A weight that embedding and lm_head share counts once."""
    embeddings = config.vocab_size * config.width * (1 if config.tie_embeddings else 2)
    norms = config.width * (2 * config.num_layers + 1)
    return embeddings + norms + config.num_layers * _layer_matmul_parameters(config)


def flop_per_token(config: TransformerConfig, length: int) -> float:
    """Return the floating point operations of forward and backward for one token of a sequence of `length` tokens.

    The count follows PaLM (arXiv 2204.02311, appendix B), so that the MFU is comparable with that of other systems. The
    count is 6 for each parameter of a matmul, plus 12 · num_layers · width · length for attention. The lm_head is a
    matmul and the embedding lookup is not. Attention is not halved for causality, and recomputed activations do not
    count.
    """
    matmul_parameters = config.num_layers * _layer_matmul_parameters(config) + config.vocab_size * config.width
    return 6.0 * matmul_parameters + 12.0 * config.num_layers * config.width * length


def _layer_matmul_parameters(config: TransformerConfig) -> int:
    attention = 2 * config.width * config.head_dim * (config.num_heads + config.num_kv_heads)
    return attention + 3 * config.width * config.ffn_width
