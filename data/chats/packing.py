"""Packing of chats: several chats, one after the other, fill a training row of a fixed length.

A chat of n tokens occupies n - 1 positions of a row: each token except the last is an input, and the next token is its
target.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.chats.template import RenderedChat
from data.tokens.training_rows import PADDING_DOCUMENT, PaddedRows

PackedRows = PaddedRows
"""Packed chats, as arrays of shape [rows, row length] with the fields of a training batch.

The documents of `PaddedRows` are chats here. In `document_ids` the chats of a row are numbered from 0. The token ids of
the padding are the argument `pad_id` of `fill_rows`."""

_NUM_OPEN_ROWS = 64
"""Number of most recently added rows that `plan_rows` searches for free positions. Older rows do not change."""


class RowPlan(NamedTuple):
    """Which chats each row has."""

    chats: np.ndarray
    """Numbers of the chats of all rows, one row after the other, int64."""
    row_starts: np.ndarray
    """Index in `chats` at which each row begins, and the length of `chats` as the last item, int64."""


def truncate_chat(chat: RenderedChat, *, length: int) -> RenderedChat | None:
    """Return a chat that fits into a row of `length` positions, which are `length` + 1 tokens.

    Returns None if the first tokens of the chat that fit contain no learned token among their targets.
    """
    truncated = RenderedChat(chat.ids[: length + 1], chat.loss_mask[: length + 1])
    return truncated if truncated.loss_mask[1:].any() else None


def plan_rows(numbers: np.ndarray, num_tokens: np.ndarray, *, length: int) -> RowPlan:
    """Pack chats into rows of `length` positions. A chat may have at most `length` + 1 tokens (see `truncate_chat`).

    `numbers` are the numbers of the chats to pack, and `num_tokens` the numbers of their tokens. Each chat is added to
    the first of the last `_NUM_OPEN_ROWS` rows that has enough free positions, or to a new row.
    """
    rows: list[list[int]] = []
    free_positions: list[int] = []
    for number, num_positions in zip(numbers.tolist(), (num_tokens - 1).tolist(), strict=True):
        assert num_positions <= length, (
            f"a chat has {num_positions} positions, but a row has {length}; truncate it first"
        )
        first_open = max(0, len(rows) - _NUM_OPEN_ROWS)
        row = next((row for row in range(first_open, len(rows)) if free_positions[row] >= num_positions), len(rows))
        if row == len(rows):
            rows.append([])
            free_positions.append(length)
        rows[row].append(number)
        free_positions[row] -= num_positions
    chats = np.array([number for row in rows for number in row], dtype=np.int64)
    return RowPlan(chats, np.cumsum([0, *map(len, rows)], dtype=np.int64))


def fill_rows(rows: Sequence[Sequence[RenderedChat]], *, length: int, pad_id: int) -> PackedRows:
    """Return the rows as arrays. `rows` has the chats of each row.

    Positions that remain free are padding, with `pad_id` as input and target.
    """
    shape = (len(rows), length)
    packed = PackedRows(
        input_ids=np.full(shape, pad_id, dtype=np.int64),
        targets=np.full(shape, pad_id, dtype=np.int64),
        loss_mask=np.zeros(shape, dtype=np.bool_),
        positions=np.zeros(shape, dtype=np.int64),
        document_ids=np.full(shape, PADDING_DOCUMENT, dtype=np.int64),
    )
    for row, chats in enumerate(rows):
        start = 0
        for number, chat in enumerate(chats):
            span = slice(start, start + len(chat.ids) - 1)
            packed.input_ids[row, span] = chat.ids[:-1]
            packed.targets[row, span] = chat.ids[1:]
            packed.loss_mask[row, span] = chat.loss_mask[1:]
            packed.positions[row, span] = np.arange(len(chat.ids) - 1)
            packed.document_ids[row, span] = number
            start = span.stop
    return packed
