"""Compares a compressed (int8) model with the original, and checks that vLLM reads the compressed folder correctly.

The check compares vLLM's logprobs of given tokens with the logprobs of Raymill's PyTorch model, which simulates int8.

Shape legend: N is the number of tokens with a logprob, over all sequences together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.evaluation_results import NATS_PER_BIT
from model.metrics import Interval, bootstrap_interval

SMALL_DIFFERENCE = 0.05
"""vLLM's logprobs are always accepted if their mean absolute difference from Raymill's, in nats, is at most this."""
MAX_DIFFERENCE_RATIO = 15.0
"""Largest accepted ratio of two mean absolute differences. The numerator compares vLLM's logprobs of the compressed
model with Raymill's logprobs of the same model. The denominator compares Raymill's logprobs of the compressed model
with Raymill's logprobs of the original model.

Where vLLM adds the int8 products exactly, the measured ratio is 1.5. It is not 0, because vLLM's other order of float
operations rounds some activations to the next int8 value. On processors without int8 dot products (AVX2), vLLM adds
pairs of products in 16 bits, and the sums can saturate. The ratio is then 7 to 11 for random weights. If vLLM misreads
the scales, the ratio is 20 or more."""
_MIN_DIVISOR = 1e-12
"""Smaller divisors are replaced by this value, which avoids a division by 0."""
MAX_UNEXPLAINED_VARIANCE = 0.25
"""Largest accepted mean square of the difference between vLLM's and Raymill's logprobs of the compressed model, divided
by the variance of Raymill's logprobs. Measured values are 0.03 with the saturation described above, and 0.3 to 1.7 if
vLLM mixes up the order of rows or scales. This limit is for models that compression changes a lot. The denominator of
the ratio above is then large, so the ratio stays small even if vLLM misreads the folder."""


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

    def by_key(self) -> dict[str, float]:
        """Return the fields by metric key, such as `compress/num_kept`. An interval is replaced by its estimate."""
        values = {name: value.value if isinstance(value, Interval) else value for name, value in vars(self).items()}
        return {f"compress/{name}": float(value) for name, value in values.items()}


def check_engine(
    engine: Sequence[np.ndarray], compressed: Sequence[np.ndarray], original: Sequence[np.ndarray]
) -> float:
    """Return the mean absolute difference between vLLM's and Raymill's logprobs of the compressed model, in nats.

    Each argument has one array of logprobs for each of the same sequences. `engine` is computed by vLLM with the
    compressed model, `compressed` by Raymill with the compressed model, and `original` by Raymill with the original
    model. Raises RuntimeError when the difference is so large that vLLM must have misread the compressed folder.
    """
    engine_N, compressed_N, original_N = (np.concatenate(logprobs) for logprobs in (engine, compressed, original))
    difference = float(np.abs(engine_N - compressed_N).mean())
    if difference <= SMALL_DIFFERENCE:
        return difference
    ratio = difference / max(float(np.abs(compressed_N - original_N).mean()), _MIN_DIVISOR)
    unexplained = float(np.square(engine_N - compressed_N).mean() / max(float(compressed_N.var()), _MIN_DIVISOR))
    # Written with `not`, so that NaN is rejected too.
    if not (ratio <= MAX_DIFFERENCE_RATIO and unexplained <= MAX_UNEXPLAINED_VARIANCE):
        raise RuntimeError(
            "compress: vLLM misreads the compressed folder. On average, its logprobs differ by "
            f"{difference:.3f} nats from those of Raymill's model. That is {ratio:.1f} times the change by compression "
            f"(at most {MAX_DIFFERENCE_RATIO:.0f} is accepted), and {unexplained:.1%} of the variance is unexplained "
            f"(at most {MAX_UNEXPLAINED_VARIANCE:.0%} is accepted). Check that this version of vLLM supports the format"
        )
    return difference


def bits_per_byte(nats: np.ndarray, num_bytes: np.ndarray) -> Interval:
    """Return the bits per byte of a text with their confidence interval. The bootstrap resamples documents.

    `nats` has the negative log-likelihood of each document. For the bits per byte by which compression changes a model,
    `nats` has the change of each document's negative log-likelihood. `num_bytes` has the size of each document.
    """
    return bootstrap_interval(nats / NATS_PER_BIT, num_bytes)
