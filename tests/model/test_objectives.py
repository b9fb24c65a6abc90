"""Objectives, compared with slow implementations and with numbers computed by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from model.batch import Batch, PairBatch, PolicyBatch, ValueBatch, batch_from_sequences, pair_batch, split_rows
from model.heads import ScalarModel
from model.objectives import (
    bradley_terry,
    causal_lm,
    logprobs,
    nll_by_row,
    policy_loss,
    rewards,
    value_loss,
    values,
)
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=13, width=16, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=24, max_length=16
)


def make_model() -> Transformer:
    model = Transformer(CONFIG)
    initialize(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


def make_scalar() -> ScalarModel:
    model = ScalarModel(CONFIG)
    initialize(model, seed=0)
    with torch.no_grad():
        model.score.weight.copy_(torch.linspace(-0.3, 0.4, CONFIG.width)[None])
    return model


SEQUENCES = [[1, 5, 2, 7, 3], [4, 4, 9], [8, 1, 12, 6, 11, 0]]
MASKS = [[False, False, True, True, True], [False, True, True], [False, False, False, True, True, True]]


def make_batch() -> Batch:
    return batch_from_sequences(SEQUENCES, MASKS, length=7, pad_id=0)


def naive_logprobs(model: Transformer, temperature: float = 1.0) -> list[torch.Tensor]:
    """Return the logprobs of the loss tokens, computed for one sequence at a time without padding."""
    out = []
    for sequence, mask in zip(SEQUENCES, MASKS, strict=True):
        ids = torch.tensor([sequence])
        all_logprobs = (model.logits(model(ids, torch.arange(len(sequence))[None])) / temperature).log_softmax(-1)[0]
        out.append(torch.stack([all_logprobs[t - 1, sequence[t]] for t in range(len(sequence)) if mask[t]]))
    return out


def test_causal_lm_equals_the_sum_over_separate_sequences() -> None:
    model = make_model()
    loss = causal_lm(model, make_batch())
    torch.testing.assert_close(loss.sum, -torch.cat(naive_logprobs(model)).sum())
    assert loss.num_loss_terms == 8


def test_logprobs_are_at_the_positions_of_their_targets_and_use_the_temperature() -> None:
    model, batch = make_model(), make_batch()
    got = logprobs(model, batch, temperature=0.7)
    torch.testing.assert_close(got[batch.loss_mask], torch.cat(naive_logprobs(model, 0.7)))
    assert not got[~batch.loss_mask].any()


def test_nll_by_row_sums_the_loss_tokens_of_each_row() -> None:
    model = make_model()
    nll = nll_by_row(model, make_batch())
    torch.testing.assert_close(nll, torch.stack([-row.sum() for row in naive_logprobs(model)]))


def make_policy_batch(model: Transformer, *, with_reference: bool = True) -> PolicyBatch:
    tokens = make_batch()
    generator = torch.Generator().manual_seed(0)

    def noisy_logprobs(scale: float) -> torch.Tensor:
        noise = torch.randn(tokens.targets.shape, generator=generator) * scale
        return ((logprobs(model, tokens, 0.7).detach() + noise) * tokens.loss_mask).float()

    advantages = torch.randn(tokens.targets.shape, generator=generator)
    return PolicyBatch(tokens, noisy_logprobs(0.6), advantages, noisy_logprobs(0.5) if with_reference else None)


def test_policy_loss_equals_a_naive_loop() -> None:
    model = make_model()
    batch = make_policy_batch(model)
    loss = policy_loss(model, batch, temperature=0.7, clip_range=0.2, kl_coefficient=0.05)
    assert batch.reference_logprobs is not None
    new = torch.cat(naive_logprobs(model, 0.7)).tolist()
    given = (batch.behavior_logprobs, batch.advantages, batch.reference_logprobs)
    rows = [x[batch.tokens.loss_mask].tolist() for x in given]
    total, clipped = 0.0, 0
    for lp, old, advantage, reference in zip(new, *rows, strict=True):
        ratio = math.exp(lp - old)
        clipped_ratio = min(max(ratio, 0.8), 1.2)
        surrogate = min(ratio * advantage, clipped_ratio * advantage)
        clipped += clipped_ratio * advantage < ratio * advantage
        total += -surrogate + 0.05 * ratio * 0.5 * (lp - reference) ** 2
    assert loss.sum.item() == pytest.approx(total, rel=1e-4)
    assert 0 < clipped < 8
    assert loss.metrics["policy/clip_fraction"].item() == clipped
    assert loss.num_loss_terms == 8


def test_on_policy_the_clipped_and_unclipped_gradients_equal_reinforce() -> None:
    model = make_model()
    batch = make_policy_batch(model)
    batch = batch._replace(behavior_logprobs=logprobs(model, batch.tokens, 0.7).detach(), reference_logprobs=None)
    reinforce = -(logprobs(model, batch.tokens, 0.7) * batch.advantages).sum()
    expected = torch.autograd.grad(reinforce, list(model.parameters()))
    for clip_range in (0.2, None):
        loss = policy_loss(model, batch, temperature=0.7, clip_range=clip_range)
        for got, expected_gradient in zip(
            torch.autograd.grad(loss.sum, list(model.parameters())), expected, strict=True
        ):
            torch.testing.assert_close(got, expected_gradient, atol=1e-4, rtol=1e-4)
        assert loss.metrics["policy/approx_kl"].item() == pytest.approx(0.0, abs=1e-6)
        assert loss.metrics["policy/clip_fraction"].item() == 0


def test_policy_entropy_of_a_uniform_distribution() -> None:
    model = make_model()
    with torch.no_grad():
        model.embedding.weight.zero_()
    loss = policy_loss(model, make_policy_batch(model), temperature=0.7)
    assert loss.metrics["policy/entropy"].item() / 8 == pytest.approx(math.log(13), rel=1e-5)


def test_a_kl_penalty_without_reference_logprobs_is_rejected() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="reference_logprobs"):
        policy_loss(model, make_policy_batch(model, with_reference=False), temperature=0.7, kl_coefficient=0.1)


def test_value_loss_by_hand() -> None:
    model = make_scalar()
    tokens = batch_from_sequences([[1, 2, 3], [4, 5]], [[False, True, True], [False, True]], length=3, pad_id=0)
    now = values(model, tokens).detach()
    mask = tokens.loss_mask
    # One value is in the clip range, one moved 0.5 towards its return, and one moved 0.5 away from its return.
    old, returns = now.clone(), now.clone()
    returns[mask] += torch.tensor([0.3, 1.0, -1.0])
    old[mask] -= torch.tensor([0.1, 0.5, 0.5])
    loss = value_loss(model, ValueBatch(tokens, old, returns), value_clip_range=0.2)
    # The errors are 0.3, then 1.3 with the value clipped to old + 0.2, then 1.0, which is 0.7 with clipping.
    assert loss.sum.item() == pytest.approx(0.5 * (0.3**2 + 1.3**2 + 1.0**2), rel=1e-5)
    assert loss.metrics["value/clip_fraction"].item() == 1
    plain = value_loss(model, ValueBatch(tokens, old, returns), value_clip_range=None)
    assert plain.sum.item() == pytest.approx(0.5 * (0.3**2 + 1.0 + 1.0), rel=1e-5)


def test_bradley_terry_by_hand() -> None:
    model = make_scalar()
    chosen, rejected = [[1, 2, 3], [4, 5]], [[1, 2], [4, 9, 9, 9]]
    batch = pair_batch(chosen, rejected, length=5, pad_id=0)

    def reward(sequence: list[int]) -> float:
        return model(torch.tensor([sequence]), torch.arange(len(sequence))[None])[0, -1].item()

    margins = [reward(good) - reward(bad) for good, bad in zip(chosen, rejected, strict=True)]
    loss = bradley_terry(model, batch)
    assert loss.sum.item() == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins), rel=1e-5)
    assert loss.metrics["reward/margin"].item() == pytest.approx(sum(margins), abs=1e-5)
    assert loss.metrics["reward/accuracy"].item() == sum(m > 0 for m in margins)
    assert loss.num_loss_terms == 2


def test_bradley_terry_of_an_initial_scalar_model_is_log_2_with_accuracy_one_half() -> None:
    model = ScalarModel(CONFIG)
    initialize(model, seed=0)
    loss = bradley_terry(model, pair_batch([[1, 2]], [[3, 4, 5]], length=4, pad_id=0))
    assert loss.sum.item() == pytest.approx(math.log(2))
    assert loss.metrics["reward/accuracy"].item() == 0.5


def test_rewards_do_not_depend_on_padding_tokens() -> None:
    model = make_scalar()
    ids, last = torch.tensor([[3, 4, 5, 0, 0]]), torch.tensor([2])
    padded = torch.tensor([[3, 4, 5, 9, 9]])
    assert torch.equal(rewards(model, ids, last), rewards(model, padded, last))


@pytest.mark.parametrize("kind", ["causal", "policy", "value", "pairs"])
def test_micro_batches_add_up_to_the_batch(kind: str) -> None:
    model = make_model()
    policy = make_policy_batch(model)
    pairs: PairBatch = pair_batch(SEQUENCES, [s[::-1] for s in SEQUENCES], length=7, pad_id=0)
    network, batch, objective = {
        "causal": (model, make_batch(), causal_lm),
        "policy": (model, policy, partial(policy_loss, temperature=0.7, kl_coefficient=0.1)),
        "value": (make_scalar(), ValueBatch(policy.tokens, policy.advantages, policy.behavior_logprobs), value_loss),
        "pairs": (make_scalar(), pairs, bradley_terry),
    }[kind]
    whole = objective(network, batch)
    parts = [objective(network, part) for part in split_rows(batch, 2)]
    assert len(parts) == 2
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum)
    torch.testing.assert_close(sum(part.num_loss_terms for part in parts), whole.num_loss_terms)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), value, atol=1e-5, rtol=1e-5)
