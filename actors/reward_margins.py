"""How far a reward model puts the chosen above the rejected completion of held-out preference pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actors.likelihood import MAX_PASS_TOKENS
from cluster.storage import Storage
from data.chats.template import PreferenceTokens
from model.batch import pair_batch, to_device
from model.huggingface import load_hf_scalar_model
from model.objectives import rewards
from model.precision import ComputePrecision, autocast_dtype
from model.train import autocast


def reward_margins(
    reward_folder: Storage, pairs: Sequence[PreferenceTokens], *, pad_id: int, precision: ComputePrecision, device: str
) -> NDArray[np.float64]:
    """Reward of the chosen minus that of the rejected completion, [pairs]."""
    model = load_hf_scalar_model(reward_folder.local()).to(device).requires_grad_(False)
    longest = max(len(side) for pair in pairs for side in pair)
    num_pairs = max(1, MAX_PASS_TOKENS // (2 * longest))
    margins: list[NDArray[np.float64]] = []
    for start in range(0, len(pairs), num_pairs):
        part = pairs[start : start + num_pairs]
        length = max(len(side) for pair in part for side in pair)
        batch = pair_batch([p.chosen for p in part], [p.rejected for p in part], length=length, pad_id=pad_id)
        batch = to_device(batch, torch.device(device))
        with torch.no_grad(), autocast(torch.device(device), autocast_dtype(precision)):
            chosen_B = rewards(model, batch.chosen_ids, batch.chosen_last)
            rejected_B = rewards(model, batch.rejected_ids, batch.rejected_last)
        margins.append((chosen_B - rejected_B).double().cpu().numpy())
    return np.concatenate(margins)
