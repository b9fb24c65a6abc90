"""The advantage estimators of GRPO, RLOO, PPO and REINFORCE++.

An estimator computes the advantage of each completion token from the rewards of one RLHF step. `model.algorithms`
combines each estimator with a policy loss. A group is the completions of one prompt in an RLHF step.

Suffixes of tensor names give their dimensions: N completions, T positions of a row, G groups. Each row is a prompt and
its completion. The entry at position t of any tensor belongs to target t, the token that follows input t
(`model.batch`). mask_NT is true where the target is a completion token. These positions are contiguous in a row, and at
all other positions the results are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from model.kl import bounded_log_ratio
from model.learning import LearningConfig

# Only the type checker imports PyTorch here, for the reason given in `model.algorithms`.
if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-6
"""Added to a standard deviation before dividing by it, so that equal rewards give the advantage 0."""


class AdvantageInputs(NamedTuple):
    """The inputs of an advantage estimator for N completions. The tensors are float32 unless stated otherwise."""

    rewards_N: Tensor
    """The reward of each completion."""
    group_ids_N: Tensor
    """int64. Completions of the same prompt have equal ids."""
    mask_NT: Tensor
    """bool. True at completion tokens."""
    reference_log_ratio_NT: Tensor
    """For each completion token, its logprob under the policy before the update, minus its logprob under the reference.
    All entries are 0 without a reference."""
    values_NT: Tensor | None = None
    """The critic's value of the state before each target. None without a critic."""


class Advantages(NamedTuple):
    """The result of an advantage estimator."""

    advantages_NT: Tensor
    """The advantage of each completion token."""
    returns_NT: Tensor | None = None
    """The value that the critic is trained to predict for each completion token. None without a critic."""


Estimator = Callable[[AdvantageInputs, LearningConfig], Advantages]
"""A function that estimates the advantages of all completions of one RLHF step."""


