"""The serve stage: a real server that answers the official client and leaves nothing behind."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from actors.server import API_KEY_VARIABLE, MODEL_NAME, TimedAnswer, ask
from cluster.storage import Storage
from cluster.tracking import Tracker
from data.tokens.tokenizer import read_chat_special_tokens, save_tokenizer
from data.tokens.tokenizer_recipe import MIN_BPE_SIZE
from data.tokens.tokenizer_training import train_tokenizer
from jobs import serve as stage
from jobs.frame.artifact import Artifact
from jobs.frame.config_loader import build
from jobs.frame.record import Record
from jobs.frame.stage import Context
from jobs.serve import STAGE, ServeConfig
from model.huggingface import save_hf_model
from model.huggingface_config import SpecialTokens
from model.quantize import compress_folder
from model.transformer import Transformer
from model.transformer_config import TransformerConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=MIN_BPE_SIZE, width=64, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=96, max_length=128
    )
    save_tokenizer(train_tokenizer([""], size=MIN_BPE_SIZE), folder)
    state = Transformer(config).state_dict()
    save_hf_model(
        folder,
        state,
        config,
        special_tokens=SpecialTokens(**read_chat_special_tokens(folder)._asdict()),
        tokenizer_folder=folder,
    )
    return folder


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    model = Artifact(Storage(str(tmp_path)), Record(id="sft-1", stage="sft", kind="model"))
    with pytest.raises(ValueError, match="has no chat template"):
        STAGE.check_inputs(build(ServeConfig, {"model": "sft"}), {"model": model})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"questions": []}, "questions"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_mistakes_are_named_before_work(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        STAGE.check(build(ServeConfig, {"model": "sft", **changes}))


@pytest.mark.slow
def test_the_stage_serves_a_compressed_model_to_those_with_the_key_and_leaves_no_process_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress_folder(folder, tmp_path / "int8" / "model")
    record = Record(id="compress-1", stage="compress", kind="compressed_model")
    model = Artifact(Storage(str(tmp_path / "int8")), record)
    config = build(
        ServeConfig, {"model": "compress", "questions": ["hello", "hello"], "max_new_tokens": 8, "precision": "float32"}
    )
    output = Storage(str(tmp_path / "out"))
    group, answered = set[int](), list[str | None]()

    def complete(client: openai.OpenAI, prompt: list[int]) -> str | None:
        made = client.completions.create(model=MODEL_NAME, prompt=prompt, seed=1, max_tokens=4, temperature=1.0)
        return made.choices[0].finish_reason

    def ask_after_others(url: str, question: str, **settings: Any) -> TimedAnswer:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="right", max_retries=0)
        assert [model.id for model in client.models.list()] == [MODEL_NAME]
        group.update(processes_of(str(tmp_path / "int8")))
        if not answered:  # more prompt tokens than one prefill takes, each with a seed
            prompts = [[7 + number] * 100 for number in range(64)]
            with ThreadPoolExecutor(64) as pool:
                answered.extend(pool.map(lambda one: complete(client, one), prompts))
        return ask(url, question, **settings)

    monkeypatch.setenv(API_KEY_VARIABLE, "right")
    monkeypatch.setattr(stage, "ask", ask_after_others)
    STAGE.check_inputs(config, {"model": model})
    tracker = Tracker(storage=output, run_id="test", name="serve", group="test")
    summary = STAGE.run(config, Context(output=output, inputs={"model": model}, tracker=tracker))
    first, second = output.read_json("answers.json")
    assert first["answer"] == second["answer"] and first["finish_reason"] in ("length", "stop")
    assert 1 <= first["tokens"] <= 8 and "seconds" not in first
    assert summary.questions == 2 and 0 < summary.first_token_s <= summary.latency_s
    assert len(answered) == 64 and set(answered) <= {"length", "stop"}
    assert group and not any(Path(f"/proc/{pid}").exists() for pid in group)


def processes_of(word: str) -> list[int]:
    """Ids of this user's living processes whose command line holds the word."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if (
                entry.isdigit()
                and int(entry) != os.getpid()
                and word.encode() in Path(f"/proc/{entry}/cmdline").read_bytes()
            ):
                found.append(int(entry))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
