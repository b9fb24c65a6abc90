"""The batches that objectives read: named tuples of tensors, the batch dimension first in every one.

Shape legend: B rows, T tokens of a row. Token ids, positions and indices are int64, masks bool, the rest float32.
Position t of a row is the state after reading input t; its target is the next token. So a log-probability, an
advantage or a value at t belongs to the choice of target t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

PADDING_DOCUMENT = -1


class Batch(NamedTuple):
    """Rows of tokens with next-token targets: packed documents, or one sequence a row."""

    input_ids: Tensor
    """[B, T]"""
    targets: Tensor
    """[B, T], the token after input t; any valid id where loss_mask is false."""
    loss_mask: Tensor
    """[B, T] bool, true where target t counts in the loss."""
    positions: Tensor
    """[B, T], from 0 inside each document."""
    document_ids: Tensor | None
    """[B, T], attention stays within equal ids, -1 is padding; None when each row is one sequence padded on the
    right, which causal attention alone keeps apart from its padding."""

    @property
    def num_tokens(self) -> int:
        """Number of input positions, padding included where document_ids is None."""
        if self.document_ids is None:
            return self.input_ids.numel()
        return int((self.document_ids != PADDING_DOCUMENT).sum())


class PairBatch(NamedTuple):
    """A preferred and a rejected sequence for each of B prompts, padded on the right."""

    chosen_ids: Tensor
    """[B, T], prompt and preferred completion."""
    chosen_last: Tensor
    """[B], index of the last real token."""
    rejected_ids: Tensor
    """[B, T], prompt and rejected completion."""
    rejected_last: Tensor
    """[B]"""

    @property
    def num_tokens(self) -> int:
        """Number of real tokens of both sides."""
        return int((self.chosen_last + 1).sum() + (self.rejected_last + 1).sum())


class PolicyBatch(NamedTuple):
    """Sampled sequences with what the policy loss needs; tokens.loss_mask marks the completion tokens."""

    tokens: Batch
    behavior_logprobs: Tensor
    """[B, T], of target t under the policy that sampled it, at the sampling temperature."""
    advantages: Tensor
    """[B, T]"""
    reference_logprobs: Tensor | None
    """[B, T], of target t under the reference at the same temperature; None when the loss has no KL penalty."""

    @property
    def num_tokens(self) -> int:
        return self.tokens.num_tokens


class ValueBatch(NamedTuple):
    """Sampled sequences with what the critic's loss needs; tokens.loss_mask marks the completion tokens."""

    tokens: Batch
    old_values: Tensor
    """[B, T], the critic's values when the returns were computed."""
    returns: Tensor
    """[B, T], what the values should become."""

    @property
    def num_tokens(self) -> int:
        return self.tokens.num_tokens


class TrainBatch(Protocol):
    """Any named tuple of tensors (nested, optional ones may be None) with the batch dimension first."""

    @property
    def num_tokens(self) -> int: ...


B = TypeVar("B", bound=TrainBatch)


def to_device(batch: B, device: torch.device) -> B:
    """The same batch with every tensor on `device`."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def split_rows(batch: B, num_rows: int) -> Iterator[B]:
    """Micro-batches of `num_rows` rows, in order; the last may be smaller."""
    total = _num_rows(cast(tuple, batch))
    for start in range(0, total, num_rows):
        yield map_tensors(batch, lambda tensor, start=start: tensor[start : start + num_rows])


def batch_from_sequences(
    sequences: Sequence[Sequence[int]],
    loss_masks: Sequence[Sequence[bool]],
    *,
    length: int,
    pad_id: int,
) -> Batch:
    """A `Batch` with one sequence a row, padded on the right to `length` positions.

    A sequence of n tokens gives n - 1 positions. loss_masks[i][j] says whether token j of sequence i is to be
    learned (its first token never is, nothing predicts it). Raises ValueError when a sequence does not fit.
    """
    input_ids = torch.full((len(sequences), length), pad_id)
    targets = torch.full((len(sequences), length), pad_id)
    loss_mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, (sequence, mask) in enumerate(zip(sequences, loss_masks, strict=True)):
        if len(sequence) != len(mask):
            raise ValueError(f"sequence {row}: {len(sequence)} tokens but a loss mask of {len(mask)}")
        if not 2 <= len(sequence) <= length + 1:
            raise ValueError(f"sequence {row}: {len(sequence)} tokens, must be 2 to {length + 1}: cut or drop it")
        num_positions = len(sequence) - 1
        input_ids[row, :num_positions] = torch.tensor(sequence[:-1])
        targets[row, :num_positions] = torch.tensor(sequence[1:])
        loss_mask[row, :num_positions] = torch.tensor(mask[1:])
    return Batch(input_ids, targets, loss_mask, row_positions(input_ids), None)


def pair_batch(
    chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]], *, length: int, pad_id: int
) -> PairBatch:
    """A `PairBatch` of whole sequences (prompt and completion), padded on the right to `length`.

    Raises ValueError for unequal numbers of sequences, and for one that does not fit.
    """
    if len(chosen) != len(rejected):
        raise ValueError(f"{len(chosen)} chosen but {len(rejected)} rejected sequences: they come in pairs")
    return PairBatch(
        *pad_sequences(chosen, length=length, pad_id=pad_id), *pad_sequences(rejected, length=length, pad_id=pad_id)
    )


def pad_sequences(sequences: Sequence[Sequence[int]], *, length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids [B, length] padded on the right, and the index [B] of each row's last real token.

    Raises ValueError for a sequence that does not fit.
    """
    ids = torch.full((len(sequences), length), pad_id)
    for row, sequence in enumerate(sequences):
        if not 1 <= len(sequence) <= length:
            raise ValueError(f"sequence {row}: {len(sequence)} tokens, must be 1 to {length}: cut or drop it")
        ids[row, : len(sequence)] = torch.tensor(sequence)
    return ids, torch.tensor([len(sequence) - 1 for sequence in sequences])


def row_positions(input_ids_BT: Tensor) -> Tensor:
    """Positions [B, T] counted from the start of each row."""
    rows, length = input_ids_BT.shape
    return torch.arange(length, device=input_ids_BT.device).expand(rows, length)


def map_tensors(batch: B, function: Callable[[Tensor], Tensor]) -> B:
    """The same batch with the function applied to every tensor."""

    def apply(field: object) -> object:
        if isinstance(field, Tensor):
            return function(field)
        return None if field is None else map_tensors(cast(B, field), function)

    return type(batch)(*(apply(field) for field in cast(tuple, batch)))


def _num_rows(batch: tuple) -> int:
    first = batch[0]
    return first.shape[0] if isinstance(first, Tensor) else _num_rows(first)
