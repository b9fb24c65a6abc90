"""Reward margins equal those of a direct computation with the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from actors.reward_margins import reward_margins
from cluster.storage import Storage
from data.chats.rendering import PreferenceTokens
from data.tokens.tokenizer_recipe import MIN_BPE_SIZE
from model.heads import ScalarModel
from model.objectives import rewards


def test_margins_are_differences_of_rewards(reward_folder: tuple[Path, ScalarModel]) -> None:
    folder, model = reward_folder
    generator = np.random.default_rng(0)
    sides = [generator.integers(6, MIN_BPE_SIZE, size=length).tolist() for length in (5, 40, 17, 3, 60, 60)]
    pairs = [PreferenceTokens(*sides[first : first + 2]) for first in (0, 2, 4)]
    computed = reward_margins(Storage(str(folder)), pairs, pad_id=1, precision="float32", device="cpu")

    def reward(ids: list[int]) -> float:
        return rewards(model, torch.tensor([ids]), torch.tensor([len(ids) - 1])).item()

    assert computed == pytest.approx([reward(pair.chosen) - reward(pair.rejected) for pair in pairs], abs=1e-4)
