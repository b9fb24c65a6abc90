"""Perplexity, and estimates with bootstrap confidence intervals. `actors.text_metrics` has the metrics of texts.

The functions take arrays and run no model.

Suffixes of array names give their dimensions: N records, R bootstrap resamples, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MAX_SAMPLED_INDICES = 2_000_000
"""Maximum number of record indices that a bootstrap samples at once. They take 16 MB, however many resamples there are.
One resample is never split, so with more records than this number it takes more memory."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval [low, high] from a percentile bootstrap."""

    value: float
    """The estimate. It is computed from the records, not from the resamples."""
    low: float
    """Lower end of the confidence interval."""
    high: float
    """Upper end of the confidence interval."""
    level: float = 0.95
    """Confidence level: the share of resamples whose estimate is in [low, high]."""

    def excludes(self, number: float) -> bool:
        """Return whether `number` is outside of the confidence interval."""
        return number < self.low or number > self.high


def perplexity(nats: float, num_tokens: int) -> float:
    """Return exp(nats / num_tokens), where `nats` is the negative log-likelihood of all tokens.

    Perplexities are comparable only between models with the same tokenizer.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens}: perplexity needs at least one token")
    return math.exp(nats / num_tokens)


def bootstrap_interval(
    values_N: ArrayLike,
    weights_N: ArrayLike | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return sum(values) / sum(weights) with its confidence interval. Without weights this is the mean of the values.

    Weights are for a ratio of sums such as bits per byte, where values_N are the bits and weights_N the bytes of the N
    documents.

    If all values are equal, the interval has width 0 even for few records. A share near 0 or 1 that is estimated from
    few records is therefore less certain than its interval suggests.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    weights_N = np.ones_like(values_N) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    if values_N.ndim != 1 or values_N.shape != weights_N.shape:
        raise ValueError(
            f"values and weights must be one-dimensional and equally long, but their shapes are {values_N.shape} and "
            f"{weights_N.shape}"
        )
    if not len(values_N) or weights_N.sum() <= 0:
        raise ValueError("a bootstrap needs at least one record with a positive weight")
    columns_NC = np.stack([values_N, weights_N], axis=1)
    sums_RC = _resample_sums(columns_NC, num_resamples=num_resamples, seed=seed)
    sums_RC = sums_RC[sums_RC[:, 1] > 0]  # if all weights of a resample are 0, it has no ratio
    return _percentile_interval(values_N.sum() / weights_N.sum(), sums_RC[:, 0] / sums_RC[:, 1], level)


def paired_bootstrap(
    before_N: ArrayLike, after_N: ArrayLike, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of after - before over N records, with its confidence interval.

    before_N[i] and after_N[i] are the results of two systems on record i. The bootstrap resamples these pairs, so that
    the interval does not include the variance between easy and difficult records. The difference is significant at the
    significance level 1 - `level` if the interval excludes 0.
    """
    before_N, after_N = np.asarray(before_N, dtype=np.float64), np.asarray(after_N, dtype=np.float64)
    if before_N.shape != after_N.shape:
        raise ValueError(
            f"a paired bootstrap needs two results for every record, but the shapes of the results are "
            f"{before_N.shape} and {after_N.shape}"
        )
    return bootstrap_interval(after_N - before_N, level=level, num_resamples=num_resamples, seed=seed)


def bootstrap_statistic(
    columns_NC: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], float],
    value: float,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return `value` with the confidence interval of a statistic that depends only on sums over the N records.

    `statistic` computes it from the column sums [C] of a resample. `value` is the statistic of all records.
    """
    sums_RC = _resample_sums(columns_NC, num_resamples=num_resamples, seed=seed)
    return _percentile_interval(value, np.array([statistic(sums_C) for sums_C in sums_RC]), level)


def _resample_sums(columns_NC: NDArray[np.float64], *, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the column sums [R, C] of R resamples. A resample has N rows, sampled with replacement."""
    generator = np.random.default_rng(seed)
    num_records = len(columns_NC)
    resamples_per_chunk = max(1, _MAX_SAMPLED_INDICES // num_records)
    sums = []
    for start in range(0, num_resamples, resamples_per_chunk):
        indices = generator.integers(num_records, size=(min(resamples_per_chunk, num_resamples - start), num_records))
        sums.append(np.stack([column[indices].sum(axis=1) for column in columns_NC.T], axis=1))
    return np.concatenate(sums)


def _percentile_interval(value: float, resampled_R: NDArray[np.float64], level: float) -> Interval:
    tail_share = (1.0 - level) / 2
    low, high = np.quantile(resampled_R, [tail_share, 1.0 - tail_share])
    return Interval(value=float(value), low=float(low), high=float(high), level=level)
