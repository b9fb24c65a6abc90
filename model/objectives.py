"""Training objectives: each takes a model and a batch and returns a sum and its weight.

It returns no mean: `model.train` divides once, by the weight over all micro-batches and ranks, so that the loss and its
gradient do not depend on how a batch was cut. The head runs in the autocast dtype and only at rows that count;
everything after the logits is float32.

Shape legend: B rows, T tokens of a row, D width, V vocabulary, N positions where the loss mask is true.
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
from model.heads import ScalarHead
from model.transformer import Transformer


@dataclass(frozen=True)
class Loss:
    """A loss before division."""

    sum: Tensor
    """Scalar float32 with gradient."""
    num_terms: Tensor
    """Scalar: how many tokens or pairs the sum is over."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalar sums without gradient over the same tokens or pairs, divided by the same total weight. The same keys
    on every rank and micro-batch."""


Objective = Callable[[Any, Any], Loss]
"""(model, batch) -> Loss; which model and which batch is the objective's own. Bind options by functools.partial."""


def causal_lm(model: Transformer, batch: Batch) -> Loss:
    """Cross entropy in nats of the next token, weight: tokens where loss_mask is true."""
    hidden_ND = model(batch.input_ids, batch.positions, batch.document_ids)[batch.loss_mask]
    loss_sum = linear_cross_entropy(hidden_ND, model.head_weight, batch.targets[batch.loss_mask])
    return Loss(loss_sum, batch.loss_mask.sum())


def bradley_terry(model: ScalarHead, batch: PairBatch) -> Loss:
    """-log sigmoid(reward of chosen - reward of rejected), weight: pairs (Ouyang 2022, arXiv 2203.02155, eq. 1).

    Metrics: reward/accuracy, the share of pairs in order (a tie counts half); reward/margin, the mean difference.
    """
    ids = torch.cat([batch.chosen_ids, batch.rejected_ids])
    last = torch.cat([batch.chosen_last, batch.rejected_last])
    chosen_B, rejected_B = rewards(model, ids, last).chunk(2)
    margin_B = chosen_B - rejected_B
    in_order_B = (margin_B > 0).float() + 0.5 * (margin_B == 0).float()
    return Loss(
        -F.logsigmoid(margin_B).sum(),
        torch.tensor(float(len(margin_B)), device=margin_B.device),
        {"reward/accuracy": in_order_B.sum(), "reward/margin": margin_B.detach().sum()},
    )


def rewards(model: ScalarHead, ids_BT: Tensor, last_B: Tensor) -> Tensor:
    """Reward [B], float32, of whole sequences padded on the right: the scalar at each one's last real token."""
    scalars_BT = model(ids_BT, row_positions(ids_BT))
    return scalars_BT.gather(1, last_B[:, None]).squeeze(1)


def policy_loss(
    model: Transformer,
    batch: PolicyBatch,
    *,
    temperature: float,
    clip_range: float | None = 0.2,
    kl_coefficient: float = 0.0,
) -> Loss:
    """The clipped surrogate (PPO, arXiv 1707.06347, eq. 7), weight: completion tokens.

    With r the ratio of a token's new probability to the one it was sampled with, and A its advantage, a token's loss
    is -min(r·A, clip(r, 1-clip_range, 1+clip_range)·A); with clip_range None it is -r·A, whose gradient on fresh
    samples is REINFORCE's. kl_coefficient adds that multiple of the k3 estimate of KL(policy || reference)
    (Schulman, joschu.net/blog/kl-approx.html): exp(q) - 1 - q with q = log reference - log policy, which is never
    negative. Raises ValueError for a kl_coefficient above 0 and a batch without reference logprobs.

    Metrics, means over completion tokens: policy/entropy of the temperature-scaled distribution,
    policy/clip_fraction where clipping cut the gradient, policy/approx_kl to the policy that sampled (k3),
    policy/ratio, and policy/reference_kl where kl_coefficient is above 0.
    """
    mask_BT = batch.tokens.loss_mask
    logprobs_N, entropy_N = _token_logprobs(model, batch.tokens, temperature)
    behavior_N = batch.behavior_logprobs[mask_BT]
    advantages_N = batch.advantages[mask_BT]
    ratio_N = (logprobs_N - behavior_N).exp()
    gain_N = ratio_N * advantages_N
    clipped_N = torch.zeros_like(gain_N)
    if clip_range is not None:
        capped_N = ratio_N.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages_N
        clipped_N = (capped_N < gain_N).float()
        gain_N = torch.minimum(gain_N, capped_N)
    loss_sum = -gain_N.sum()
    metrics = {
        "policy/entropy": entropy_N.sum(),
        "policy/clip_fraction": clipped_N.sum(),
        "policy/approx_kl": kl_k3(behavior_N, logprobs_N.detach()).sum(),
        "policy/ratio": ratio_N.detach().sum(),
    }
    if kl_coefficient > 0:
        if batch.reference_logprobs is None:
            raise ValueError(f"kl_coefficient={kl_coefficient} needs reference_logprobs in the batch")
        reference_kl = kl_k3(logprobs_N, batch.reference_logprobs[mask_BT]).sum()
        loss_sum = loss_sum + kl_coefficient * reference_kl
        metrics["policy/reference_kl"] = reference_kl.detach()
    return Loss(loss_sum, mask_BT.sum(), metrics)


