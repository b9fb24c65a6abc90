"""Training objectives. An objective takes a model and a batch, and returns the sum of its loss terms and their number.

A loss term belongs to one token or to one preference pair. An objective does not divide: `model.train` divides once, by
the number of loss terms over all micro-batches and ranks, so that the loss and its gradient do not depend on how a
batch was split.

The lm_head computes logits only where the loss mask is true, in the autocast dtype. Everything after the logits is
float32.

Suffixes of tensor names give their dimensions: B rows, T positions of a row, D hidden size, V vocabulary size, N
positions where the loss mask is true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batch import Batch, PairBatch, PolicyBatch, ValueBatch, row_positions
from model.cross_entropy import linear_cross_entropy
from model.heads import ScalarModel
from model.kl import is_bounded, kl_penalty
from model.learning import KLLoss
from model.transformer import Transformer


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch, before dividing by the number of loss terms."""

    sum: Tensor
    """Sum of the loss terms, a float32 scalar with gradient."""
    num_loss_terms: Tensor
    """Number of loss terms (tokens or preference pairs), a scalar."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Further sums over the same tokens or pairs, scalars without gradient, by name. `model.train` divides them by the
    total number of loss terms too. The keys must be equal on every rank and micro-batch."""


_MAX_KL_WEIGHT = 10.0
"""Largest weight of a token's KL penalty."""

Objective = Callable[[Any, Any], Loss]
"""A function (model, batch) -> Loss. The types of model and batch depend on the objective. Bind further arguments with
functools.partial."""


def causal_lm(model: Transformer, batch: Batch) -> Loss:
    """Return the cross entropy of the targets, in nats. The loss terms are the tokens where loss_mask is true."""
    hidden_ND = model(batch.input_ids, batch.positions, batch.document_ids)[batch.loss_mask]
    loss_sum = linear_cross_entropy(hidden_ND, model.head_weight, batch.targets[batch.loss_mask])
    return Loss(loss_sum, batch.loss_mask.sum())


def bradley_terry(model: ScalarModel, batch: PairBatch) -> Loss:
    """Return the loss -log sigmoid(margin) of a reward model (arXiv 2203.02155, eq. 1). The loss terms are the pairs.

    The margin is the reward of the chosen sequence minus the reward of the rejected sequence. The metrics are
    reward/margin and reward/accuracy, the share of pairs with a positive margin. A margin of 0 counts as half a pair.
    """
    ids = torch.cat([batch.chosen_ids, batch.rejected_ids])
    last = torch.cat([batch.chosen_last, batch.rejected_last])
    chosen_B, rejected_B = rewards(model, ids, last).chunk(2)
    margin_B = chosen_B - rejected_B
    accuracy_B = (margin_B > 0).float() + 0.5 * (margin_B == 0).float()
    return Loss(
        -F.logsigmoid(margin_B).sum(),
        torch.tensor(float(len(margin_B)), device=margin_B.device),
        {"reward/accuracy": accuracy_B.sum(), "reward/margin": margin_B.detach().sum()},
    )


def rewards(model: ScalarModel, ids_BT: Tensor, last_B: Tensor) -> Tensor:
    """Return the float32 rewards [B] of sequences that are padded on the right.

    The reward of a sequence is the scalar at its last token, whose index is in last_B.
    """
    scalars_BT = model(ids_BT, row_positions(ids_BT))
    return scalars_BT.gather(1, last_B[:, None]).squeeze(1)


def policy_loss(
    model: Transformer,
    batch: PolicyBatch,
    *,
    temperature: float,
    clip_range: float | None = 0.2,
    kl_coefficient: float = 0.0,
    kl_loss: KLLoss = "k2",
) -> Loss:
    """Return the clipped surrogate loss (PPO, arXiv 1707.06347, eq. 7). The loss terms are the completion tokens.

    Let A be the advantage of a token and r its probability under the policy, divided by its probability under the
    policy that sampled it. Probabilities are those at `temperature`, at which the completions were sampled. The loss of
    the token is -min(r·A, clip(r, 1-clip_range, 1+clip_range)·A). With clip_range None it is -r·A. On-policy, the
    gradient of -r·A is that of REINFORCE.

    With kl_coefficient above 0 the loss of the token is increased by kl_coefficient · r · `kl_loss` (`_reference_kl`).
    Raises ValueError if the batch then has no reference logprobs.

    The metrics are sums over the completion tokens, from which `model.train` computes the means that are logged.
    policy/entropy is the entropy at `temperature`. policy/clip_fraction is the share of tokens for which the minimum is
    the clipped term. policy/approx_kl is the k3 estimate (`model.kl`) of the KL divergence between the policy that
    sampled and the current policy. policy/ratio is the mean of r.
    """
    mask_BT = batch.tokens.loss_mask
    logprobs_N, entropy_N = _logprobs_and_entropy(model, batch.tokens, temperature)
    behavior_logprobs_N = batch.behavior_logprobs[mask_BT]
    advantages_N = batch.advantages[mask_BT]
    ratio_N = (logprobs_N - behavior_logprobs_N).exp()
    surrogate_N = ratio_N * advantages_N
    is_clipped_N = torch.zeros_like(surrogate_N)
    if clip_range is not None:
        clipped_surrogate_N = ratio_N.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages_N
        is_clipped_N = (clipped_surrogate_N < surrogate_N).float()
        surrogate_N = torch.minimum(surrogate_N, clipped_surrogate_N)
    loss_sum = -surrogate_N.sum()
    metrics = {
        "policy/entropy": entropy_N.sum(),
        "policy/clip_fraction": is_clipped_N.sum(),
        "policy/approx_kl": kl_penalty(behavior_logprobs_N - logprobs_N.detach(), "k3").sum(),
        "policy/ratio": ratio_N.detach().sum(),
    }
    if kl_coefficient > 0:
        if batch.reference_logprobs is None:
            raise ValueError(f"kl_coefficient={kl_coefficient} needs reference_logprobs, but the batch has none")
        log_ratio_N = logprobs_N - batch.reference_logprobs[mask_BT]
        penalty, kl_metrics = _reference_kl(log_ratio_N, ratio_N.detach(), kl_loss)
        loss_sum = loss_sum + kl_coefficient * penalty
        metrics |= kl_metrics
    return Loss(loss_sum, mask_BT.sum(), metrics)


