"""Packing chats into rows."""

import numpy as np

from data.chats.packing import fit_chats, pack
from data.chats.template import RenderedChat


def chat_of(*ids: int, learned: int) -> RenderedChat:
    """A chat whose last `learned` tokens are the assistant's."""
    return RenderedChat(list(ids), [False] * (len(ids) - learned) + [True] * learned)


def test_chats_share_rows_in_order_and_fill_the_first_room() -> None:
    long, middle, short = chat_of(1, 2, 3, 4, 5, learned=2), chat_of(6, 7, 8, 9, learned=1), chat_of(10, 11, learned=1)
    rows = pack([long, middle, short], length=5, pad_id=99)
    # 4 positions, then 3 that need a new row, then 1 that fits behind the first.
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 10], [6, 7, 8, 99, 99]]
    assert rows.targets.tolist() == [[2, 3, 4, 5, 11], [7, 8, 9, 99, 99]]
    assert rows.loss_mask.astype(int).tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]
    assert rows.document_ids.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, -1, -1]]


def test_a_long_chat_is_cut_and_one_without_a_reply_left_goes_and_both_are_counted() -> None:
    chats = [chat_of(1, 2, 3, 4, 5, learned=3), chat_of(6, 7, 8, 9, learned=1), chat_of(6, 7, 8, learned=1)]
    fitting = fit_chats(chats, length=2)
    assert (len(fitting.chats), fitting.num_cut, fitting.num_left_out) == (2, 1, 1)
    rows = pack(fitting.chats, length=2, pad_id=0)
    assert rows.targets.tolist() == [[2, 3], [7, 8]] and rows.loss_mask.tolist() == [[False, True]] * 2


def test_packing_keeps_every_learnt_token_once() -> None:
    generator = np.random.default_rng(0)
    chats = [
        chat_of(*generator.integers(1, 50, size=n), learned=int(n) // 2) for n in generator.integers(2, 12, size=300)
    ]
    rows = pack(chats, length=16, pad_id=0)
    learned = sorted(int(token) for chat in chats for token, own in zip(chat.ids, chat.learned, strict=True) if own)
    assert sorted(rows.targets[rows.loss_mask].tolist()) == learned
    assert (rows.document_ids >= 0).mean() > 0.9
