r"""An example of an RL algorithm: OPO (arXiv 2505.23585), which is REINFORCE with a length-weighted baseline.

It is selected in the config or on the command line:

    raymill run rlhf configs/tiny/rlhf.yaml learning.kl_coefficient=0 \
        learning.algorithm=examples/rl_algorithm/opo.py:OPO

An algorithm consists of an advantage estimator and a policy loss. Raymill ships this file to the cluster. The id of the
artifact depends on the file's content.

Suffixes of tensor names give their dimensions: N completions of an RLHF step, B completions of a micro-batch, T
positions of a row, G groups. A group is the completions of one prompt.
"""

from __future__ import annotations

import torch

from model.advantages import AdvantageInputs, Advantages, broadcast_to_tokens
from model.algorithms import Algorithm
from model.batch import PolicyBatch
from model.learning import LearningConfig
from model.objectives import Loss, logprobs
from model.transformer import Transformer


def length_weighted_advantages(inputs: AdvantageInputs, learning: LearningConfig) -> Advantages:
    """Return the reward minus the baseline of the group, at all tokens of a completion.

    The baseline is sum(length · reward) / sum(length) over the completions of the group. If the gradients of different
    tokens are uncorrelated, this baseline minimizes the variance of the policy gradient (eq. 9 of the paper).
    """
    # group_N is the index of each completion's group, from 0 to G - 1.
    _, group_N = inputs.group_ids_N.unique(return_inverse=True)
    length_N = inputs.mask_NT.sum(1).double()
    num_groups = int(group_N.max()) + 1
    length_G = torch.zeros(num_groups, dtype=torch.float64).index_add_(0, group_N, length_N)
    weighted_reward_sum_G = torch.zeros_like(length_G).index_add_(0, group_N, length_N * inputs.rewards_N.double())
    return Advantages(
        broadcast_to_tokens(inputs.rewards_N.double() - (weighted_reward_sum_G / length_G)[group_N], inputs.mask_NT)
    )


def reinforce_loss(model: Transformer, batch: PolicyBatch, *, learning: LearningConfig, temperature: float) -> Loss:
    """Return the loss -advantage · logprob of each completion token. It is valid only on-policy."""
    mask_BT = batch.tokens.loss_mask
    logprobs_BT = logprobs(model, batch.tokens, temperature)
    return Loss(-(batch.advantages * logprobs_BT)[mask_BT].sum(), mask_BT.sum())


OPO = Algorithm(estimate=length_weighted_advantages, loss=reinforce_loss, needs_groups=True, needs_on_policy=True)
