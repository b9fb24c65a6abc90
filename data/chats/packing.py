"""Chats packed side by side into rows of a fixed length."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.chats.template import RenderedChat
from data.tokens.training_rows import PADDING_DOCUMENT, PaddedRows

PackedRows = PaddedRows
"""Chats packed side by side, as arrays with the fields of a training batch, [rows, T]."""

_OPEN_ROWS = 64  # how many unfinished rows `pack_chats` looks through for room


class FittingChats(NamedTuple):
    chats: list[RenderedChat]
    num_truncated: int
    """How many of them lost their end."""
    num_without_reply: int
    """How many were left out because no reply begins within the row."""


def truncate_chats(chats: Sequence[RenderedChat], *, length: int) -> FittingChats:
    """The chats as they fit into rows of `length` positions, of which one of n tokens takes n - 1.

    A longer chat is cut at its end, and left out when none of the assistant's tokens remains.
    """
    cut = [RenderedChat(chat.ids[: length + 1], chat.loss_mask[: length + 1]) for chat in chats]
    fitting = [chat for chat in cut if any(chat.loss_mask[1:])]
    num_truncated = sum(
        any(new.loss_mask[1:]) and len(new.ids) < len(old.ids) for new, old in zip(cut, chats, strict=True)
    )
    return FittingChats(fitting, num_truncated, len(chats) - len(fitting))


def pack_chats(chats: Sequence[RenderedChat], *, length: int, pad_id: int) -> PackedRows:
    """Chats side by side in rows of `length` positions: each goes into the first of the last open rows with room.

    The chats must fit (`truncate_chats`).
    """
    rows: list[list[RenderedChat]] = []
    room: list[int] = []
    for chat in chats:
        needed = len(chat.ids) - 1
        assert needed <= length, f"a chat of {needed} positions in rows of {length}; fit it first"
        first = max(0, len(rows) - _OPEN_ROWS)
        row = next((row for row in range(first, len(rows)) if room[row] >= needed), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(chat)
        room[row] -= needed
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
