"""Training rows, and the arrays that a batch of them becomes.

A training row is a short piece of a token stream: up to T targets and their inputs, where T is the sequence length.
In a batch, every row is padded to T positions. Array dimensions: B rows, T positions.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

PADDING_DOCUMENT = -1
"""The document id of padding positions."""


class TrainingRow(NamedTuple):
    """A training row before padding."""

    inputs: np.ndarray
    """Token ids that the model reads, int64 [n] with n <= T."""
    targets: np.ndarray
    """Token ids that the model predicts, int64 [n]: for each input the next token of its document, or the separator
    after the last one."""
    document_starts: np.ndarray
    """Indices of the inputs at which a document begins. The input there is the token that documents begin with."""
    num_context: int = 0
    """Number of targets at the beginning of the row that are not scored, because the previous row has scored them."""


class PaddedRows(NamedTuple):
    """Training rows as arrays [B, T], padded on the right. The fields are those of a training batch.

    All arrays are int64, except `loss_mask`. At the positions of the padding, `positions` is 0 and `loss_mask` is
    False. There, `input_ids` and `targets` are 0 in the rows of `pad_rows`; `PackedRows` have another token id.
    """

    input_ids: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray
    """True where the target is part of the loss, bool."""
    positions: np.ndarray
    """Position of each input inside its document. The count begins at 0 where a document or the row begins."""
    document_ids: np.ndarray
    """For each input, the number of its document in the row. The first document that begins in the row has the number
    1, and a document that began before the row has the number 0. Padding has -1."""


def pad_rows(rows: Sequence[TrainingRow], sequence_length: int) -> PaddedRows:
    """Return the rows as arrays [B, T]. Rows with fewer than T targets are padded on the right."""
    shape = (len(rows), sequence_length)
    padded = PaddedRows(
        input_ids=np.zeros(shape, dtype=np.int64),
        targets=np.zeros(shape, dtype=np.int64),
        loss_mask=np.zeros(shape, dtype=np.bool_),
        positions=np.zeros(shape, dtype=np.int64),
        document_ids=np.full(shape, PADDING_DOCUMENT, dtype=np.int64),
    )
    for index, row in enumerate(rows):
        num_targets = len(row.targets)
        is_start = np.zeros(num_targets, dtype=np.int64)
        is_start[row.document_starts] = 1
        positions_in_row = np.arange(num_targets)
        padded.input_ids[index, :num_targets] = row.inputs
        padded.targets[index, :num_targets] = row.targets
        padded.loss_mask[index, row.num_context : num_targets] = True
        padded.document_ids[index, :num_targets] = np.cumsum(is_start)
        newest_start = np.maximum.accumulate(positions_in_row * is_start)
        padded.positions[index, :num_targets] = positions_in_row - newest_start
    return padded


def document_rows(tokens: np.ndarray, sequence_length: int, *, overlap: int = 0) -> Iterator[TrainingRow]:
    """Yield the rows of one document such that every target is scored exactly once.

    `tokens` begin and end with the special tokens around a document. Every row after the first begins with `overlap`
    tokens that the model reads as context but that are not scored again, so every scored target of these rows has at
    least `overlap` tokens of context. With an overlap of 0, rows follow one another without shared targets.

    Raises ValueError if the overlap is negative or not below the sequence length.
    """
    if not 0 <= overlap < sequence_length:
        raise ValueError(f"overlap: {overlap} must be at least 0 and below the sequence length ({sequence_length})")
    num_targets = len(tokens) - 1
    num_scored = 0
    while num_scored < num_targets:
        num_context = overlap if num_scored else 0
        first = num_scored - num_context
        last = min(first + sequence_length, num_targets)
        document_starts = np.array([0] if first == 0 else [], dtype=np.int64)
        yield TrainingRow(tokens[first:last], tokens[first + 1 : last + 1], document_starts, num_context)
        num_scored = last