def _reference_kl(log_ratio_N: Tensor, ratio_N: Tensor, estimator: KLLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of the KL penalties with their gradient, and the metrics of the distance from the reference.

    `log_ratio_N` is log policy - log reference of each token. `ratio_N` (without gradient) is its probability under the
    policy, divided by that under the policy that sampled it. Each penalty is weighted by this ratio, because only then
    the mean gradient after the first optimizer step of an RLHF step is still that of the divergence (`model.kl`).
    Weights are at most `_MAX_KL_WEIGHT`.

    policy/reference_kl is the k3 estimate of KL(policy || reference). policy/reference_kl_clip_fraction is the share of
    tokens whose slope or weight is bounded.
    """
    weight_N = ratio_N.clamp(max=_MAX_KL_WEIGHT)
    was_bounded_N = is_bounded(log_ratio_N, estimator) | (ratio_N > _MAX_KL_WEIGHT)
    metrics = {
        "policy/reference_kl": (weight_N * kl_penalty(log_ratio_N.detach(), "k3")).sum(),
        "policy/reference_kl_clip_fraction": was_bounded_N.float().sum(),
    }
    return (weight_N * kl_penalty(log_ratio_N, estimator)).sum(), metrics


def value_loss(model: ScalarModel, batch: ValueBatch, *, value_clip_range: float | None = 0.2) -> Loss:
    """Return half the squared error between values and returns. The loss terms are the completion tokens.

    As in PPO's reference implementation, values are clipped around the old values. Let v be the value of a token, R its
    return, and c = old + clip(v - old, -value_clip_range, value_clip_range). The loss of the token is
    ½ max((v - R)², (c - R)²). With value_clip_range None it is ½ (v - R)².

    The metrics are sums over the completion tokens, from which `model.train` computes the means that are logged.
    value/clip_fraction is the share of tokens for which the maximum is the clipped term. value/mean is the mean value,
    and value/return_mean is the mean return.
    """
    mask_BT = batch.tokens.loss_mask
    values_N = values(model, batch.tokens)[mask_BT]
    old_values_N, returns_N = batch.old_values[mask_BT], batch.returns[mask_BT]
    squared_error_N = (values_N - returns_N).square()
    is_clipped_N = torch.zeros_like(squared_error_N)
    if value_clip_range is not None:
        clipped_values_N = old_values_N + (values_N - old_values_N).clamp(-value_clip_range, value_clip_range)
        clipped_squared_error_N = (clipped_values_N - returns_N).square()
        is_clipped_N = (clipped_squared_error_N > squared_error_N).float()
        squared_error_N = torch.maximum(squared_error_N, clipped_squared_error_N)
    metrics = {
        "value/clip_fraction": is_clipped_N.sum(),
        "value/mean": values_N.detach().sum(),
        "value/return_mean": returns_N.sum(),
    }
    return Loss(0.5 * squared_error_N.sum(), mask_BT.sum(), metrics)


def values(model: ScalarModel, batch: Batch) -> Tensor:
    """Return the critic's float32 value [B, T] of the state after each input token.

    Values are meaningful only where loss_mask is true.
    """
    return model(batch.input_ids, batch.positions, batch.document_ids)


def logprobs(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Return the float32 logprobs [B, T] of the targets at `temperature`. They are 0 where loss_mask is false."""
    logits_NV = _logits_at_targets(model, batch, temperature)
    logprobs_N = -F.cross_entropy(logits_NV, batch.targets[batch.loss_mask], reduction="none")
    logprobs_BT = torch.zeros(batch.targets.shape, dtype=torch.float32, device=batch.targets.device)
    return logprobs_BT.masked_scatter(batch.loss_mask, logprobs_N)


def nll_by_row(model: Transformer, batch: Batch) -> Tensor:
    """Return the negative log-likelihood [B] of each row in nats, summed over the targets where loss_mask is true."""
    return -logprobs(model, batch).sum(1)


def _logits_at_targets(model: Transformer, batch: Batch, temperature: float) -> Tensor:
    """Return the float32 logits [N, V], divided by the temperature, at the positions where loss_mask is true."""
    hidden_BTD = model(batch.input_ids, batch.positions, batch.document_ids)
    return model.logits(hidden_BTD[batch.loss_mask]).float() / temperature


def _logprobs_and_entropy(model: Transformer, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the logprob [N] of each target, and the entropy [N] of the distribution at each position.

    Both are those of softmax(logits / temperature). The entropy has no gradient.
    """
    all_logprobs_NV = F.log_softmax(_logits_at_targets(model, batch, temperature), dim=-1)
    targets_N = batch.targets[batch.loss_mask]
    logprobs_N = all_logprobs_NV.gather(1, targets_N[:, None]).squeeze(1)
    with torch.no_grad():
        entropy_N = -(all_logprobs_NV.exp() * all_logprobs_NV).sum(-1)
    return logprobs_N, entropy_N
