"""An RL algorithm of your own: OPO (arXiv 2505.23585), REINFORCE with a baseline weighted by length.

    raymill run rlhf configs/tiny/rlhf.yaml learning.algorithm=examples/rl_algorithm/opo.py:OPO

An algorithm is an advantage estimator and a policy loss. Nothing else of Raymill changes: this file is fingerprinted,
so that it is part of the artifact's identity, and shipped to the cluster.

Shape legend: N completions of a step, T tokens of a row, G groups (the completions of one prompt).
"""

from __future__ import annotations

import torch

from model.advantages import AdvantageInputs, Advantages, broadcast_to_tokens
from model.algorithms import Algorithm
from model.batch import PolicyBatch
from model.learning import LearningConfig
from model.objectives import Loss, logprobs
from model.transformer import Transformer


def length_weighted_baseline(scores: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """Reward minus the group's baseline, sum(length · reward) / sum(length), at every token of the completion.

    This baseline has the least variance when the gradients of different tokens are uncorrelated (eq. 9).
    """
    _, group_N = scores.group_ids_N.unique(return_inverse=True)
    length_N = scores.mask_NT.sum(1).double()
    num_groups = int(group_N.max()) + 1
    length_G = torch.zeros(num_groups, dtype=torch.float64).index_add_(0, group_N, length_N)
    weighted_G = torch.zeros_like(length_G).index_add_(0, group_N, length_N * scores.rewards_N.double())
    return Advantages(broadcast_to_tokens(scores.rewards_N.double() - (weighted_G / length_G)[group_N], scores.mask_NT))


def reinforce_loss(model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float) -> Loss:
    """-advantage · log p of each completion token. OPO is exactly on-policy: leave epochs and minibatches at 1."""
    mask_BT = batch.tokens.loss_mask
    logprobs_BT = logprobs(model, batch.tokens, temperature)
    return Loss(-(batch.advantages * logprobs_BT)[mask_BT].sum(), mask_BT.sum())


OPO = Algorithm(estimate=length_weighted_baseline, loss=reinforce_loss, needs_groups=True)
