"""The demo's chat files: disjoint, balanced in length, and the same each time."""

import importlib.util
import itertools
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from jobs.frame.config_loader import load_yaml

TINY = Path(__file__).parent.parent / "configs/tiny"
SIZES = {"sft": 40, "preferences": 30, "preferences_held_out": 4, "prompts": 10, "prompts_held_out": 5}


@pytest.fixture(scope="module")
def chats() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_chats", TINY / "chats.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(TINY))  # as when the script is run: it imports gold.py beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TINY))
    module.SIZES = SIZES
    return module


@pytest.fixture(scope="module")
def made(chats: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """The files made from 400 invented talks of six messages, every third of which asks something."""
    folder = tmp_path_factory.mktemp("text")
    talks: dict[str, dict] = {}
    for talk in range(400):
        messages = []
        for turn in range(6):
            name = "".join("abcdefghij"[int(digit)] for digit in str(talk))
            words = f"talk {name} turns {'abcdef'[turn]} goes on {'and on ' * ((talk + turn) % 5)}"
            messages.append([{"text": f"{words}right then?" if (talk + turn) % 3 == 0 else f"{words}like this."}])
        talks[f"talk-{talk}"] = {"messages": messages}
    with zipfile.ZipFile(folder / "chitchat_dataset-0.whl", "w") as archive:
        archive.writestr("chitchat_dataset/dataset.json", json.dumps(talks))
    for out in ("a", "b"):
        chats.main(str(folder), str(folder / out))
    assert all(
        (folder / "a" / f"{name}.jsonl").read_bytes() == (folder / "b" / f"{name}.jsonl").read_bytes() for name in SIZES
    )
    return {
        name: [json.loads(line) for line in (folder / "a" / f"{name}.jsonl").read_text().splitlines()] for name in SIZES
    }


def talks_of(records: list[dict]) -> set[str]:
    prompts = [record["prompt"] if "prompt" in record else record["messages"][0]["content"] for record in records]
    return {prompt.split()[1] for prompt in prompts}


def test_files_have_their_sizes_and_disjoint_talks(made: dict[str, list[dict]]) -> None:
    assert {name: len(records) for name, records in made.items()} == SIZES
    for one, other in itertools.combinations(made, 2):
        assert not talks_of(made[one]) & talks_of(made[other])


def test_the_chosen_reply_asks_and_the_rejected_one_is_as_long_and_does_not(made: dict[str, list[dict]]) -> None:
    own = 0
    for record in made["preferences"] + made["preferences_held_out"]:
        chosen, rejected = record["chosen"], record["rejected"]
        assert "?" in chosen and "?" not in rejected
        assert abs(len(chosen) - len(rejected)) <= 0.2 * min(len(chosen), len(rejected))
        talks = [text.split()[1] for text in (record["prompt"], chosen, rejected)]
        assert talks[0] in talks[1:] and talks[1] != talks[2]  # one reply is this talk's, the other a stranger's
        own += talks[0] == talks[1]
    # That the chosen reply belongs to the prompt must be no cue: half of them do.
    assert own == 17


def test_no_reply_stands_in_two_pairs(made: dict[str, list[dict]]) -> None:
    pairs = made["preferences"] + made["preferences_held_out"]
    replies = [record[side] for record in pairs for side in ("chosen", "rejected")]
    assert len(replies) == len(set(replies))


def test_held_out_talks_are_those_that_the_shards_hold_out(chats: ModuleType) -> None:
    assert load_yaml(TINY / "shards.yaml")["validation_fraction"] == chats.VALIDATION_FRACTION
    assert load_yaml(TINY / "corpus.yaml")["sources"][0]["name"] == chats.SOURCE
