"""How a compressed model compares with the original, and whether vLLM reads its folder correctly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.evaluation_results import NATS_PER_BIT
from model.metrics import Interval, bootstrap_interval

SMALL_DIFFERENCE = 0.05
"""A mean difference of vLLM's logprobs and ours on the compressed folder, in nats, that is always accepted."""
MAX_DIFFERENCE_RATIO = 15.0
"""Largest mean difference over what rounding to int8 itself has changed. Where sums are exact, another order of them
moves a few activations to the next step (ratio 1.5); a processor without int8 dot products (AVX2) adds pairs in 16
bits, which saturate (7 to 11 on random weights). Wrongly read scales give 20 and more."""
_SMALLEST = 1e-12
"""Replaces a divisor of 0."""
MAX_UNEXPLAINED = 0.25
"""Largest share of the variance of our logprobs that vLLM's leave unexplained: 0.03 with saturation, 0.3 to 1.7 for
rows or scales in another order. It decides where rounding itself changes much."""


@dataclass(frozen=True, kw_only=True)
class CompressSummary:
    """The sizes of both models, their likelihoods, and how well vLLM agrees with us."""

    original_bytes: int
    compressed_bytes: int
    num_quantized: int
    """Weights rounded to int8."""
    num_kept: int
    """Weights that stay floating point."""
    bits_per_byte_original: Interval
    bits_per_byte_compressed: Interval
    bits_per_byte_change: Interval
    engine_logprob_difference: float
    """Mean difference of vLLM's logprobs and ours on the compressed model, in nats."""

    def by_key(self) -> dict[str, float]:
        """By metric key."""
        values = {name: value.value if isinstance(value, Interval) else value for name, value in vars(self).items()}
        return {f"compress/{name}": float(value) for name, value in values.items()}


def check_engine(engine: Sequence[np.ndarray], ours: Sequence[np.ndarray], original: Sequence[np.ndarray]) -> float:
    """Mean difference, in nats, of vLLM's logprobs of the compressed folder and ours.

    `original` are our logprobs of the model before it was compressed.
    Raises RuntimeError when the difference is so large that vLLM must have misread the folder.
    """
    engine_N, ours_N, original_N = (np.concatenate(logprobs) for logprobs in (engine, ours, original))
    difference = float(np.abs(engine_N - ours_N).mean())
    if difference <= SMALL_DIFFERENCE:
        return difference
    ratio = difference / max(float(np.abs(ours_N - original_N).mean()), _SMALLEST)
    unexplained = float(np.square(engine_N - ours_N).mean() / max(float(ours_N.var()), _SMALLEST))
    if not (ratio <= MAX_DIFFERENCE_RATIO and unexplained <= MAX_UNEXPLAINED):  # NaN is refused too
        raise RuntimeError(
            f"compress: vLLM's logprobs of the compressed model are {difference:.3f} nats from ours on average, "
            f"{ratio:.0f} times what rounding has changed (at most {MAX_DIFFERENCE_RATIO:.0f}), and leave "
            f"{unexplained:.0%} of their variance unexplained (at most {MAX_UNEXPLAINED:.0%}): vLLM misreads the folder"
        )
    return difference


def bits_per_byte(nats: np.ndarray, num_bytes: np.ndarray) -> Interval:
    """Bits by byte of text, resampled by document."""
    return bootstrap_interval(nats / NATS_PER_BIT, num_bytes)
