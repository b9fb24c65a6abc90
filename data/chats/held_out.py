"""The choice of held-out samples for validation."""

import json
from typing import NamedTuple

import numpy as np

from data.chats.messages import Messages, text_of
from data.document import unit_hash


class HeldOutSplit(NamedTuple):
    """Numbers of samples, in ascending order."""

    train: np.ndarray
    held_out: np.ndarray
    is_by_prompt: bool
    """Whether no held-out sample has a prompt of a training sample. This is impossible if all have the same prompt."""


def prompt_key(messages: Messages) -> int:
    """Return a number that is equal for chats that begin with the same prompt.

    The prompt is what the chat has before its first reply, without the system message. Case and white space do not
    count. The key of a chat that begins with a reply is that of the complete chat.
    """
    first_reply = next((n for n, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    before = [message for message in messages[:first_reply] if message["role"] != "system"]
    texts = [" ".join(text_of(message).split()).casefold() for message in (before or messages)]
    return int(unit_hash(json.dumps(texts), "chat prompt") * 2**53)


def split_by_prompt(keys: np.ndarray, fraction: float, *, seed: int) -> HeldOutSplit:
    """Choose about the given fraction of the samples as held out, and all samples of a prompt together.

    `keys` are the samples' prompt keys. Prompts are chosen in a random order that depends on `seed`, as long as their
    samples do not exceed the fraction. At least one sample is held out, and at least one is not. There must be at least
    two samples.
    """
    assert len(keys) >= 2, "one sample cannot be divided"
    wanted = min(max(1, round(len(keys) * fraction)), len(keys) - 1)
    distinct, group_of, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    is_by_prompt = len(distinct) > 1
    if not is_by_prompt:
        group_of, sizes = np.arange(len(keys)), np.ones(len(keys), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(sizes))
    num_chosen, chosen = 0, np.zeros(len(sizes), dtype=np.bool_)
    for group in order:
        if num_chosen + sizes[group] <= wanted:
            num_chosen += int(sizes[group])
            chosen[group] = True
        if num_chosen == wanted:
            break
    if not num_chosen:
        chosen[order[np.argmin(sizes[order])]] = True
    is_held_out = chosen[group_of]
    return HeldOutSplit(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out), is_by_prompt)
