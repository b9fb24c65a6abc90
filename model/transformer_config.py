"""The sizes of a decoder, and what they amount to: parameters and floating point operations. Takes no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The sizes of a decoder, and everything else that determines its parameters and what it computes."""

    vocab_size: int
    """Rows of the embedding table."""
    width: int
    """Channels of the residual stream."""
    num_layers: int
    num_heads: int
    """Query heads; each has width / num_heads channels."""
    num_kv_heads: int
    """Key and value heads; each serves num_heads / num_kv_heads query heads."""
    ffn_width: int
    """Channels inside the gated feed-forward layer."""
    max_length: int
    """Longest sequence in tokens that the model is trained or served for."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    """The output head is the embedding table."""

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    def check(self) -> None:
        """Raises ValueError when the sizes do not fit together."""
        sizes = (self.vocab_size, self.width, self.num_layers, self.num_heads, self.num_kv_heads, self.ffn_width)
        names = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "ffn_width", "max_length")
        for name, size in zip(names, (*sizes, self.max_length), strict=True):
            if size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width} must be a multiple of num_heads={self.num_heads}: change either")
        if self.head_dim % 2:
            raise ValueError(
                f"width/num_heads={self.head_dim} must be even, as rotary embedding rotates pairs of channels: "
                f"choose another num_heads for width={self.width}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}: "
                f"each key-value head serves the same number of query heads"
            )
        if self.rope_theta <= 0 or self.norm_eps <= 0:
            raise ValueError(f"rope_theta={self.rope_theta} and norm_eps={self.norm_eps} must be positive")


def num_parameters(config: TransformerConfig) -> int:
    """Number of parameters of a `Transformer`; a tied table counts once."""
    tables = config.vocab_size * config.width * (1 if config.tie_embeddings else 2)
    norms = config.width * (2 * config.num_layers + 1)
    return tables + norms + config.num_layers * _layer_matmul_parameters(config)


def flop_per_token(config: TransformerConfig, length: int) -> float:
    """Floating point operations to train on one token of a sequence of `length`, forward and backward.

    The convention of PaLM (arXiv 2204.02311, appendix B), so that MFU compares with other systems: 6 for each
    parameter that multiplies, the head included and the embedding lookup not, and 12·layers·width·length for
    attention, without halving for causality. Recomputed activations do not count.
    """
    matmul_parameters = config.num_layers * _layer_matmul_parameters(config) + config.vocab_size * config.width
    return 6.0 * matmul_parameters + 12.0 * config.num_layers * config.width * length


def _layer_matmul_parameters(config: TransformerConfig) -> int:
    attention = 2 * config.width * config.head_dim * (config.num_heads + config.num_kv_heads)
    return attention + 3 * config.width * config.ffn_width
