"""Advantage estimators, compared with numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from model.advantages import (
    AdvantageInputs,
    Estimator,
    generalized_advantages,
    grpo,
    last_token,
    ppo,
    reinforce_plus_plus,
    rloo,
    token_rewards,
    whiten,
)
from model.learning import LearningConfig

DEFAULTS = LearningConfig(kl_coefficient=0.0)

# Two prompts with two completions each, in mixed order. The completions have 2, 3, 1 and 2 tokens.
MASK = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0]]).bool()
INPUTS = AdvantageInputs(
    rewards_N=torch.tensor([1.0, 5.0, 3.0, 5.0]),
    group_ids_N=torch.tensor([9, 4, 9, 4]),
    mask_NT=MASK,
    reference_log_ratio_NT=torch.tensor(
        [[9.0, 1.0, 2.0, 9.0], [0.0, 0.0, 0.0, 9.0], [9.0, 9.0, 0.0, 9.0], [0.5, 0.5, 9.0, 9.0]]
    ),
)


def at_tokens(*by_row: float) -> torch.Tensor:
    """Return [4, 4]: the given value of each row at its completion tokens, and 0 elsewhere."""
    return MASK * torch.tensor(by_row)[:, None]


def test_grpo_normalizes_inside_each_group() -> None:
    advantages, returns = grpo(INPUTS, DEFAULTS)
    # Group 9: mean 2, std sqrt(2); group 4: equal rewards carry no signal.
    a = 1 / math.sqrt(2)
    torch.testing.assert_close(advantages, at_tokens(-a, 0.0, a, 0.0), atol=1e-5, rtol=0)
    assert returns is None


def test_grpo_of_a_single_sample_is_zero() -> None:
    single = AdvantageInputs(torch.tensor([3.0]), torch.tensor([0]), MASK[:1], torch.zeros(1, 4))
    assert not grpo(single, DEFAULTS).advantages_NT.any()


def test_rloo_subtracts_the_mean_of_the_other_rewards_in_the_group() -> None:
    advantages, _ = rloo(INPUTS, LearningConfig(kl_coefficient=0.1))
    # KL sums 3, 0, 0, 1 at 0.1: rewards 0.7, 5, 3, 4.9.
    torch.testing.assert_close(advantages, at_tokens(0.7 - 3, 5 - 4.9, 3 - 0.7, 4.9 - 5), atol=1e-5, rtol=0)


def test_rloo_of_three_samples() -> None:
    inputs = AdvantageInputs(
        torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3).long(), torch.ones(3, 1).bool(), torch.zeros(3, 1)
    )
    advantages, _ = rloo(inputs, DEFAULTS)
    torch.testing.assert_close(advantages[:, 0], torch.tensor([1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]))


def test_rloo_of_a_single_sample_is_rejected() -> None:
    single = AdvantageInputs(torch.tensor([3.0]), torch.tensor([0]), MASK[:1], torch.zeros(1, 4))
    with pytest.raises(ValueError, match="at least 2 samples"):
        rloo(single, DEFAULTS)


def test_token_rewards_are_the_kl_penalty_plus_the_reward_at_the_last_token() -> None:
    expected = [[0.0, -0.1, 0.8, 0.0], [0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 3.0, 0.0], [-0.05, 4.95, 0.0, 0.0]]
    torch.testing.assert_close(token_rewards(INPUTS, 0.1), torch.tensor(expected))


def test_last_token_is_the_end_of_each_completion() -> None:
    assert last_token(MASK).nonzero().tolist() == [[0, 2], [1, 2], [2, 2], [3, 1]]
    assert last_token(torch.ones(1, 3).bool()).tolist() == [[False, False, True]]


def test_generalized_advantages_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0, 0.0]])
    values = torch.tensor([[7.0, 0.5, 1.5, 7.0]])
    mask = torch.tensor([[False, True, True, False]])
    advantages = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    last = 2.0 - 1.5
    first = 1.0 + 0.9 * 1.5 - 0.5 + 0.9 * 0.8 * last
    torch.testing.assert_close(advantages, torch.tensor([[0.0, first, last, 0.0]]))


def test_ppo_with_lambda_one_has_the_reward_to_go_as_return() -> None:
    values = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    inputs = INPUTS._replace(values_NT=values)
    advantages, returns = ppo(inputs, LearningConfig(kl_coefficient=0.1, gae_lambda=1.0))
    to_go = torch.tensor([[0.0, 0.7, 0.8, 0.0], [5.0, 5.0, 5.0, 0.0], [0.0, 0.0, 3.0, 0.0], [4.9, 4.95, 0.0, 0.0]])
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, whiten(to_go - values, MASK), atol=1e-5, rtol=1e-5)


def test_ppo_without_values_is_rejected() -> None:
    with pytest.raises(ValueError, match="critic"):
        ppo(INPUTS, DEFAULTS)


def test_reinforce_plus_plus_whitens_over_the_batch() -> None:
    advantages, _ = reinforce_plus_plus(INPUTS, DEFAULTS)
    # Rewards to go, one a token: 1 1 | 5 5 5 | 3 | 5 5, mean 30/8, mean square 136/8.
    mean, std = 3.75, math.sqrt(17 - 3.75**2)
    expected = at_tokens(*((reward - mean) / std for reward in (1.0, 5.0, 3.0, 5.0)))
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0)


def test_whitened_advantages_have_mean_zero_and_std_one() -> None:
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    white = whiten(x, MASK)
    assert white[MASK].mean().abs() < 1e-6
    assert white[MASK].std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    assert not white[~MASK].any()


@pytest.mark.parametrize("estimate", [grpo, rloo, reinforce_plus_plus])
@pytest.mark.parametrize(("reward", "count"), [(12.7, 12), (100.3, 6), (1e6 + 0.1, 7)])
def test_equal_rewards_carry_no_signal_however_large(estimate: Estimator, reward: float, count: int) -> None:
    mask = torch.ones(count, 3).bool()
    inputs = AdvantageInputs(torch.full((count,), reward), torch.zeros(count).long(), mask, torch.zeros(count, 3))
    advantages, _ = estimate(inputs, DEFAULTS)
    assert advantages.dtype == torch.float32
    assert not advantages.any()
