"""Evaluates a reward model on held-out preference pairs: by how much it prefers the chosen completion.

Shape legend: B is the number of pairs in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actors.settings import MAX_PASS_TOKENS
from cluster.storage import Storage
from data.chats.rendering import PreferenceTokens
from model.batch import pair_batch, to_device
from model.huggingface import load_hf_scalar_model
from model.objectives import rewards
from model.precision import ComputePrecision, autocast_dtype
from model.train import autocast


def reward_margins(
    reward_folder: Storage, pairs: Sequence[PreferenceTokens], *, pad_id: int, precision: ComputePrecision, device: str
) -> NDArray[np.float64]:
    """Return one margin for each pair: the reward of the chosen completion minus that of the rejected completion."""
    model = load_hf_scalar_model(reward_folder.local()).to(device).requires_grad_(False)
    max_length = max(len(token_ids) for pair in pairs for token_ids in pair)
    batch_size = max(1, MAX_PASS_TOKENS // (2 * max_length))
    margins: list[NDArray[np.float64]] = []
    for start in range(0, len(pairs), batch_size):
        batch_pairs = pairs[start : start + batch_size]
        length = max(len(token_ids) for pair in batch_pairs for token_ids in pair)
        batch = pair_batch(
            [pair.chosen for pair in batch_pairs],
            [pair.rejected for pair in batch_pairs],
            length=length,
            pad_id=pad_id,
        )
        batch = to_device(batch, torch.device(device))
        with torch.no_grad(), autocast(torch.device(device), autocast_dtype(precision)):
            chosen_B = rewards(model, batch.chosen_ids, batch.chosen_last)
            rejected_B = rewards(model, batch.rejected_ids, batch.rejected_last)
        margins.append((chosen_B - rejected_B).double().cpu().numpy())
    return np.concatenate(margins)
