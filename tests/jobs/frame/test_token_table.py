"""A model folder whose tokenizer has more ids than the model has embeddings is refused before any work."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.tokens.tokenizer import save_tokenizer, vocab_size
from data.tokens.tokenizer_training import train_tokenizer
from jobs.cli import _open_model
from jobs.frame.artifact import open_artifact
from jobs.frame.pipeline import load_pipeline, load_stage
from jobs.frame.token_table import check_token_table

SIZES = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def write_model(folder: Path, *, rows: int, added: dict[str, Any] | None = None) -> Path:
    """A model folder with a tokenizer of 270 ids. `added` are settings of tokenizer_config.json."""
    save_tokenizer(train_tokenizer(["the cat and the hat sat"] * 5, size=270), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | (added or {})))
    (folder / "config.json").write_text(json.dumps({**SIZES, "vocab_size": rows}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def check(folder: Path) -> None:
    artifact = open_artifact(str(folder))
    assert artifact is not None
    check_token_table(artifact)


def test_one_id_more_than_the_model_has_rows_is_refused(tmp_path: Path) -> None:
    check(write_model(tmp_path / "equal", rows=270))
    check(write_model(tmp_path / "padded", rows=320))  # Many models have rows that no token uses.
    with pytest.raises(ValueError, match=r"token '.*' with the id 269, .* for the ids below 269 only"):
        check(write_model(tmp_path / "less", rows=269))


def test_special_tokens_count_that_only_the_config_names(tmp_path: Path) -> None:
    # transformers gives a token that tokenizer.json does not have the next id, as for a pad token that was added late.
    folder = write_model(tmp_path / "pad", rows=270, added={"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match=r"token '\[PAD\]' with the id 270, .* below 270 .*resize_token_embeddings"):
        check(folder)
    assert vocab_size(folder) == 271
    folder = write_model(tmp_path / "extra", rows=271, added={"additional_special_tokens": ["<x>", "<y>"]})
    with pytest.raises(ValueError, match="token '<y>' with the id 271"):
        check(folder)


def test_a_changed_folder_is_checked_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="269"):
        check(write_model(tmp_path / "model", rows=269))
    check(write_model(tmp_path / "model", rows=270))


CONFIGS = {
    "sft": {"init": "MODEL", "chats": ["chats.jsonl"]},
    "reward": {"init": "MODEL", "preferences": ["chats.jsonl"]},
    "rlhf": {"policy": "MODEL", "prompts": ["chats.jsonl"], "held_out_prompts": ["chats.jsonl"], "verifier": "v.py:v"},
    "evaluate": {"models": {"a": "MODEL"}, "stereotype_pairs": "configs/tiny/stereotype_pairs.jsonl"},
    "serve": {"model": "MODEL", "questions": ["Hello?"]},
    "compress": {"model": "MODEL", "text": "MODEL"},
}


@pytest.mark.parametrize("stage", CONFIGS)
def test_every_stage_refuses_the_model_when_its_config_is_read(tmp_path: Path, stage: str) -> None:
    (tmp_path / "chats.jsonl").write_text('{"prompt": "a", "response": "b", "chosen": "b", "rejected": "c"}\n' * 2)
    (tmp_path / "v.py").write_text("def v(prompt, completion, record):\n    return 1.0\n")
    folder = write_model(tmp_path / "model", rows=269)
    text = json.dumps(CONFIGS[stage]).replace("MODEL", str(folder))
    for name in ("chats.jsonl", "v.py"):
        text = text.replace(name, str(tmp_path / name))
    (tmp_path / f"{stage}.yaml").write_text(text)  # JSON is YAML
    errors = load_stage(stage, tmp_path / f"{stage}.yaml").errors
    assert "with the id 269" in errors[stage] and f"{stage}.yaml" in errors[stage]


def test_a_pipeline_tells_it_before_the_first_stage_runs_and_serve_before_it_starts(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", rows=269)
    (tmp_path / "serve.yaml").write_text(json.dumps({"model": str(folder), "questions": ["a"]}))
    (tmp_path / "pipeline.yaml").write_text(json.dumps({"store": str(tmp_path / "store"), "stages": ["serve"]}))
    assert "with the id 269" in load_pipeline(tmp_path / "pipeline.yaml").errors["serve"]
    with pytest.raises(ValueError, match="with the id 269"):
        _open_model(str(folder))
