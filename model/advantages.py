"""From rewards to advantages: the estimators of GRPO, RLOO, PPO and REINFORCE++.

`model.algorithms` pairs each estimator with a policy loss.

Shape legend: N sampled sequences, T tokens of a row. Position t belongs to the choice of target t (model.batch);
mask_NT is true at completion tokens, which are contiguous in a row; everything is 0 where the mask is false.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from model.learning import LearningConfig

EPSILON = 1e-6
"""Added to a standard deviation that divides, so that equal rewards give advantage zero."""


class AdvantageInputs(NamedTuple):
    """What an estimator knows of N sampled sequences; float32 unless stated otherwise."""

    rewards_N: Tensor
    """Reward of each whole sequence."""
    group_ids_N: Tensor
    """int64, equal for samples of the same prompt."""
    mask_NT: Tensor
    """bool, completion tokens."""
    reference_log_ratio_NT: Tensor
    """log policy - log reference of each sampled token, before the update; 0 without a reference."""
    values_NT: Tensor | None = None
    """The critic's value before each token; None without a critic."""


class Advantages(NamedTuple):
    """Advantage of each completion token, and for the critic the return it should have predicted."""

    advantages_NT: Tensor
    returns_NT: Tensor | None = None


Estimator = Callable[[AdvantageInputs, LearningConfig], Advantages]
"""(scores of one generation step, learning settings) -> advantages."""


def grpo(scores: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """(reward - mean) / std inside each group, the same for all tokens (DeepSeekMath, arXiv 2402.03300, §4.1.2).

    The deviation is the sample's (n - 1), as in TRL.
    """
    mean_N, std_N, _ = group_statistics(scores.rewards_N, scores.group_ids_N)
    return Advantages(broadcast_to_tokens((scores.rewards_N.double() - mean_N) / (std_N + EPSILON), scores.mask_NT))


def rloo(scores: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """Reward minus the mean reward of the *other* samples of its group (arXiv 2402.14740, §3.2).

    The reward includes the KL penalty summed over the sequence. Raises ValueError for a group of one.
    """
    rewards_N = scores.rewards_N - learning.kl_coefficient * (scores.reference_log_ratio_NT * scores.mask_NT).sum(1)
    mean_N, _, count_N = group_statistics(rewards_N, scores.group_ids_N)
    if (count_N < 2).any():
        raise ValueError("rloo needs at least 2 samples of each prompt: raise the group size")
    # r - (n·mean - r)/(n - 1) = n/(n - 1)·(r - mean)
    return Advantages(broadcast_to_tokens((rewards_N.double() - mean_N) * count_N / (count_N - 1), scores.mask_NT))


def ppo(scores: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """Generalized advantage estimation (arXiv 1506.02438, eq. 16), whitened over the batch's completion tokens.

    Each token's reward is the KL penalty, and the last one's also the sequence's reward (arXiv 2203.02155). The
    returns for the critic are the unwhitened advantages plus the values.
    """
    if scores.values_NT is None:
        raise ValueError("ppo needs the critic's values")
    rewards_NT = token_rewards(scores, learning.kl_coefficient)
    raw_NT = generalized_advantages(
        rewards_NT, scores.values_NT, scores.mask_NT, gamma=learning.gamma, gae_lambda=learning.gae_lambda
    )
    returns_NT = torch.where(scores.mask_NT, raw_NT + scores.values_NT, 0.0)
    return Advantages(whiten(raw_NT, scores.mask_NT), returns_NT)


def reinforce_plus_plus(scores: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """Reward to go, the KL penalty in it, whitened over the batch's completion tokens (arXiv 2501.03262)."""
    rewards_NT = token_rewards(scores, learning.kl_coefficient)
    to_go_NT = rewards_NT.flip(1).cumsum(1).flip(1)
    return Advantages(whiten(to_go_NT, scores.mask_NT))


def token_rewards(scores: AdvantageInputs, kl_coefficient: float) -> Tensor:
    """Reward [N, T] of each completion token: -kl_coefficient · log_ratio, and the sequence's reward at the last."""
    rewards_NT = torch.where(scores.mask_NT, -kl_coefficient * scores.reference_log_ratio_NT, 0.0)
    return rewards_NT + last_token(scores.mask_NT) * scores.rewards_N[:, None]


def generalized_advantages(
    rewards_NT: Tensor, values_NT: Tensor, mask_NT: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """A_t = delta_t + gamma·lambda·A_(t+1), delta_t = r_t + gamma·V_(t+1) - V_t, within each row's completion [N, T].

    The state after the last completion token is terminal: its value is 0.
    """
    advantages_NT = torch.zeros_like(rewards_NT)
    following_N = torch.zeros_like(rewards_NT[:, 0])
    next_value_N = torch.zeros_like(following_N)
    for t in reversed(range(rewards_NT.shape[1])):
        delta_N = rewards_NT[:, t] + gamma * next_value_N - values_NT[:, t]
        following_N = torch.where(mask_NT[:, t], delta_N + gamma * gae_lambda * following_N, 0.0)
        next_value_N = torch.where(mask_NT[:, t], values_NT[:, t], 0.0)
        advantages_NT[:, t] = following_N
    return advantages_NT


def whiten(x_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """x with mean 0 and deviation 1 over the masked tokens of the whole batch, 0 elsewhere."""
    chosen = x_NT[mask_NT].double()  # see group_statistics
    std = chosen.std(correction=0)
    return torch.where(mask_NT, (x_NT.double() - chosen.mean()) / (std + EPSILON), 0.0).float()


def last_token(mask_NT: Tensor) -> Tensor:
    """Bool [N, T], true at the last completion token of each row."""
    after_NT = torch.zeros_like(mask_NT)
    after_NT[:, :-1] = mask_NT[:, 1:]
    return mask_NT & ~after_NT


def broadcast_to_tokens(advantages_N: Tensor, mask_NT: Tensor) -> Tensor:
    """Each sequence's advantage at all of its completion tokens [N, T], float32, 0 elsewhere."""
    return torch.where(mask_NT, advantages_N.float()[:, None], 0.0)


def group_statistics(rewards_N: Tensor, group_ids_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sample deviation (0 for a group of one) and count of each sample's group, all [N] and float64."""
    # In float64 the mean of equal float32 rewards is exact. In float32 it is off by a rounding and so is the deviation,
    # and their ratio would make advantages of order one out of nothing.
    rewards_N = rewards_N.double()
    _, group_N = group_ids_N.unique(return_inverse=True)
    count_G = torch.bincount(group_N).double()
    mean_G = torch.zeros_like(count_G).index_add_(0, group_N, rewards_N) / count_G
    deviation_N = rewards_N - mean_G[group_N]
    variance_G = torch.zeros_like(count_G).index_add_(0, group_N, deviation_N.square()) / (count_G - 1).clamp(min=1)
    return mean_G[group_N], variance_G.sqrt()[group_N], count_G[group_N]
