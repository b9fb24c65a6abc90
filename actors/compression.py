"""Compares a compressed (int8) model with the original, and checks that vLLM reads the compressed folder correctly.

The check compares vLLM's logprobs of given tokens with the logprobs of Raymill's PyTorch model, which simulates int8.

Shape legend: N is the number of tokens with a logprob, over all sequences together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from actors.evaluation_results import NATS_PER_BIT
from model.metrics import Interval, bootstrap_interval

MAX_ROUNDING_RATIO, MAX_SATURATION_RATIO = 4.0, 8.0
"""Largest accepted ratio of two mean absolute differences from Raymill's logprobs of the compressed model, on hardware
that adds int8 products exactly, and on processors that do not. The numerator is the difference of vLLM's logprobs. The
denominator is what rounding alone does to this model: the difference of Raymill's own logprobs if each activation is
rounded to one of its two neighboring int8 values at random.

A correct kernel only rounds some activations to another neighbor, because it adds in another order, so its ratio is
below 1. Processors without int8 dot products (AVX2) add pairs of products in 16 bits, and the sums can saturate. The
ratio is then 0.7 for SmolLM2-135M-Instruct, and 4.7 for random weights. Scales that belong to other rows have 35 for
SmolLM2 and 18 for random weights; if only those of one projection of each layer are wrong, random weights have 6."""
_MIN_DIVISOR = 1e-12
"""Smaller divisors are replaced by this value, which avoids a division by 0."""
MAX_UNEXPLAINED_VARIANCE = 0.25
"""Largest accepted mean square of the difference between vLLM's and Raymill's logprobs of the compressed model, divided
by the variance of Raymill's logprobs. Rounding at random has 0.03 for SmolLM2-135M-Instruct, and scales that belong to
other rows have 21. This limit is for models that are so sensitive to rounding that the ratio above stays small even if
vLLM misreads the folder."""


class EngineCheck(NamedTuple):
    """Mean absolute differences from Raymill's logprobs of the compressed model, in nats."""

    difference: float
    """That of vLLM's logprobs."""
    rounding: float
    """That of Raymill's logprobs with activations that are rounded at random."""


@dataclass(frozen=True, kw_only=True)
class CompressSummary:
    """The summary of a compression: sizes and likelihoods of both models, and the result of the check with vLLM."""

    original_bytes: int
    compressed_bytes: int
    num_quantized: int
    """Number of single weights, not tensors, that were rounded to int8."""
    num_kept: int
    """Number of single weights, not tensors, that stayed floating point."""
    bits_per_byte_original: Interval
    """Bits per byte of the original model on held-out text."""
    bits_per_byte_compressed: Interval
    bits_per_byte_change: Interval
    """Bits per byte of the compressed model minus those of the original, paired by document."""
    engine_logprob_difference: float
    """Mean absolute difference between vLLM's and Raymill's logprobs of the compressed model, in nats."""
    rounding_logprob_difference: float
    """What rounding alone does to this model: the mean absolute difference of Raymill's logprobs if each activation is
    rounded to one of its two neighboring int8 values at random, in nats."""

    def by_key(self) -> dict[str, float]:
        """Return the fields by metric key, such as `compress/num_kept`. An interval is replaced by its estimate."""
        values = {name: value.value if isinstance(value, Interval) else value for name, value in vars(self).items()}
        return {f"compress/{name}": float(value) for name, value in values.items()}


def check_engine(
    engine: Sequence[np.ndarray],
    compressed: Sequence[np.ndarray],
    perturbed: Sequence[np.ndarray],
    *,
    adds_exactly: bool,
) -> EngineCheck:
    """Return how much vLLM's logprobs of the compressed model differ from Raymill's, and how much rounding changes.

    Each argument has one array of logprobs for each of the same sequences. All are those of the compressed model.
    `engine` is computed by vLLM, `compressed` by Raymill, and `perturbed` by Raymill with activations that are rounded
    at random. `adds_exactly` is whether the hardware of vLLM adds int8 products exactly. Raises RuntimeError when the
    difference is so large that vLLM must have misread the compressed folder.
    """
    engine_N, compressed_N, perturbed_N = (np.concatenate(logprobs) for logprobs in (engine, compressed, perturbed))
    difference = float(np.abs(engine_N - compressed_N).mean())
    rounding = float(np.abs(perturbed_N - compressed_N).mean())
    ratio = difference / max(rounding, _MIN_DIVISOR)
    unexplained = float(np.square(engine_N - compressed_N).mean() / max(float(compressed_N.var()), _MIN_DIVISOR))
    max_ratio = MAX_ROUNDING_RATIO if adds_exactly else MAX_SATURATION_RATIO
    # Written with `not`, so that NaN is rejected too.
    if not (ratio <= max_ratio and unexplained <= MAX_UNEXPLAINED_VARIANCE):
        raise RuntimeError(
            "compress: vLLM misreads the compressed folder. On average, its logprobs differ by "
            f"{difference:.3f} nats from those of Raymill's model. That is {ratio:.1f} times what rounding alone does "
            f"to this model (at most {max_ratio:.0f} is accepted), and {unexplained:.1%} of the variance is "
            f"unexplained (at most {MAX_UNEXPLAINED_VARIANCE:.0%} is accepted). Check that this version of vLLM "
            "supports the format"
        )
    return EngineCheck(difference, rounding)


def bits_per_byte(nats: np.ndarray, num_bytes: np.ndarray) -> Interval:
    """Return the bits per byte of a text with their confidence interval. The bootstrap resamples documents.

    `nats` has the negative log-likelihood of each document. For the bits per byte by which compression changes a model,
    `nats` has the change of each document's negative log-likelihood. `num_bytes` has the size of each document.
    """
    return bootstrap_interval(nats / NATS_PER_BIT, num_bytes)
