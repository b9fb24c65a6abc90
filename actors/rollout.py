"""Rollouts (sampled completions with their logprobs), and their conversion to padded tensors for training.

Everything in this module is deterministic. The seed of a completion depends on the run, the step, the prompt and the
index of the completion. It does not depend on the engine that samples the completion, nor on when it is sampled.

Shape legend: N is the number of rollouts, and T the number of positions of a row. A sequence of T + 1 tokens gives a
row of T positions: position t sees the tokens 0 to t and predicts token t + 1, which is `targets[t]` (`model.batch`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from model.batch import Batch, PolicyBatch, ValueBatch, batch_from_sequences, map_tensors


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the completions of a generation batch are sampled. All prompts of the batch share these parameters."""

    temperature: float
    """0 is greedy decoding. Rollouts for training need a temperature above 0."""
    max_new_tokens: int
    """A completion is truncated at this number of tokens."""
    stop_ids: tuple[int, ...]
    """Ids of the stop tokens. A completion ends with the first stop token, which is its last token."""
    seed: int
    """Seed of the run. `completion_seed` derives the seed of each completion from it."""


@dataclass(frozen=True)
class PromptRequest:
    """A request to complete one prompt `num_samples` times."""

    index: int
    """Index of the prompt within its RLHF step or evaluation. The seed of each completion depends on it."""
    prompt_ids: tuple[int, ...]
    num_samples: int


@dataclass(frozen=True)
class GenerationBatch:
    """Prompts that one engine completes in one call, while it works on nothing else.

    The rounding of an engine's results depends on which prompts it processes together. Generation batches have a fixed
    size, so completions do not depend on the number of engines.
    """

    step: int
    """Index of the RLHF step, 0 in the stage `evaluate`, or a negative constant for held-out prompts and the sync
    check (`actors.graph`). The seed of each completion depends on it."""
    weight_version: int
    """Version of the weights from which the completions must be sampled."""
    requests: tuple[PromptRequest, ...]
    sampling: SamplingParams


@dataclass(frozen=True)
class Rollout:
    """One sampled completion of a prompt."""

    prompt_ids: tuple[int, ...]
    """The prompt's tokens, as the engine reports them."""
    completion_ids: tuple[int, ...]
    """The sampled tokens. The last one is a stop token if `finished` is true."""
    logprobs: tuple[float, ...]
    """Logprob of each completion token under the engine's weights, at the sampling temperature."""
    weight_version: int
    """Version of the weights from which the engine sampled. -1 if the weights changed during sampling."""
    finished: bool
    """Whether the completion ended with a stop token. Otherwise it was truncated at max_new_tokens."""

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The completion's tokens without the stop token."""
        return self.completion_ids[:-1] if self.finished else self.completion_ids


@dataclass(frozen=True)
class RolloutGroup:
    """All rollouts of one prompt."""

    index: int
    """`PromptRequest.index` of the prompt."""
    rollouts: tuple[Rollout, ...]


BatchT = TypeVar("BatchT", bound=Batch | PolicyBatch | ValueBatch)


def completion_seed(seed: int, step: int, prompt: int, sample: int) -> int:
    """Return the seed with which the engine samples one completion, a number below 2^63.

    `seed` is the seed of the run, `step` is `GenerationBatch.step`, `prompt` is `PromptRequest.index`, and `sample` is
    the index of the completion among the completions of its prompt.
    """
    digest = hashlib.sha256(f"{seed}:{step}:{prompt}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def prompt_indices(seed: int, num_prompts: int, start: int, count: int) -> list[int]:
    """Return the indices of the prompts at positions `start` … `start + count - 1` of an endless stream of prompts.

    The indices are below `num_prompts`. The stream has one epoch after the other, and each epoch has all prompts in a
    new random order. Raises ValueError when there are no prompts.
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
    """Return a random number generator whose seed is a hash of the parts.

    Callers pass the purpose as one of the parts, so that two purposes never use the same random numbers.
    """
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rollout_batch(rollouts: Sequence[Rollout], *, pad_id: int) -> Batch:
    """Return a batch with one row for each rollout: its prompt and completion, padded to the longest row.

    loss_mask is true where the target is a completion token.
    """
    sequences = [rollout.prompt_ids + rollout.completion_ids for rollout in rollouts]
    masks = [[False] * len(r.prompt_ids) + [True] * len(r.completion_ids) for r in rollouts]
    return batch_from_sequences(sequences, masks, length=max(map(len, sequences)) - 1, pad_id=pad_id)


def engine_logprobs(rollouts: Sequence[Rollout], batch: Batch) -> Tensor:
    """Return the engine's logprobs [N, T] of the targets of `rollout_batch(rollouts)`.

    The result is 0 where loss_mask is false.
    """
    flat = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs], dtype=torch.float32)
    return torch.zeros(batch.targets.shape).masked_scatter(batch.loss_mask, flat)


def minibatch_rows(num_rows: int, num_minibatches: int, *, seed: int, step: int, epoch: int) -> list[Tensor]:
    """Return the row indices of each minibatch. The rows are shuffled and divided into minibatches of equal size.

    The random order of the rows depends on `seed`, `step` (the index of the RLHF step) and `epoch`.
    """
    order = torch.randperm(num_rows, generator=seeded_rng(seed, "minibatches", step, epoch))
    return list(order.chunk(num_minibatches))


def rank_rows(rows: Tensor, rank: int, num_ranks: int) -> Tensor:
    """Return the rows of one rank. `rows` are divided into consecutive parts of equal size, one for each rank."""
    assert len(rows) % num_ranks == 0, f"{len(rows)} rows cannot be divided equally among {num_ranks} ranks"
    return rows.chunk(num_ranks)[rank]


def micro_batches(batch: BatchT, rows: Tensor, micro_batch_size: int) -> Iterator[BatchT]:
    """Yield the given rows of `batch` in micro-batches. Each micro-batch is as long as its longest row."""
    token_batch = batch if isinstance(batch, Batch) else batch.tokens
    assert token_batch.document_ids is None, "rows of rollouts must not be packed: each row must be one sequence"
    for part in rows.split(micro_batch_size):
        # A row ends with its completion, and loss_mask is true until the end of the completion. So the last column in
        # which loss_mask is true for any row is the last column without padding.
        length = int(token_batch.loss_mask[part].any(0).nonzero().max()) + 1
        yield map_tensors(batch, lambda tensor, part=part, length=length: tensor[part, :length])
