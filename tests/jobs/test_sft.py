"""The chats that fine-tuning takes: what is too few, and who is held out."""

import json
from pathlib import Path

import pytest

from data.chats.template import RenderedChat
from jobs.sft import SftConfig, check_chats, split_chats


def test_fewer_than_two_chats_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "Hi", "response": "Hello"}) + "\n")
    with pytest.raises(ValueError, match="chats: 1 in all, but one is needed to learn from and one to hold out"):
        check_chats(SftConfig(chats=[str(tmp_path / "a.jsonl")]))


def test_fewer_than_two_chats_that_fit_are_refused_with_the_length() -> None:
    config = SftConfig(chats=[], sequence_length=8)
    chat = RenderedChat([1, 2], [False, True])
    for chats in ([], [chat]):
        with pytest.raises(ValueError, match=rf"chats: only {len(chats)} fit sequence_length=8 .*lengthen it or add"):
            split_chats(chats, config)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.99, 3)])
def test_the_last_chats_are_held_out_and_both_sides_have_some(fraction: float, held_out: int) -> None:
    chats = [RenderedChat([number, 0], [False, True]) for number in range(4)]
    train, others = split_chats(chats, SftConfig(chats=[], validation_fraction=fraction))
    assert train + others == chats and len(others) == held_out
