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
the padding are the argument `pad_id` of `pack_chats`."""

_NUM_OPEN_ROWS = 64
"""Number of most recently added rows that `pack_chats` searches for free positions. Older rows do not change."""


class TruncatedChats(NamedTuple):
    """The result of `truncate_chats`: chats that fit into rows."""

    chats: list[RenderedChat]
    num_truncated: int
    """Number of chats in `chats` that were truncated."""
    num_without_reply: int
    """Number of chats that were left out because, after truncation, they contain no token of the assistant."""


def truncate_chats(chats: Sequence[RenderedChat], *, length: int) -> TruncatedChats:
    """Truncate the chats to rows of `length` positions, which are `length` + 1 tokens.

    Chats that then have no token of the assistant among their targets are left out.
    """
    truncated = [RenderedChat(chat.ids[: length + 1], chat.loss_mask[: length + 1]) for chat in chats]
    kept = [chat for chat in truncated if any(chat.loss_mask[1:])]
    num_truncated = sum(
        any(new.loss_mask[1:]) and len(new.ids) < len(old.ids) for new, old in zip(truncated, chats, strict=True)
    )
    return TruncatedChats(kept, num_truncated, len(chats) - len(kept))


def pack_chats(chats: Sequence[RenderedChat], *, length: int, pad_id: int) -> PackedRows:
    """Pack chats into rows of `length` positions. A chat may have at most `length` + 1 tokens (see `truncate_chats`).

    Each chat is added to the first of the last `_NUM_OPEN_ROWS` rows that has enough free positions, or to a new row.
    Positions that remain free are padding, with `pad_id` as input and target.
    """
    rows: list[list[RenderedChat]] = []
    free_positions: list[int] = []
    for chat in chats:
        num_positions = len(chat.ids) - 1
        assert num_positions <= length, (
            f"a chat has {num_positions} positions, but a row has {length}; truncate it first"
        )
        first_open = max(0, len(rows) - _NUM_OPEN_ROWS)
        row = next((row for row in range(first_open, len(rows)) if free_positions[row] >= num_positions), len(rows))
        if row == len(rows):
            rows.append([])
            free_positions.append(length)
        rows[row].append(chat)
        free_positions[row] -= num_positions
    return _to_arrays(rows, length, pad_id)


def _to_arrays(rows: Sequence[Sequence[RenderedChat]], length: int, pad_id: int) -> PackedRows:
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
