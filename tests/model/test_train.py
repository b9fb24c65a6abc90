"""The training step on one rank. test_parallel checks that several ranks compute the same step."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from model.batch import Batch, batch_from_sequences, row_positions, split_rows
from model.objectives import Loss, causal_lm
from model.optim import adamw, constant_schedule
from model.train import NonFiniteError, TrainState, fit, train_step
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=32, width=16, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=24, max_length=16
)


def make_state(*, clip_norm: float = 1.0, lr: float = 1e-2, autocast_dtype: torch.dtype | None = None) -> TrainState:
    model = Transformer(CONFIG)
    initialize(model, seed=0)
    optimizer = adamw(model, lr=lr)
    return TrainState(model, optimizer, constant_schedule(lr), clip_norm=clip_norm, autocast_dtype=autocast_dtype)


def make_batch(seed: int = 0) -> Batch:
    """Return eight rows, each a random sequence written twice. The share of loss tokens grows from 0 in row 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(0, 32, (8, 6), generator=generator)
    ids = torch.cat([half, half, half[:, :1]], dim=1)
    loss_mask = torch.rand(8, 12, generator=generator) < torch.linspace(0, 1, 8)[:, None]
    return Batch(ids[:, :-1], ids[:, 1:], loss_mask, row_positions(ids[:, :-1]), None)


def flat(state: TrainState) -> Tensor:
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])


def test_the_step_does_not_depend_on_micro_batches() -> None:
    states = {rows: make_state() for rows in (8, 4, 3, 1)}
    for seed in range(10):
        reports = {
            rows: train_step(state, list(split_rows(make_batch(seed), rows)), causal_lm)
            for rows, state in states.items()
        }
        for report in reports.values():
            assert report.loss == pytest.approx(reports[8].loss, abs=1e-5)
            assert report.grad_norm == pytest.approx(reports[8].grad_norm, rel=1e-4)
            assert report.num_loss_terms == make_batch(seed).loss_mask.sum()
            assert report.num_tokens == 8 * 12
    for state in states.values():
        torch.testing.assert_close(flat(state), flat(states[8]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("rows", [4, 3, 1])
def test_a_bfloat16_step_over_uneven_micro_batches_is_equal_within_rounding(rows: int) -> None:
    """The rows have 0 to 12 loss tokens, so a mean over micro-batches of their means would be another loss."""
    whole, split = (make_state(autocast_dtype=torch.bfloat16) for _ in range(2))
    for seed in range(5):
        parts = list(split_rows(make_batch(seed), rows))
        means = [
            causal_lm(split.model, part).sum.item() / int(part.loss_mask.sum())
            for part in parts
            if part.loss_mask.any()
        ]
        expected = train_step(whole, [make_batch(seed)], causal_lm)
        report = train_step(split, parts, causal_lm)
        assert report.loss == pytest.approx(expected.loss, abs=5e-4)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=2**-7)
        assert abs(sum(means) / len(means) - expected.loss) > 5e-4


def test_one_step_equals_pytorch_with_mean_loss_clip_grad_norm_and_adamw() -> None:
    state = make_state(clip_norm=0.5)
    twin = copy.deepcopy(state.model)
    optimizer = adamw(twin, lr=1e-2)
    batch = make_batch()
    report = train_step(state, [batch], causal_lm)
    logits = twin.logits(twin(batch.input_ids, batch.positions))[batch.loss_mask]
    loss = torch.nn.functional.cross_entropy(logits, batch.targets[batch.loss_mask])
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    optimizer.step()
    assert report.loss == pytest.approx(loss.item(), rel=1e-6)
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-5) and report.grad_norm > 0.5
    torch.testing.assert_close(flat(state), torch.cat([p.detach().flatten() for p in twin.parameters()]))


def test_fit_lowers_the_loss_and_counts_steps() -> None:
    state = make_state()
    reports = list(fit(state, ([make_batch(seed % 2)] for seed in range(60)), causal_lm))
    assert [report.step for report in reports] == list(range(1, 61))
    assert state.step == 60
    assert reports[-1].loss < reports[0].loss - 1.0


def test_bfloat16_autocast_stays_near_float32_and_keeps_float32_masters() -> None:
    exact, mixed = make_state(), make_state(autocast_dtype=torch.bfloat16)
    for seed in range(5):
        expected = train_step(exact, [make_batch(seed)], causal_lm)
        got = train_step(mixed, [make_batch(seed)], causal_lm)
        assert got.loss == pytest.approx(expected.loss, abs=0.02)
    assert flat(mixed).dtype == torch.float32


def test_the_learning_rate_follows_the_schedule() -> None:
    state = make_state()
    state.schedule = lambda step: 0.1 * (step + 1)
    assert [report.lr for report in fit(state, [[make_batch()]] * 2, causal_lm)] == [0.1, 0.2]
    assert {group["lr"] for group in state.optimizer.param_groups} == {0.2}


def test_metrics_are_divided_by_the_total_number_of_loss_terms() -> None:
    def objective(model: Transformer, batch: Batch) -> Loss:
        loss = causal_lm(model, batch)
        return Loss(loss.sum, loss.num_loss_terms, {"x/twos": 2.0 * loss.num_loss_terms})

    report = train_step(make_state(), list(split_rows(make_batch(), 3)), objective)
    assert report.metrics == {"x/twos": pytest.approx(2.0)}


def test_a_step_without_loss_terms_is_an_error_and_a_step_with_some_empty_micro_batches_is_not() -> None:
    state = make_state()
    empty = batch_from_sequences([[1, 2, 3]], [[False] * 3], length=12, pad_id=0)
    before = flat(state).clone()
    with pytest.raises(ValueError, match="there is nothing to train on"):
        train_step(state, [empty, empty], causal_lm)
    with pytest.raises(ValueError, match="at least one micro-batch"):
        train_step(state, [], causal_lm)
    assert torch.equal(flat(state), before) and state.step == 0
    twin = make_state()
    alone = train_step(twin, [make_batch()], causal_lm)
    report = train_step(state, [empty, make_batch(), empty], causal_lm)
    assert (report.loss, report.num_loss_terms) == (alone.loss, alone.num_loss_terms)
    assert torch.equal(flat(state), flat(twin))


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_raises_before_the_parameters_change(factor: float) -> None:
    def objective(model: Transformer, batch: Batch) -> Loss:
        loss = causal_lm(model, batch)
        return Loss(loss.sum * factor, loss.num_loss_terms)

    state = make_state()
    before = flat(state).clone()
    with pytest.raises(NonFiniteError, match="step 0"):
        train_step(state, [make_batch()], objective)
    assert torch.equal(flat(state), before) and state.step == 0
    twin = make_state()
    assert train_step(state, [make_batch()], causal_lm).loss == train_step(twin, [make_batch()], causal_lm).loss
    assert torch.equal(flat(state), flat(twin))
