"""Sampling from a decoder without a KV cache, for a few sample texts after training.

Rollouts, evaluation and serving do not use this slow function. They generate with vLLM.
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
    """Return at most `num_tokens` token ids that continue the prompt, sampled at `temperature`.

    Generation ends at the token `stop_id`, which is not returned. With None no token ends it. The model reads only the
    last `max_length` tokens of prompt and completion. Raises ValueError for an empty prompt.
    """
    if not prompt_ids:
        raise ValueError("prompt_ids: the prompt is empty; pass at least one token")
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
