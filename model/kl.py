"""Estimates of the KL divergence between policy and reference from sampled tokens, in the reward and in the loss.

Let d be the log ratio of a sampled token: its logprob under the policy minus its logprob under the reference. Schulman
(joschu.net/blog/kl-approx.html) names three estimates of KL(policy || reference):

    k1 = d        k2 = d² / 2        k3 = exp(-d) - 1 + d

Whether a penalty trains what its name says depends on where it stands (arXiv 2512.21852):

- In the reward, k1 is right: the policy gradient of its sum is the gradient of KL(policy || reference) over complete
  completions. PPO, RLOO and REINFORCE++ use it.
- In the loss, the estimate is differentiated. Over tokens that the policy sampled, the mean gradient of k1 is 0. The
  gradient of k2 is d · grad log policy, and its mean is the gradient of KL(policy || reference) at each position. The
  gradient of k3 is (1 - exp(-d)) · grad log policy, and its mean is the gradient of the other divergence,
  KL(reference || policy).

A token's slope is the factor before grad log policy. Without a bound, a token that the reference finds 10 nats more
likely than the policy has the slope -22,025 under k3, so that it alone would decide the update. The functions here
bound the slope.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from model.learning import KLLoss

# Only the type checker imports PyTorch here, for the reason given in `model.algorithms`.
if TYPE_CHECKING:
    from torch import Tensor

MAX_SLOPE = 10.0
"""Largest magnitude of a token's slope, and of its log ratio in the reward."""


def kl_penalty(log_ratio: Tensor, estimator: KLLoss) -> Tensor:
    """Return the estimate k2 or k3 of each token, whose gradient has a slope of at most `MAX_SLOPE`.

    Where the slope would be larger, and for log ratios above `MAX_SLOPE`, the estimate is continued by its tangent. So
    both are finite for any log ratio.
    """
    bounded = log_ratio.clamp(_lowest_log_ratio(estimator), MAX_SLOPE)
    if estimator == "k2":
        value, slope = 0.5 * bounded.square(), bounded
    else:
        value, slope = (-bounded).exp() - 1.0 + bounded, 1.0 - (-bounded).exp()
    return value + slope.detach() * (log_ratio - bounded)


def is_bounded(log_ratio: Tensor, estimator: KLLoss) -> Tensor:
    """Return for each token whether `kl_penalty` continues its estimate by the tangent.

    Under k3 this is so for log ratios above `MAX_SLOPE` too, although the slope there is only just below 1.
    """
    return (log_ratio < _lowest_log_ratio(estimator)) | (log_ratio > MAX_SLOPE)


def bounded_log_ratio(log_ratio: Tensor) -> Tensor:
    """Return the estimate k1 of each token for a penalty in the reward: the log ratio, clipped to ±`MAX_SLOPE`."""
    return log_ratio.clamp(-MAX_SLOPE, MAX_SLOPE)


def _lowest_log_ratio(estimator: KLLoss) -> float:
    """Return the log ratio at which the slope is -`MAX_SLOPE`."""
    return -MAX_SLOPE if estimator == "k2" else -math.log1p(MAX_SLOPE)
