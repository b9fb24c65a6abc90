"""Truncation of chats, and packing of chats into rows."""

import numpy as np

from data.chats.packing import fill_rows, plan_rows, truncate_chat
from data.chats.template import RenderedChat


def chat_of(*ids: int, num_reply_tokens: int) -> RenderedChat:
    """Return a chat whose last `num_reply_tokens` tokens are the assistant's."""
    loss_mask = [False] * (len(ids) - num_reply_tokens) + [True] * num_reply_tokens
    return RenderedChat(np.array(ids, dtype=np.int32), np.array(loss_mask))


def pack(chats: list[RenderedChat], length: int, pad_id: int):
    plan = plan_rows(np.arange(len(chats)), np.array([len(chat.ids) for chat in chats]), length=length)
    rows = [
        [chats[number] for number in plan.chats[first:stop]]
        for first, stop in zip(plan.row_starts, plan.row_starts[1:], strict=False)
    ]
    return fill_rows(rows, length=length, pad_id=pad_id)


def test_chats_are_added_to_the_first_row_with_enough_free_positions() -> None:
    long, middle, short = (
        chat_of(1, 2, 3, 4, 5, num_reply_tokens=2),
        chat_of(6, 7, 8, 9, num_reply_tokens=1),
        chat_of(10, 11, num_reply_tokens=1),
    )
    rows = pack([long, middle, short], length=5, pad_id=99)
    # The chat of 4 positions and that of 1 fit into the first row. The chat of 3 positions needs a second row.
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 10], [6, 7, 8, 99, 99]]
    assert rows.targets.tolist() == [[2, 3, 4, 5, 11], [7, 8, 9, 99, 99]]
    assert rows.loss_mask.astype(int).tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]
    assert rows.document_ids.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, -1, -1]]


def test_a_long_chat_is_truncated_and_one_without_a_learned_token_left_out() -> None:
    truncated = truncate_chat(chat_of(1, 2, 3, 4, 5, num_reply_tokens=3), length=2)
    assert truncated is not None and truncated.ids.tolist() == [1, 2, 3]
    assert truncate_chat(chat_of(6, 7, 8, 9, num_reply_tokens=1), length=2) is None
    rows = pack([truncated, chat_of(6, 7, 8, num_reply_tokens=1)], length=2, pad_id=0)
    assert rows.targets.tolist() == [[2, 3], [7, 8]] and rows.loss_mask.tolist() == [[False, True]] * 2


def test_packing_keeps_every_token_of_the_loss_mask_once() -> None:
    generator = np.random.default_rng(0)
    chats = [
        chat_of(*generator.integers(1, 50, size=n), num_reply_tokens=int(n) // 2)
        for n in generator.integers(2, 12, size=300)
    ]
    rows = pack(chats, length=16, pad_id=0)
    reply_tokens = sorted(token for chat in chats for token in chat.ids[chat.loss_mask].tolist())
    assert sorted(rows.targets[rows.loss_mask].tolist()) == reply_tokens
    assert (rows.document_ids >= 0).mean() > 0.9
