"""The KL penalties against an enumerated policy: whose gradient they have, and how much one token decides."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.advantages import AdvantageInputs, Estimator, ppo, reinforce_plus_plus, rloo, token_rewards
from model.algorithms import ALGORITHMS
from model.batch import PolicyBatch, batch_from_sequences
from model.kl import MAX_SLOPE, bounded_log_ratio, is_bounded, kl_penalty
from model.learning import KLLoss, LearningConfig
from model.objectives import policy_loss

NUM_SAMPLES = 20_000
REFERENCE = torch.tensor([0.02, 0.08, 0.1, 0.2, 0.6])
POLICY = torch.tensor([0.43, 0.25, 0.15, 0.1, 0.07])
BEHAVIOR = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2])


class TablePolicy(nn.Module):
    """A policy over V tokens whose logits after the token 0 are its only parameters, so that it can be enumerated."""

    def __init__(self, probabilities_V: Tensor) -> None:
        super().__init__()
        self.table_V = nn.Parameter(probabilities_V.log())

    def forward(self, input_ids_BT: Tensor, positions_BT: Tensor, document_ids: None) -> Tensor:
        return self.table_V.expand(*input_ids_BT.shape, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def batch_of_every_token(sampled_from_V: Tensor, behavior_V: Tensor, reference_V: Tensor) -> PolicyBatch:
    """A batch whose rows have the token v in the proportion of sampled_from_V, with advantages of 0."""
    counts = (sampled_from_V * NUM_SAMPLES).round().long()
    tokens = torch.arange(len(counts)).repeat_interleave(counts).tolist()
    batch = batch_from_sequences([[0, token] for token in tokens], [[False, True]] * len(tokens), length=1, pad_id=0)
    behavior_logprobs, reference_logprobs = (p.log()[batch.targets] for p in (behavior_V, reference_V))
    return PolicyBatch(batch, behavior_logprobs, torch.zeros(batch.targets.shape), reference_logprobs)


def gradient_of_the_loss(policy_V: Tensor, behavior_V: Tensor, estimator: KLLoss) -> Tensor:
    model = TablePolicy(policy_V)
    batch = batch_of_every_token(behavior_V, behavior_V, REFERENCE)
    loss = policy_loss(model, batch, temperature=1.0, kl_coefficient=1.0, kl_loss=estimator)  # pyright: ignore[reportArgumentType]
    (gradient,) = torch.autograd.grad(loss.sum, [model.table_V])
    return gradient / NUM_SAMPLES


def exact_gradient(policy_V: Tensor, *, is_reverse: bool) -> Tensor:
    """The gradient by the logits of KL(policy || reference), or of KL(reference || policy), summed over all tokens."""
    logits_V = policy_V.log().requires_grad_()
    logprobs_V = logits_V.log_softmax(0)
    if is_reverse:
        divergence = (logprobs_V.exp() * (logprobs_V - REFERENCE.log())).sum()
    else:
        divergence = (REFERENCE * (REFERENCE.log() - logprobs_V)).sum()
    (gradient,) = torch.autograd.grad(divergence, [logits_V])
    return gradient


@pytest.mark.parametrize("behavior_V", [POLICY, BEHAVIOR], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_gradient_is_that_of_the_divergence_that_is_named(estimator: KLLoss, behavior_V: Tensor) -> None:
    gradient = gradient_of_the_loss(POLICY, behavior_V, estimator)
    torch.testing.assert_close(gradient, exact_gradient(POLICY, is_reverse=estimator == "k2"), atol=1e-4, rtol=1e-3)
    other = exact_gradient(POLICY, is_reverse=estimator != "k2")
    assert F.cosine_similarity(gradient, other, dim=0) < 0.9


@pytest.mark.parametrize("vocabulary", [3, 8, 40])
def test_k2_has_the_direction_of_the_reverse_divergence_for_random_policies(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    policy_V, reference_V = (torch.randn(vocabulary, generator=generator).mul(1.5).softmax(0) for _ in range(2))
    logits_V = policy_V.log().requires_grad_()
    logprobs_V = logits_V.log_softmax(0)
    log_ratio_V = logprobs_V - reference_V.log()
    (exact,) = torch.autograd.grad((logprobs_V.exp() * log_ratio_V).sum(), [logits_V], retain_graph=True)
    (sampled,) = torch.autograd.grad((policy_V * kl_penalty(log_ratio_V, "k2")).sum(), [logits_V])
    assert F.cosine_similarity(sampled, exact, dim=0) > 0.999


class Share(NamedTuple):
    of_gradient: float
    of_loss: float


def share_of_one_token(nats: float, estimator: KLLoss) -> Share:
    """What one of 1,000 tokens decides, which is `nats` from the reference. The others are up to 0.5 nats from it."""
    log_ratio = torch.linspace(-0.5, 0.5, 1000)
    log_ratio[0] = nats
    log_ratio.requires_grad_()
    penalty = kl_penalty(log_ratio, estimator)
    (slopes,) = torch.autograd.grad(penalty.sum(), [log_ratio])
    assert slopes.isfinite().all() and penalty.isfinite().all()
    return Share((slopes[0].abs() / slopes.abs().sum()).item(), (penalty[0] / penalty.sum()).item())


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_token_far_from_the_reference_has_a_small_share_of_the_gradient(estimator: KLLoss) -> None:
    for nats in (-1e30, -100.0, -10.0, 10.0, 100.0, 1e30):
        assert share_of_one_token(nats, estimator).of_gradient < 0.05
    assert share_of_one_token(-100.0, estimator).of_gradient == share_of_one_token(-10.0, estimator).of_gradient
    assert share_of_one_token(-10.0, estimator).of_loss < 0.7


def test_estimates_inside_the_bound_are_schulmans() -> None:
    for log_ratio in (-2.3, -0.4, 0.0, 1.7, 9.9):
        d = torch.tensor(log_ratio)
        assert kl_penalty(d, "k2").item() == pytest.approx(0.5 * log_ratio**2)
        assert kl_penalty(d, "k3").item() == pytest.approx(math.exp(-log_ratio) - 1 + log_ratio, abs=1e-6)
    assert not is_bounded(torch.tensor([-9.9, 9.9]), "k2").any()
    assert is_bounded(torch.tensor([-2.5, 10.1]), "k3").all() and is_bounded(torch.tensor([-10.1, 10.1]), "k2").all()


def test_beyond_the_bound_an_estimate_is_its_tangent() -> None:
    # k2 at 10 is 50 with slope 10; k3 at -log 11 is 10 - log 11 with slope -10.
    assert kl_penalty(torch.tensor(13.0), "k2").item() == pytest.approx(50 + 10 * 3)
    expected = 10 - math.log(11) + 10 * (100 - math.log(11))
    assert kl_penalty(torch.tensor(-100.0), "k3").item() == pytest.approx(expected)


def test_k3_is_unbiased_and_never_negative() -> None:
    by_token = kl_penalty(POLICY.log() - REFERENCE.log(), "k3")
    assert (by_token >= 0).all()
    torch.testing.assert_close((POLICY * by_token).sum(), F.kl_div(REFERENCE.log(), POLICY, reduction="sum"))


def test_bounded_tokens_are_counted_and_a_far_token_leaves_the_loss_finite() -> None:
    model = TablePolicy(POLICY)
    batch = batch_of_every_token(POLICY, POLICY, REFERENCE)
    far = batch.reference_logprobs.clone()  # pyright: ignore[reportOptionalMemberAccess]
    far[:5] -= 100.0
    loss = policy_loss(model, batch._replace(reference_logprobs=far), temperature=1.0, kl_coefficient=1.0)  # pyright: ignore[reportArgumentType]
    assert loss.metrics["policy/reference_kl_clip_fraction"].item() == 5
    assert loss.sum.isfinite() and loss.metrics["policy/reference_kl"].isfinite()
    # A policy that no longer samples the tokens as the behavior policy did: the weight of a token is bounded too.
    unlikely = policy_loss(
        model,  # pyright: ignore[reportArgumentType]
        batch._replace(behavior_logprobs=batch.behavior_logprobs - 5.0),
        temperature=1.0,
        kl_coefficient=1.0,
    )
    assert unlikely.metrics["policy/reference_kl_clip_fraction"].item() == NUM_SAMPLES
    usual = policy_loss(model, batch, temperature=1.0, kl_coefficient=1.0)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(unlikely.sum, 10 * usual.sum)


# The penalty in the reward.


def inputs_of(log_ratio_NT: Tensor, rewards_N: Tensor) -> AdvantageInputs:
    return AdvantageInputs(
        rewards_N,
        torch.zeros(len(rewards_N)).long(),
        torch.ones(log_ratio_NT.shape).bool(),
        log_ratio_NT,
        values_NT=torch.zeros(log_ratio_NT.shape),
    )


def test_k1_in_the_reward_has_the_gradient_of_the_divergence_over_complete_completions() -> None:
    # Completions of two tokens from a policy whose second token depends on the first. All V² are enumerated.
    vocabulary = 3
    generator = torch.Generator().manual_seed(0)
    first_V = torch.randn(vocabulary, generator=generator).requires_grad_()
    second_VV = torch.randn(vocabulary, vocabulary, generator=generator).requires_grad_()
    reference = [torch.randn(vocabulary, generator=generator).log_softmax(0), torch.zeros(3, 3).log_softmax(1)]
    pairs = [(a, b) for a in range(vocabulary) for b in range(vocabulary)]
    logprobs_NT = torch.stack(
        [torch.stack([first_V.log_softmax(0)[a], second_VV.log_softmax(1)[a, b]]) for a, b in pairs]
    )
    log_ratio_NT = logprobs_NT - torch.stack([torch.stack([reference[0][a], reference[1][a, b]]) for a, b in pairs])
    probability_N = logprobs_NT.sum(1).exp()
    exact = torch.autograd.grad((probability_N * log_ratio_NT.sum(1)).sum(), [first_V, second_VV], retain_graph=True)
    rewards_NT = token_rewards(inputs_of(log_ratio_NT.detach(), torch.zeros(len(pairs))), 1.0)
    to_go_NT = rewards_NT.flip(1).cumsum(1).flip(1)
    policy_gradient = torch.autograd.grad(
        (probability_N.detach()[:, None] * to_go_NT * logprobs_NT).sum(), [first_V, second_VV]
    )
    for sampled, gradient in zip(policy_gradient, exact, strict=True):
        torch.testing.assert_close(sampled, -gradient)


@pytest.mark.parametrize("estimate", [rloo, ppo, reinforce_plus_plus])
def test_a_token_100_nats_away_counts_in_a_reward_as_one_10_nats_away(estimate: Estimator) -> None:
    near, far = torch.full((4, 3), 0.1), torch.full((4, 3), 0.1)
    near[1, 1], far[1, 1] = 10.0, 100.0
    rewards_N, learning = torch.tensor([0.0, 1.0, 0.0, 1.0]), LearningConfig(kl_coefficient=0.1)
    torch.testing.assert_close(
        estimate(inputs_of(far, rewards_N), learning).advantages_NT,
        estimate(inputs_of(near, rewards_N), learning).advantages_NT,
    )
    assert bounded_log_ratio(torch.tensor([-100.0, 3.0])).tolist() == [-MAX_SLOPE, 3.0]


def test_the_config_chooses_the_estimate_in_the_loss_of_grpo() -> None:
    batch = batch_of_every_token(POLICY, POLICY, REFERENCE)
    losses = {}
    for estimator in ("k2", "k3"):
        learning = LearningConfig(kl_coefficient=1.0, kl_loss=estimator)
        model = TablePolicy(POLICY)
        loss = ALGORITHMS["grpo"].loss(model, batch, learning=learning, temperature=1.0)  # pyright: ignore[reportArgumentType]
        losses[estimator] = loss.sum.item() / NUM_SAMPLES
    d = POLICY.log() - REFERENCE.log()
    assert losses["k2"] == pytest.approx((POLICY * 0.5 * d**2).sum().item(), rel=1e-3)
    assert losses["k3"] == pytest.approx((POLICY * d).sum().item(), rel=1e-3)  # unbiased: it is KL(policy || reference)
