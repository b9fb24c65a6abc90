"""The preferences that the reward model is trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from data.tokens.tokenizer import save_tokenizer
from data.tokens.tokenizer_training import train_tokenizer
from jobs.frame.artifact import Artifact
from jobs.frame.record import Record
from jobs.frame.stage import Context
from jobs.frame.training_run import TrainingSummary
from jobs.reward import PairReader, RewardConfig, RewardPayload, check_preferences, run


def write(path: Path, *records: object) -> list[str]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(path)]


def test_the_pairs_of_a_prompt_are_on_one_side_and_ties_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [{"prompt": f"p{n % 10}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)]
    ties = [{"prompt": "p1", "chosen": "same", "rejected": "same"}] * 4
    preferences = write(tmp_path / "a.jsonl", *pairs, *ties, {"prompt": "p1", "chosen": "x" * 99, "rejected": "y"})
    save_tokenizer(train_tokenizer(["good bad"] * 3, size=270), tmp_path / "model")
    model = Artifact(Storage(str(tmp_path / "model")), Record(id="m", stage="huggingface", kind="model", digest="0"))
    output, texts = Storage(str(tmp_path / "out")), dict[str, list[str]]()
    training = TrainingSummary(
        parameters=1, steps=1, tokens=1, loss=1.0, validation_loss=1.0, tokens_per_s=1.0, mfu=None
    )

    def read_pairs(_: object, payload: RewardPayload, *arguments: object, **__: object) -> None:
        from data.chats.template import load_chat_tokenizer

        decode = load_chat_tokenizer(tmp_path / "model").decode
        for side, numbers in (("train", payload.train), ("held-out", payload.held_out)):
            batch: Any = PairReader(payload, numbers).take(range(len(PairReader(payload, numbers))))
            ids = zip(batch.chosen_ids.tolist(), batch.rejected_ids.tolist(), strict=True)
            texts[side] = [f"{decode(chosen)}/{decode(rejected)}" for chosen, rejected in ids]

    monkeypatch.setattr("jobs.reward.run_training", read_pairs)
    monkeypatch.setattr("jobs.reward.summarize", lambda *_, **__: training)
    monkeypatch.setattr("jobs.reward.latest_values", lambda _: {"validation/accuracy": 1.0, "validation/margin": 1.0})
    config = RewardConfig(preferences=preferences, sequence_length=32)
    tracker: Any = None
    summary = run(config, Context(output=output, inputs={"init": model}, tracker=tracker))
    assert (summary.pairs, summary.pairs_too_long, summary.pairs_held_out) == (40, 1, 4)
    assert (summary.preferences.ties, summary.preferences.records) == (4, 45)
    assert [line["line"] for line in output.read_jsonl("quarantine/preferences.jsonl")] == [41, 42, 43, 44]
    prompts = {side: {text[: text.index("<|end|>")] for text in found} for side, found in texts.items()}
    assert len(prompts["held-out"]) == 1 and not prompts["held-out"] & prompts["train"]
    assert all(text.count("good") == 1 and text.index("good") < text.index("bad") for text in texts["train"])
    assert len(texts["train"]) == 36 and len(texts["held-out"]) == 4


def test_preferences_of_which_none_has_a_preferred_completion_are_refused_before_any_work(tmp_path: Path) -> None:
    ties = write(tmp_path / "a.jsonl", *[{"prompt": "p", "chosen": "same", "rejected": "same"}] * 5)
    with pytest.raises(ValueError, match=r"preferences: found 0 that can be used \(.*chosen and rejected are equal"):
        check_preferences(RewardConfig(preferences=ties))