def value_loss(model: ScalarHead, batch: ValueBatch, *, value_clip_range: float | None = 0.2) -> Loss:
    """Half the squared error of the critic to the returns, weight: completion tokens.

    As in PPO's reference implementation, a value gains nothing by moving further than value_clip_range from its old
    value: a token's loss is ½ max((v - R)², (old + clip(v - old, ±value_clip_range) - R)²). None does not clip.

    Metrics, means over completion tokens: value/clip_fraction, value/mean, value/return_mean.
    """
    mask_BT = batch.tokens.loss_mask
    values_N = values(model, batch.tokens)[mask_BT]
    old_N, returns_N = batch.old_values[mask_BT], batch.returns[mask_BT]
    error_N = (values_N - returns_N).square()
    clipped_N = torch.zeros_like(error_N)
    if value_clip_range is not None:
        held_N = old_N + (values_N - old_N).clamp(-value_clip_range, value_clip_range)
        held_error_N = (held_N - returns_N).square()
        clipped_N = (held_error_N > error_N).float()
        error_N = torch.maximum(error_N, held_error_N)
    metrics = {
        "value/clip_fraction": clipped_N.sum(),
        "value/mean": values_N.detach().sum(),
        "value/return_mean": returns_N.sum(),
    }
    return Loss(0.5 * error_N.sum(), mask_BT.sum(), metrics)


def values(model: ScalarHead, batch: Batch) -> Tensor:
    """The critic's value [B, T], float32, of the state after each input token; meaningful where loss_mask is true."""
    return model(batch.input_ids, batch.positions, batch.document_ids)


def logprobs(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [B, T], float32, of the targets at `temperature`; 0 where loss_mask is false."""
    logits_NV = _scaled_logits(model, batch, temperature)
    logprobs_N = -F.cross_entropy(logits_NV, batch.targets[batch.loss_mask], reduction="none")
    out_BT = torch.zeros(batch.targets.shape, dtype=torch.float32, device=batch.targets.device)
    return out_BT.masked_scatter(batch.loss_mask, logprobs_N)


def nll_by_row(model: Transformer, batch: Batch) -> Tensor:
    """The negative log-likelihood in nats [B], float32, of each row's targets where loss_mask is true."""
    return -logprobs(model, batch).sum(1)


def kl_k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(p || other) at tokens drawn from p, by token: unbiased and never negative."""
    log_ratio = other_logprobs - logprobs
    return log_ratio.exp() - 1.0 - log_ratio


def _scaled_logits(model: Transformer, batch: Batch, temperature: float) -> Tensor:
    """Logits over temperature [N, V], float32, at the positions of the loss mask, in row order."""
    hidden_BTD = model(batch.input_ids, batch.positions, batch.document_ids)
    return model.logits(hidden_BTD[batch.loss_mask]).float() / temperature


def _token_logprobs(model: Transformer, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability [N] of each target, and entropy [N] without gradient, both of softmax(logits / temperature)."""
    all_logprobs_NV = F.log_softmax(_scaled_logits(model, batch, temperature), dim=-1)
    targets_N = batch.targets[batch.loss_mask]
    logprobs_N = all_logprobs_NV.gather(1, targets_N[:, None]).squeeze(1)
    with torch.no_grad():
        entropy_N = -(all_logprobs_NV.exp() * all_logprobs_NV).sum(-1)
    return logprobs_N, entropy_N
