"""Plain sampling from a decoder, one token at a time and without a cache: for showing samples, not for speed.

Rollouts, evaluation and serving generate through vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.transformer import Transformer


@torch.no_grad()
def sample(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    num_tokens: int,
    temperature: float,
    seed: int,
    stop_id: int | None = None,
) -> list[int]:
    """Up to `num_tokens` new token ids after the prompt, drawn at `temperature`.

    Generation ends at the stop token, which is left out. The context is cut to the model's length. Raises ValueError
    for an empty prompt.
    """
    if not prompt_ids:
        raise ValueError("prompt_ids: an empty prompt has nothing to continue; give at least one token")
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    for _ in range(num_tokens):
        context_1T = torch.tensor([ids[-model.config.max_length :]])
        hidden_1TD = model(context_1T, torch.arange(context_1T.shape[1])[None])
        logits_V = model.logits(hidden_1TD[0, -1]).float() / temperature
        token = int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator))
        if token == stop_id:
            break
        ids.append(token)
    return ids[len(prompt_ids) :]