def grpo(inputs: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """Return (reward - group mean) / group std as the advantage of all tokens of a completion.

    This is the estimator of DeepSeekMath (arXiv 2402.03300, §4.1.2). The std has n - 1 in its denominator, as in TRL.
    """
    mean_N, std_N, _ = group_statistics(inputs.rewards_N, inputs.group_ids_N)
    return Advantages(broadcast_to_tokens((inputs.rewards_N.double() - mean_N) / (std_N + EPSILON), inputs.mask_NT))


def rloo(inputs: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """Return each reward minus the mean reward of the other completions in the group (arXiv 2402.14740, §3.2).

    This is the advantage of all tokens of the completion. The reward includes the KL penalty of `token_rewards`, summed
    over these tokens. Raises ValueError for a group with a single completion.
    """
    rewards_N = token_rewards(inputs, learning.kl_coefficient).sum(1)
    mean_N, _, group_size_N = group_statistics(rewards_N, inputs.group_ids_N)
    if (group_size_N < 2).any():
        raise ValueError("rloo needs at least 2 samples of each prompt: raise the group size")
    # The mean of the other rewards is (n·mean - r)/(n - 1), and r minus this mean is n/(n - 1)·(r - mean).
    return Advantages(
        broadcast_to_tokens((rewards_N.double() - mean_N) * group_size_N / (group_size_N - 1), inputs.mask_NT)
    )


def ppo(inputs: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """Return advantages by generalized advantage estimation (arXiv 1506.02438, eq. 16), and returns for the critic.

    The token rewards are those of `token_rewards` (arXiv 2203.02155). The advantages are whitened over all completion
    tokens of the RLHF step. The returns are the advantages before whitening, plus the values.
    """
    if inputs.values_NT is None:
        raise ValueError("ppo needs the critic's values: AdvantageInputs.values_NT is None")
    rewards_NT = token_rewards(inputs, learning.kl_coefficient)
    unwhitened_NT = generalized_advantages(
        rewards_NT, inputs.values_NT, inputs.mask_NT, gamma=learning.gamma, gae_lambda=learning.gae_lambda
    )
    returns_NT = (unwhitened_NT + inputs.values_NT).where(inputs.mask_NT, 0.0)
    return Advantages(whiten(unwhitened_NT, inputs.mask_NT), returns_NT)


def reinforce_plus_plus(inputs: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """Return the reward-to-go of each token, whitened over the RLHF step's completion tokens (arXiv 2501.03262).

    The reward-to-go is the sum of the token rewards from this token to the end of the completion. Token rewards include
    the KL penalty (`token_rewards`).
    """
    rewards_NT = token_rewards(inputs, learning.kl_coefficient)
    rewards_to_go_NT = rewards_NT.flip(1).cumsum(1).flip(1)
    return Advantages(whiten(rewards_to_go_NT, inputs.mask_NT))


def token_rewards(inputs: AdvantageInputs, kl_coefficient: float) -> Tensor:
    """Return the reward [N, T] of each completion token.

    The reward of a token is the KL penalty, -kl_coefficient · k1, where k1 is the bounded log ratio (`model.kl`). At
    the last token of a completion the reward of the completion is added.
    """
    rewards_NT = (-kl_coefficient * bounded_log_ratio(inputs.reference_log_ratio_NT)).where(inputs.mask_NT, 0.0)
    return rewards_NT + last_token(inputs.mask_NT) * inputs.rewards_N[:, None]


def generalized_advantages(
    rewards_NT: Tensor, values_NT: Tensor, mask_NT: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """Return the advantages [N, T] of generalized advantage estimation (`ppo`).

    They are A_t = delta_t + gamma · lambda · A_(t+1), with delta_t = r_t + gamma · V_(t+1) - V_t. The state after the
    last completion token is terminal, so its value is 0.
    """
    advantages_NT = rewards_NT.new_zeros(rewards_NT.shape)
    next_advantage_N = next_value_N = rewards_NT.new_zeros(len(rewards_NT))
    for t in reversed(range(rewards_NT.shape[1])):
        delta_N = rewards_NT[:, t] + gamma * next_value_N - values_NT[:, t]
        next_advantage_N = (delta_N + gamma * gae_lambda * next_advantage_N).where(mask_NT[:, t], 0.0)
        next_value_N = values_NT[:, t].where(mask_NT[:, t], 0.0)
        advantages_NT[:, t] = next_advantage_N
    return advantages_NT


def whiten(x_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Shift and scale x to mean 0 and std 1 over the tokens where the mask is true. The result is 0 elsewhere."""
    completion_values = x_NT[mask_NT].double()  # float64 for the reason given in group_statistics
    std = completion_values.std(correction=0)
    return ((x_NT.double() - completion_values.mean()) / (std + EPSILON)).where(mask_NT, 0.0).float()


def last_token(mask_NT: Tensor) -> Tensor:
    """Return a bool tensor [N, T] that is true at the last completion token of each row."""
    next_mask_NT = mask_NT.new_zeros(mask_NT.shape)
    next_mask_NT[:, :-1] = mask_NT[:, 1:]
    return mask_NT & ~next_mask_NT


def broadcast_to_tokens(advantages_N: Tensor, mask_NT: Tensor) -> Tensor:
    """Return [N, T] in float32: a completion's advantage at each of its tokens, and 0 at all other positions."""
    return advantages_N.float()[:, None].where(mask_NT, 0.0)


def group_statistics(rewards_N: Tensor, group_ids_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each completion the mean, std and number of the rewards in its group, as float64 [N].

    The std has n - 1 in its denominator. It is 0 for a group with a single completion.
    """
    # float64, because the mean of equal float32 rewards is exact only in float64. In float32 a rounding error would
    # remain in (reward - mean) and in the std, and dividing the two would give advantages near 1 instead of 0.
    rewards_N = rewards_N.double()
    _, group_N = group_ids_N.unique(return_inverse=True)
    group_size_G = group_N.bincount().double()
    mean_G = group_size_G.new_zeros(len(group_size_G)).index_add(0, group_N, rewards_N) / group_size_G
    centered_N = rewards_N - mean_G[group_N]
    squares_G = group_size_G.new_zeros(len(group_size_G)).index_add(0, group_N, centered_N.square())
    variance_G = squares_G / (group_size_G - 1).clamp(min=1)
    return mean_G[group_N], variance_G.sqrt()[group_N], group_size_G[group_N]
