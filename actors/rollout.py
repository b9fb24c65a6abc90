"""What generation hands to learning: sampled tokens with their logprobs, and the padded tensors made of them.

Everything here is deterministic: the same rollouts give the same tensors, and a request's seed depends on what is
sampled (run, step, prompt, sample), never on where or when.

Shape legend: N rollouts, T positions of a row (model.batch: position t belongs to the choice of target t).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.batch import Batch, PolicyBatch, ValueBatch, from_sequences


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are sampled; the same for every prompt of a call."""

    temperature: float
    """0 takes the likeliest token; rollouts for learning need a temperature above 0."""
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    """A response ends with the first of these, which belongs to it."""
    seed: int
    """Of the run; `request_seed` adds step, prompt and sample."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of the user's files."""

    text: str
    """What a verifier sees: the last user message, or the raw prompt."""
    prompt_ids: tuple[int, ...]
    """What the engine sees: through the chat template where there is one."""
    record: Mapping[str, Any]
    """All fields of its line."""


@dataclass(frozen=True)
class PromptTask:
    """One prompt to be answered `num_samples` times."""

    index: int
    """Tells it from the other prompts of its step or evaluation; part of each sample's seed."""
    prompt_ids: tuple[int, ...]
    num_samples: int


@dataclass(frozen=True)
class Lot:
    """What one engine does at a time, alone and whole, so that its batches do not depend on the number of engines."""

    step: int
    weight_version: int
    """The weights that it must be sampled from."""
    tasks: tuple[PromptTask, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Rollout:
    """One sampled response."""

    prompt_ids: tuple[int, ...]
    """As the engine read them."""
    response_ids: tuple[int, ...]
    """Ends with a stop token when `finished`."""
    logprobs: tuple[float, ...]
    """Of each response token under the engine's weights at the sampling temperature."""
    weight_version: int
    """Of the weights that made it, as the engine says; -1 when they changed under way."""
    finished: bool
    """Whether it ended by a stop token; otherwise it was cut at the longest length."""

    @property
    def said_ids(self) -> tuple[int, ...]:
        """The response without the stop token."""
        return self.response_ids[:-1] if self.finished else self.response_ids


@dataclass(frozen=True)
class RolloutGroup:
    """All responses to one prompt."""

    index: int
    rollouts: tuple[Rollout, ...]


def request_seed(seed: int, step: int, prompt: int, sample: int) -> int:
    """The engine's seed of one response: a function of what is sampled alone, below 2^63."""
    digest = hashlib.sha256(f"{seed}:{step}:{prompt}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def prompt_order(seed: int, num_prompts: int, start: int, count: int) -> list[int]:
    """Indices of the prompts `start` … `start + count - 1` of an endless stream: each epoch is its own permutation."""
    if num_prompts < 1:
        raise ValueError("there are no prompts to draw from")
    chosen: list[int] = []
    position = start
    while len(chosen) < count:
        epoch, offset = divmod(position, num_prompts)
        order = torch.randperm(num_prompts, generator=seeded(seed, "prompts", epoch))
        taken = order[offset : offset + count - len(chosen)].tolist()
        chosen += taken
        position += len(taken)
    return chosen


def seeded(*parts: object) -> torch.Generator:
    """A generator seeded by the parts' text, so that no two uses share a stream."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rollout_batch(rollouts: Sequence[Rollout], *, pad_id: int) -> Batch:
    """Prompt and response of each rollout as a row, padded to the longest; loss_mask marks the response tokens."""
    sequences = [rollout.prompt_ids + rollout.response_ids for rollout in rollouts]
    masks = [[False] * len(r.prompt_ids) + [True] * len(r.response_ids) for r in rollouts]
    return from_sequences(sequences, masks, length=max(map(len, sequences)) - 1, pad_id=pad_id)


def behaviour_logprobs(rollouts: Sequence[Rollout], batch: Batch) -> Tensor:
    """The engine's logprob [N, T] of each target of `rollout_batch`, 0 where loss_mask is false."""
    flat = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs], dtype=torch.float32)
    return torch.zeros(batch.targets.shape).masked_scatter(batch.loss_mask, flat)


def minibatch_rows(num_rows: int, num_minibatches: int, *, seed: int, step: int, epoch: int) -> list[Tensor]:
    """Row indices of each minibatch: a seeded permutation cut into equal parts."""
    order = torch.randperm(num_rows, generator=seeded(seed, "minibatches", step, epoch))
    return list(order.chunk(num_minibatches))


def rank_rows(rows: Tensor, rank: int, num_ranks: int) -> Tensor:
    """The part of `rows` that one rank takes: equal parts, in order."""
    assert len(rows) % num_ranks == 0, f"{len(rows)} rows do not divide among {num_ranks} ranks"
    return rows.chunk(num_ranks)[rank]


def policy_micro_batches(batch: PolicyBatch, rows: Tensor, num_rows: int) -> Iterator[PolicyBatch]:
    """The rows of `batch` in micro-batches of `num_rows`, each cut to its own longest row."""
    for part in rows.split(num_rows):
        tokens, length = _rows_of_tokens(batch.tokens, part)
        reference = batch.reference_logprobs
        yield PolicyBatch(
            tokens,
            batch.behaviour_logprobs[part, :length],
            batch.advantages[part, :length],
            None if reference is None else reference[part, :length],
        )


def value_micro_batches(batch: ValueBatch, rows: Tensor, num_rows: int) -> Iterator[ValueBatch]:
    """The rows of `batch` in micro-batches of `num_rows`, each cut to its own longest row."""
    for part in rows.split(num_rows):
        tokens, length = _rows_of_tokens(batch.tokens, part)
        yield ValueBatch(tokens, batch.old_values[part, :length], batch.returns[part, :length])


def token_micro_batches(batch: Batch, rows: Tensor, num_rows: int) -> Iterator[Batch]:
    """The rows of `batch` in micro-batches of `num_rows`, each cut to its own longest row."""
    for part in rows.split(num_rows):
        yield _rows_of_tokens(batch, part)[0]


def _rows_of_tokens(batch: Batch, rows: Tensor) -> tuple[Batch, int]:
    """The chosen rows without the columns that are padding in all of them, and the number of columns left."""
    assert batch.document_ids is None, "rollouts are one sequence a row"
    mask = batch.loss_mask[rows]
    # A response runs to the end of its row, so the last counted column of any row is the last real one.
    length = int(mask.any(0).nonzero().max()) + 1
    cut = (
        batch.input_ids[rows, :length],
        batch.targets[rows, :length],
        mask[:, :length],
        batch.positions[rows, :length],
    )
    return Batch(*cut, None), length
