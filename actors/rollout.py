"""Rollouts: sampled tokens with their logprobs, and the padded tensors that learning makes of them.

Everything here is deterministic: the same rollouts give the same tensors, and a request's seed depends on what is
sampled (run, step, prompt, sample), never on where or when.

Shape legend: N rollouts, T positions of a row (model.batch: position t belongs to the choice of target t).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from model.batch import Batch, PolicyBatch, ValueBatch, batch_from_sequences, map_tensors


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How completions are sampled; the same for every prompt of a generation batch."""

    temperature: float
    """0 takes the likeliest token; rollouts for learning need a temperature above 0."""
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    """A completion ends with the first of these, which belongs to it."""
    seed: int
    """Seed of the run; `request_seed` adds step, prompt and sample."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of the user's files."""

    text: str
    """What a verifier gets: the last user message, or the raw prompt."""
    prompt_ids: tuple[int, ...]
    """What the engine gets: the tokens after the chat template, where there is one."""
    record: Mapping[str, Any]
    """All fields of its line."""


@dataclass(frozen=True)
class PromptRequest:
    """One prompt to be completed `num_samples` times."""

    index: int
    """Number of the prompt within its step or evaluation; part of each sample's seed."""
    prompt_ids: tuple[int, ...]
    num_samples: int


@dataclass(frozen=True)
class GenerationBatch:
    """Prompts that one engine completes together and alone, so that results do not depend on the number of engines."""

    step: int
    weight_version: int
    """Version of the weights that it must be sampled from."""
    tasks: tuple[PromptRequest, ...]
    sampling: SamplingParams


@dataclass(frozen=True)
class Rollout:
    """One sampled completion."""

    prompt_ids: tuple[int, ...]
    """As the engine read them."""
    completion_ids: tuple[int, ...]
    """Ends with a stop token when `finished`."""
    logprobs: tuple[float, ...]
    """Logprob of each completion token under the engine's weights, at the sampling temperature."""
    weight_version: int
    """Version of the weights that the engine sampled from; -1 when they changed meanwhile."""
    finished: bool
    """Whether it ended by a stop token; otherwise it was cut at the longest length."""

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The completion without the stop token."""
        return self.completion_ids[:-1] if self.finished else self.completion_ids


@dataclass(frozen=True)
class RolloutGroup:
    """All completions of one prompt."""

    index: int
    """`PromptRequest.index`"""
    rollouts: tuple[Rollout, ...]


BatchT = TypeVar("BatchT", bound=Batch | PolicyBatch | ValueBatch)


def request_seed(seed: int, step: int, prompt: int, sample: int) -> int:
    """The engine's seed of one completion: a function of what is sampled alone, below 2^63."""
    digest = hashlib.sha256(f"{seed}:{step}:{prompt}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def prompt_indices(seed: int, num_prompts: int, start: int, count: int) -> list[int]:
    """Indices of the prompts `start` … `start + count - 1` of an endless stream: each epoch is its own permutation.

    Raises ValueError when there are no prompts.
    """
    if num_prompts < 1:
        raise ValueError("there are no prompts to draw from")
    indices: list[int] = []
    position = start
    while len(indices) < count:
        epoch, offset = divmod(position, num_prompts)
        order = torch.randperm(num_prompts, generator=seeded_rng(seed, "prompts", epoch))
        drawn = order[offset : offset + count - len(indices)].tolist()
        indices += drawn
        position += len(drawn)
    return indices


def seeded_rng(*parts: object) -> torch.Generator:
    """A random generator seeded by the text of the parts, so that no two uses share a stream."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rollout_batch(rollouts: Sequence[Rollout], *, pad_id: int) -> Batch:
    """Prompt and completion of each rollout as a row, padded to the longest; loss_mask marks the completion tokens."""
    sequences = [rollout.prompt_ids + rollout.completion_ids for rollout in rollouts]
    masks = [[False] * len(r.prompt_ids) + [True] * len(r.completion_ids) for r in rollouts]
    return batch_from_sequences(sequences, masks, length=max(map(len, sequences)) - 1, pad_id=pad_id)


def engine_logprobs(rollouts: Sequence[Rollout], batch: Batch) -> Tensor:
    """The engine's logprob [N, T] of each target of `rollout_batch`, 0 where loss_mask is false."""
    flat = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs], dtype=torch.float32)
    return torch.zeros(batch.targets.shape).masked_scatter(batch.loss_mask, flat)


def minibatch_rows(num_rows: int, num_minibatches: int, *, seed: int, step: int, epoch: int) -> list[Tensor]:
    """Row indices of each minibatch: a seeded permutation cut into equal parts."""
    order = torch.randperm(num_rows, generator=seeded_rng(seed, "minibatches", step, epoch))
    return list(order.chunk(num_minibatches))


def rank_rows(rows: Tensor, rank: int, num_ranks: int) -> Tensor:
    """The rows of one rank: `rows` cut into equal parts, in order."""
    assert len(rows) % num_ranks == 0, f"{len(rows)} rows do not divide among {num_ranks} ranks"
    return rows.chunk(num_ranks)[rank]


def micro_batches(batch: BatchT, rows: Tensor, micro_batch_size: int) -> Iterator[BatchT]:
    """The chosen rows of `batch` in micro-batches, each cut to its own longest row."""
    tokens = batch if isinstance(batch, Batch) else batch.tokens
    assert tokens.document_ids is None, "rollouts are one sequence a row"
    for part in rows.split(micro_batch_size):
        # A completion runs to the end of its row, so the last counted column of any row is the last real one.
        length = int(tokens.loss_mask[part].any(0).nonzero().max()) + 1
        yield map_tensors(batch, lambda tensor, part=part, length=length: tensor[part, :length])
