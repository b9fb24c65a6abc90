"""Rewards of a reward model."""

from __future__ import annotations

import pytest
import torch

from actors.reward_model import RewardModel
from actors.verifier import ScorerInput
from cluster.storage import Storage
from model.heads import ScalarModel
from model.objectives import rewards


def test_rewards_do_not_depend_on_the_other_rows_of_the_batch(reward_folder) -> None:
    folder, model = reward_folder
    scorer = RewardModel(Storage(str(folder)), 2, "float32")
    samples = [ScorerInput("prompt", "", ids, {}, truncated=False) for ids in ((7, 8, 9), (3, 4, 5, 6, 7), (2, 2))]
    assert isinstance(model, ScalarModel)
    alone = [rewards(model, torch.tensor([s.token_ids]), torch.tensor([len(s.token_ids) - 1])).item() for s in samples]
    assert scorer.score(samples) == pytest.approx(alone, abs=1e-4)
    assert len(set(alone)) == 3
