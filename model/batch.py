"""The batches that objectives read. A batch is a named tuple of tensors whose first dimension is the row.

Dimensions in shapes and names: B rows, T positions of a row. Token ids, document ids, positions and indices are int64,
masks are bool, and all other tensors are float32.

Target t is the token that follows input t. The logprob at position t is that of target t, the advantage at t is that
of choosing target t, and the value at t is that of the state after reading input t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

PADDING_DOCUMENT = -1
"""Document id of padding tokens."""


class Batch(NamedTuple):
    """Rows of tokens with next-token targets. A row has several packed documents, or a single padded sequence."""

    input_ids: Tensor
    """[B, T]. The input tokens."""
    targets: Tensor
    """[B, T]. The token that follows input t. Where loss_mask is false it may be any valid token id."""
    loss_mask: Tensor
    """[B, T]. True where target t counts in the loss."""
    positions: Tensor
    """[B, T]. Position of input t in its document, from 0."""
    document_ids: Tensor | None
    """[B, T]. Tokens attend only to tokens with the same document id, and padding tokens have the id -1. None if each
    row is a single sequence padded on the right. Causal attention then keeps the sequence from attending to padding."""

    @property
    def num_tokens(self) -> int:
        """Number of input tokens. Padding tokens count only if document_ids is None."""
        if self.document_ids is None:
            return self.input_ids.numel()
        return int((self.document_ids != PADDING_DOCUMENT).sum())


class PairBatch(NamedTuple):
    """A chosen and a rejected sequence for each of B prompts, padded on the right."""

    chosen_ids: Tensor
    """[B, T]. Token ids of the prompt and the chosen completion."""
    chosen_last: Tensor
    """[B]. Index of the last token of the chosen sequence, before the padding."""
    rejected_ids: Tensor
    """[B, T]. Token ids of the prompt and the rejected completion."""
    rejected_last: Tensor
    """[B]. Index of the last token of the rejected sequence, before the padding."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the chosen and the rejected sequences, without padding."""
        return int((self.chosen_last + 1).sum() + (self.rejected_last + 1).sum())


class PolicyBatch(NamedTuple):
    """Rollouts with the inputs of the policy loss."""

    tokens: Batch
    """Prompts and completions. The loss mask is true at the completion tokens."""
    behavior_logprobs: Tensor
    """[B, T]. Logprob of target t under the policy that sampled the completion, at the sampling temperature."""
    advantages: Tensor
    """[B, T]. Advantage of target t."""
    reference_logprobs: Tensor | None
    """[B, T]. Logprob of target t under the reference, at the sampling temperature. None without a reference.
    Only a loss with a KL term reads it."""

    @property
    def num_tokens(self) -> int:
        """Number of input tokens, as `Batch.num_tokens` counts them."""
        return self.tokens.num_tokens


class ValueBatch(NamedTuple):
    """Rollouts with the inputs of the critic's loss."""

    tokens: Batch
    """Prompts and completions. The loss mask is true at the completion tokens."""
    old_values: Tensor
    """[B, T]. The critic's values from which the returns were computed."""
    returns: Tensor
    """[B, T]. The values that the critic is trained to predict."""

    @property
    def num_tokens(self) -> int:
        """Number of input tokens, as `Batch.num_tokens` counts them."""
        return self.tokens.num_tokens


class TrainBatch(Protocol):
    """Any batch of this module: a named tuple whose fields are tensors, batches or None."""

    @property
    def num_tokens(self) -> int:
        """Number of input tokens. The class of the batch says whether padding tokens count."""
        ...


B = TypeVar("B", bound=TrainBatch)


def to_device(batch: B, device: torch.device) -> B:
    """Return a copy of the batch with all tensors on `device`."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def split_rows(batch: B, num_rows: int) -> Iterator[B]:
    """Yield micro-batches of `num_rows` rows, in order. The last micro-batch may have fewer rows."""
    total = _batch_size(cast(tuple, batch))
    for start in range(0, total, num_rows):
        yield map_tensors(batch, lambda tensor, start=start: tensor[start : start + num_rows])


def batch_from_sequences(
    sequences: Sequence[Sequence[int]],
    loss_masks: Sequence[Sequence[bool]],
    *,
    length: int,
    pad_id: int,
) -> Batch:
    """Return a `Batch` with one sequence per row, padded on the right to `length` positions.

    A sequence of n tokens has n - 1 positions. loss_masks[i][j] is true if token j of sequence i counts in the loss as
    a target. The first token of a sequence is never a target. The batch has no document ids. Raises ValueError if a
    sequence is too long or shorter than two tokens, or if a loss mask is not as long as its sequence.
    """
    input_ids = torch.full((len(sequences), length), pad_id)
    targets = torch.full((len(sequences), length), pad_id)
    loss_mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, (sequence, mask) in enumerate(zip(sequences, loss_masks, strict=True)):
        if len(sequence) != len(mask):
            raise ValueError(f"sequence {row}: it has {len(sequence)} tokens, but its loss mask has length {len(mask)}")
        if not 2 <= len(sequence) <= length + 1:
            raise ValueError(
                f"sequence {row}: it has {len(sequence)} tokens, but must have 2 to {length + 1}: truncate or drop it"
            )
        num_positions = len(sequence) - 1
        input_ids[row, :num_positions] = torch.tensor(sequence[:-1])
        targets[row, :num_positions] = torch.tensor(sequence[1:])
        loss_mask[row, :num_positions] = torch.tensor(mask[1:])
    return Batch(input_ids, targets, loss_mask, row_positions(input_ids), None)


def pair_batch(
    chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]], *, length: int, pad_id: int
) -> PairBatch:
    """Return a `PairBatch` of sequences, each a prompt with its completion, padded on the right to `length` tokens.

    Raises ValueError if the numbers of chosen and rejected sequences differ, or if a sequence is too long or empty.
    """
    if len(chosen) != len(rejected):
        raise ValueError(
            f"there are {len(chosen)} chosen but {len(rejected)} rejected sequences: every pair needs one of each"
        )
    return PairBatch(
        *pad_sequences(chosen, length=length, pad_id=pad_id), *pad_sequences(rejected, length=length, pad_id=pad_id)
    )


def pad_sequences(sequences: Sequence[Sequence[int]], *, length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Return token ids [B, length], padded on the right, and the index [B] of each sequence's last token.

    Raises ValueError if a sequence is too long or empty.
    """
    ids = torch.full((len(sequences), length), pad_id)
    for row, sequence in enumerate(sequences):
        if not 1 <= len(sequence) <= length:
            raise ValueError(
                f"sequence {row}: it has {len(sequence)} tokens, but must have 1 to {length}: truncate or drop it"
            )
        ids[row, : len(sequence)] = torch.tensor(sequence)
    return ids, torch.tensor([len(sequence) - 1 for sequence in sequences])


def row_positions(input_ids_BT: Tensor) -> Tensor:
    """Return positions [B, T] that count from 0 in each row."""
    rows, length = input_ids_BT.shape
    return torch.arange(length, device=input_ids_BT.device).expand(rows, length)


def map_tensors(batch: B, function: Callable[[Tensor], Tensor]) -> B:
    """Return a copy of the batch with every tensor replaced by `function(tensor)`, also inside of nested batches."""

    def apply(field: object) -> object:
        if isinstance(field, Tensor):
            return function(field)
        return None if field is None else map_tensors(cast(B, field), function)

    return type(batch)(*(apply(field) for field in cast(tuple, batch)))


def _batch_size(batch: tuple) -> int:
    first = batch[0]
    return first.shape[0] if isinstance(first, Tensor) else _batch_size(first)
