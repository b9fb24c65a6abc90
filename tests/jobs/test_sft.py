"""The chats that fine-tuning takes."""

import json
from pathlib import Path

import pytest

from jobs.sft import SftConfig, check_chats


def test_fewer_than_two_chats_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "Hi", "response": "Hello"}) + "\n")
    with pytest.raises(
        ValueError, match="chats: found 1, but at least 2 are needed, one to train on and one to hold out"
    ):
        check_chats(SftConfig(chats=[str(tmp_path / "a.jsonl")]))
