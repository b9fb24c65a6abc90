"""The evaluation stage: what it refuses, what its numbers mean, and one whole run with an engine."""

from __future__ import annotations

import dataclasses
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.completion_measures import accepted_answers
from actors.evaluation_results import EvaluationResults
from cluster.plain import from_plain
from cluster.storage import Storage
from cluster.tracking import Tracker
from data.tokens.encode import fast_encoder
from data.tokens.shard_format import Generation, ShardManifest, write_manifest
from data.tokens.shard_writer import TextDocument, write_shard
from data.tokens.tokenizer import (
    document_tokens,
    fingerprint,
    load_encoder,
    read_chat_special_tokens,
    save_tokenizer,
)
from data.tokens.tokenizer_recipe import MIN_BPE_SIZE, TokenizerRecipe
from data.tokens.tokenizer_training import train_tokenizer
from jobs.compress import STAGE as COMPRESS
from jobs.compress import CompressConfig
from jobs.evaluate import STAGE, EvaluateConfig, read_task_prompts
from jobs.frame.artifact import Artifact
from jobs.frame.config_loader import build
from jobs.frame.record import Record
from jobs.frame.stage import Context
from jobs.frame.stages import find_stage
from model.heads import ScalarModel
from model.huggingface import save_hf_model
from model.huggingface_config import SpecialTokens
from model.quantize import compress_folder
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

PAIRS = "configs/tiny/stereotype_pairs.jsonl"
SIZES: Any = {"width": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 96, "max_length": 128}
TEXTS = [f"document number {number} says {number * number} and little else" for number in range(12)]


TASK = {"name": "a", "prompts": "p"}


def config_of(**changes: Any) -> EvaluateConfig:
    task = {"name": "chat", "prompts": "prompts.jsonl", "measures": ["configs/tiny/gold.py:asks_question"]}
    return build(EvaluateConfig, {"models": {"sft": "sft", "rlhf": "rlhf"}, "generation": [task], **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {}}, "models: must name at least one"),
        ({"compare": [["sft", "ppo"]]}, "compare\\[0\\]: 'ppo' is not one of the models; they are sft, rlhf"),
        ({"compare": [["sft"]]}, "must be a pair"),
        ({"text_models": ["base"]}, "text_models: 'base' is not one"),
        (
            {"generation": [{"name": "a", "prompts": "p", "measures": ["configs/tiny/gold.py:asks_question"] * 2}]},
            r"generation\[0\].measures: asks_question would name several results",
        ),
        ({"generation": [{"name": "a", "prompts": "p"}]}, "generation\\[0\\]: set metrics or measures"),
        ({"generation": [{"name": "a", "prompts": "p", "metrics": ["blue"]}]}, "'blue' is not one of bleu, rouge"),
        (
            {"generation": [{"name": "a", "prompts": "p", "metrics": ["f1", "bleu", "f1"]}]},
            r"generation\[0\].metrics: f1 is listed twice; remove one",
        ),
        ({"generation": 2 * [{"name": "a", "prompts": "p", "metrics": ["f1"]}]}, "names a, a must differ"),
        (
            {"generation": [{"name": "a", "prompts": "p", "measures": ["configs/tiny/gold.py:gone"]}]},
            "generation\\[0\\].measures: .*no function 'gone'; it defines asks_question",
        ),
        ({"generation": [{**TASK, "metrics": ["f1"], "answer_form": "squads"}]}, "answer_form"),
        (
            {"generation": [{**TASK, "metrics": ["bleu"], "answer_form": "squad"}]},
            r"generation\[0\].answer_form: squad would have no effect without one of exact_match, f1",
        ),
        (
            {"generation": [{**TASK, "metrics": ["f1"], "language": "de"}]},
            r"generation\[0\].language: de would have no effect without one of bleu, rouge",
        ),
        ({"generation": [{**TASK, "metrics": ["rouge"], "language": "German"}]}, "'German' must be a code"),
        ({"reward": "reward"}, "reward and preferences: set both"),
        ({"compare_with_xz": True}, "compare_with_xz: set `text` too"),
        ({"sampling": {"max_new_tokens": 0}}, "sampling: "),
        ({"num_resamples": 10}, "num_resamples: 10 must be at least 100"),
    ],
)
def test_mistakes_are_named_before_work(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        STAGE.check(config_of(**changes))
    STAGE.check(config_of())


@pytest.mark.parametrize(
    ("function", "metrics", "is_allowed"),
    [
        ("f1", ["f1"], False),
        ("f1", ["exact_match"], True),
        ("bleu", ["bleu"], False),
        ("rouge", ["rouge"], True),
        ("rouge2", ["rouge"], False),
        ("rouge2", [], True),
        ("distinct_2", [], False),
        ("completion_length", [], False),
    ],
)
def test_a_measure_must_not_have_the_name_of_another_result(
    tmp_path: Path, function: str, metrics: list[str], is_allowed: bool
) -> None:
    path = tmp_path / "measures.py"
    path.write_text(f"def {function}(prompt, completion, record):\n    return 0.0\n")
    task = {"name": "a", "prompts": "p", "measures": [f"{path}:{function}"], "metrics": metrics}
    if is_allowed:
        STAGE.check(config_of(generation=[task]))
    else:
        with pytest.raises(
            ValueError, match=rf"generation\[0\].measures: {function} is already the name of a built-in result"
        ):
            STAGE.check(config_of(generation=[task]))


# Whole runs


def save_model(folder: Path, *, seed: int, scalar: bool = False) -> None:
    config = TransformerConfig(vocab_size=MIN_BPE_SIZE, **SIZES)
    torch.manual_seed(seed)
    model = ScalarModel(config) if scalar else Transformer(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    save_tokenizer(train_tokenizer([""], size=MIN_BPE_SIZE), folder)
    tokens = SpecialTokens(**read_chat_special_tokens(folder)._asdict())
    save_hf_model(folder, model.state_dict(), config, special_tokens=tokens, tokenizer_folder=folder)


def artifact(folder: Path, stage: str) -> Artifact:
    return Artifact(Storage(str(folder)), Record(id=f"{folder.name}-1", stage=stage, kind=find_stage(stage).kind))


def write_shards(folder: Path, tokenizer: Path, texts: Sequence[str] = TEXTS) -> Artifact:
    """Shards with these validation documents."""
    save_tokenizer(load_encoder(tokenizer), folder / "tokenizer")
    begin, end = document_tokens(folder / "tokenizer")
    manifest = ShardManifest(
        tokenizer=fingerprint(folder / "tokenizer"),
        vocab_size=load_encoder(tokenizer).get_vocab_size(),
        begin=begin,
        separator=end,
        sources=("test",),
        generations=(),
    )
    split = Storage(str(folder / "validation"))
    documents = [TextDocument(str(number), text, "test") for number, text in enumerate(texts)]
    shard = write_shard(split, "shard-00000", documents, fast_encoder(folder / "tokenizer"), manifest)
    write_manifest(split, dataclasses.replace(manifest, generations=(Generation(corpus="c", shards=(shard,)),)))
    return artifact(folder, "shards")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(("sft", "rlhf")):
        save_model(root / name / "model", seed=seed)
    save_model(root / "reward" / "model", seed=5, scalar=True)
    write_shards(root / "shards", root / "sft" / "model")
    return {name: artifact(root / name, name) for name in ("sft", "rlhf", "reward", "shards")}


def run(stage: Any, config: Any, inputs: dict[str, Artifact], folder: Path) -> tuple[Any, Storage]:
    stage.check(config)
    stage.check_inputs(config, inputs)
    output = Storage(str(folder))
    tracker = Tracker(storage=output, run_id="test", name=stage.name, group="test")
    summary = stage.run(config, Context(output=output, inputs=inputs, tracker=tracker))
    tracker.close()
    return summary, output


def write_lines(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.slow
def test_a_whole_evaluation(inputs: dict[str, Artifact], ray_session: None, tmp_path: Path) -> None:
    prompts = [{"prompt": f"hello {number}", "answer": "fine, and you?"} for number in range(20)]
    pairs = [{"prompt": f"hello {n}", "chosen": f"yes {n}, you?", "rejected": f"no {n}."} for n in range(10)]
    config = config_of(
        models={"sft": "sft", "same": "sft", "rlhf": "rlhf"},
        text="shards",
        text_models=["sft", "same", "rlhf"],
        compare_with_xz=True,
        generation=[
            {
                "name": "chat",
                "prompts": write_lines(tmp_path / "prompts.jsonl", prompts),
                "measures": ["configs/tiny/gold.py:asks_question"],
                "metrics": ["bleu", "rouge", "exact_match", "f1"],
            }
        ],
        precision="float32",
        sampling={"max_new_tokens": 16, "temperature": 1.0, "precision": "float32"},
        compare=[["sft", "same"], ["sft", "rlhf"]],
        stereotype_pairs=PAIRS,
        reward="reward",
        preferences=[write_lines(tmp_path / "pairs.jsonl", pairs)],
    )
    given = {"models.sft": inputs["sft"], "models.same": inputs["sft"], "models.rlhf": inputs["rlhf"]}
    given |= {"text": inputs["shards"], "reward": inputs["reward"]}
    summary, output = run(STAGE, config, given, tmp_path / "out")
    results = output.read_json("results.json")

    assert results["text"]["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert results["text"]["models"]["sft"] == results["text"]["models"]["same"] != results["text"]["models"]["rlhf"]
    assert 0 < results["text"]["xz_bits_per_byte"] < 8
    chat = results["generation"]["chat"]
    assert chat["prompts"] == 20 and chat["models"]["sft"] == chat["models"]["same"]
    unchanged = [c["difference"] for c in chat["compare"] if c["after"] == "same"]
    assert unchanged and all(change["low"] == change["high"] == 0.0 for change in unchanged)
    assert chat["models"]["sft"]["signatures"]["bleu"].startswith("nrefs:1")
    assert results["bias"]["rlhf"]["all"]["pairs"] == 43
    assert results["reward"]["pairs"] == 10
    samples = [json.loads(line) for line in output.read_bytes("samples.jsonl").decode().splitlines()]
    assert [sample["prompt"] for sample in samples] == [prompt["prompt"] for prompt in prompts]
    gold = [sample["completions"]["sft"]["measures"]["asks_question"] for sample in samples]
    assert np.mean(gold) == pytest.approx(chat["models"]["sft"]["measures"]["asks_question"]["value"])
    assert summary["rlhf/chat/asks_question"] == chat["models"]["rlhf"]["measures"]["asks_question"]["value"]


@pytest.mark.slow
def test_a_compressed_model_is_evaluated_beside_the_original(
    inputs: dict[str, Artifact], ray_session: None, tmp_path: Path
) -> None:
    compress_folder(inputs["sft"].model.local(), tmp_path / "int8" / "model")
    prompts = [{"prompt": f"hello {number}", "answer": "fine"} for number in range(3)] + [{"prompt": "long " * 30}]
    task = {
        "name": "chat",
        "prompts": write_lines(tmp_path / "prompts.jsonl", prompts),
        "measures": ["configs/tiny/gold.py:asks_question"],
    }
    config = config_of(
        models={"sft": "sft", "int8": "compress", "rlhf": "rlhf"},
        text="shards",
        generation=[task],
        precision="float32",
        sampling={"max_new_tokens": 8, "temperature": 1.0, "precision": "float32"},
        compare=[["sft", "int8"]],
        stereotype_pairs=PAIRS,
    )
    compressed = artifact(tmp_path / "int8", "compress")
    given = {"models.sft": inputs["sft"], "models.int8": compressed, "models.rlhf": inputs["rlhf"]}
    _, output = run(STAGE, config, given | {"text": inputs["shards"]}, tmp_path / "out")
    results = from_plain(EvaluationResults, output.read_json("results.json"))
    assert results.text is not None and results.generation is not None and results.bias is not None
    original, int8 = (results.text.models[name].bits_per_byte.value for name in ("sft", "int8"))
    assert original != int8 and original == pytest.approx(int8, rel=0.02)
    chat = results.generation["chat"]
    assert chat.prompts == 3 and chat.prompts_too_long == 1
    assert set(chat.models) == set(results.bias) == {"sft", "int8", "rlhf"}
    samples = [json.loads(line)["completions"] for line in output.read_bytes("samples.jsonl").decode().splitlines()]
    # int8 rounding changes few tokens, and another model's completions share almost none.
    assert similarity(samples, "sft", "int8") > similarity(samples, "sft", "rlhf") + 0.2


def similarity(samples: list[dict[str, Any]], first: str, second: str) -> float:
    """Return the share of equal characters at equal positions in the completions of two models."""
    pairs = [pair for sample in samples for pair in zip(sample[first]["text"], sample[second]["text"], strict=False)]
    return sum(a == b for a, b in pairs) / len(pairs)


@pytest.mark.slow
def test_a_whole_compression(inputs: dict[str, Artifact], ray_session: None, tmp_path: Path) -> None:
    config = CompressConfig(model="rlhf", text="shards")
    given = {"model": inputs["rlhf"], "text": inputs["shards"]}
    summary, output = run(COMPRESS, config, given, tmp_path / "out")
    original = sum(file.stat().st_size for file in inputs["rlhf"].model.local().glob("*.safetensors"))
    assert summary.original_bytes == original > 2.5 * summary.compressed_bytes
    assert abs(summary.bits_per_byte_change.value) < 0.05
    # 0.002 where the processor has int8 dot products, 0.2 on AVX2.
    assert 0 < summary.engine_logprob_difference < 0.3
    assert output.exists("model/tokenizer.json") and output.exists("model/generation_config.json")


def save_other_model(folder: Path, recipe: TokenizerRecipe, *, size: int) -> Artifact:
    """A random model with another tokenizer than that of the shards."""
    tokenizer = train_tokenizer(["many words in many texts, and document number"] * 9, size=size, recipe=recipe)
    save_tokenizer(tokenizer, folder / "model")
    config = TransformerConfig(vocab_size=tokenizer.get_vocab_size(), **SIZES)
    tokens = SpecialTokens(**read_chat_special_tokens(folder / "model")._asdict())
    model = Transformer(config)
    initialize(model, 0)
    save_hf_model(
        folder / "model", model.state_dict(), config, special_tokens=tokens, tokenizer_folder=folder / "model"
    )
    return artifact(folder, "sft")


def test_text_of_another_tokenizer_is_accepted_if_both_tokenizers_keep_texts(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    config = build(EvaluateConfig, {"models": {"m": "sft"}, "text": "shards"})
    other = save_other_model(tmp_path / "bpe", TokenizerRecipe(), size=MIN_BPE_SIZE + 5)
    STAGE.check_inputs(config, {"models.m": other, "text": inputs["shards"]})
    wordpiece = save_other_model(tmp_path / "wordpiece", TokenizerRecipe(kind="wordpiece", lowercase=True), size=200)
    with pytest.raises(ValueError, match="text: the tokenizer of m changes texts .* remove it from text_models"):
        STAGE.check_inputs(config, {"models.m": wordpiece, "text": inputs["shards"]})
    # Shards that were made with this tokenizer can be read by its own model only.
    shards = write_shards(tmp_path / "shards", wordpiece.model.local())
    STAGE.check_inputs(config, {"models.m": wordpiece, "text": shards})
    with pytest.raises(ValueError, match="text: m has another tokenizer than the shards, whose tokenizer does not"):
        STAGE.check_inputs(config, {"models.m": other, "text": shards})


@pytest.mark.slow
def test_models_of_different_tokenizers_are_compared_on_the_same_documents(
    inputs: dict[str, Artifact], ray_session: None, tmp_path: Path
) -> None:
    # NFKC changes one of the documents, which is left out for both models and for xz.
    shards = write_shards(tmp_path / "shards", inputs["sft"].model.local(), [*TEXTS, "a document with ﬁne ½ …"])
    recipe = TokenizerRecipe(normalization="NFKC")
    other = save_other_model(tmp_path / "other", recipe, size=MIN_BPE_SIZE + 20)
    config = build(
        EvaluateConfig,
        {
            "models": {"sft": "sft", "other": "m"},
            "text": "shards",
            "compare": [["sft", "other"]],
            "compare_with_xz": True,
            "precision": "float32",
        },
    )
    given = {"models.sft": inputs["sft"], "models.other": other, "text": shards}
    summary, output = run(STAGE, config, given, tmp_path / "out")
    results = from_plain(EvaluationResults, output.read_json("results.json"))
    assert results.text is not None
    text = results.text
    assert (text.documents, text.documents_left_out) == (len(TEXTS), 1)
    assert text.bytes == sum(len(line.encode()) for line in TEXTS)
    assert text.xz_bits_per_byte == 8 * len(lzma.compress("".join(TEXTS).encode(), preset=9 | lzma.PRESET_EXTREME)) / (
        text.bytes
    )
    sft, different = text.models["sft"], text.models["other"]
    assert sft.tokenizer != different.tokenizer and sft.tokens > different.tokens
    (change,) = text.compare
    assert change.bits_per_byte.value == pytest.approx(different.bits_per_byte.value - sft.bits_per_byte.value)
    assert summary["sft-other/bits_per_byte/value"] == change.bits_per_byte.value


@pytest.mark.parametrize("long_prompt", ["long " * 30, "很长的问题" * 12, "🙂" * 40], ids=["en", "zh", "emoji"])
def test_a_prompt_that_leaves_no_room_is_left_out_and_named(
    inputs: dict[str, Artifact], tmp_path: Path, long_prompt: str
) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "short"}, {"prompt": long_prompt}, {"prompt": "end"}])
    task = {"name": "chat", "prompts": path, "measures": ["configs/tiny/gold.py:asks_question"]}
    config = config_of(models={"sft": "sft"}, generation=[task])
    STAGE.check_inputs(config, {"models.sft": inputs["sft"]})
    prompts = read_task_prompts(config, config.generation[0], {"sft": inputs["sft"].model})
    assert [record.text for record in prompts.records] == ["short", "end"]
    (description,) = prompts.too_long
    num_tokens = len(long_prompt.encode()) + 3  # the byte tokenizer's, and the template's
    assert description.startswith(f"{path}:2 ({num_tokens} tokens, but sft takes prompts of at most 64 tokens")


def test_a_task_without_a_prompt_that_fits_is_refused_before_work(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "long " * 30}])
    task = {"name": "chat", "prompts": path, "measures": ["configs/tiny/gold.py:asks_question"]}
    with pytest.raises(ValueError, match="none of the 1 prompts of chat fits .*prompts.jsonl:1 .153 tokens, but sft"):
        STAGE.check_inputs(config_of(models={"sft": "sft"}, generation=[task]), {"models.sft": inputs["sft"]})


def test_a_metric_needs_an_answer_to_compare_with(tmp_path: Path) -> None:
    for record, message in (
        ({"prompt": "hi"}, "the field `answer` is missing or empty"),
        ({"prompt": "hi", "answer": ["a"]}, "make it a string"),
    ):
        path = write_lines(tmp_path / "prompts.jsonl", [record])
        config = config_of(models={"sft": "sft"}, generation=[{"name": "a", "prompts": path, "metrics": ["bleu"]}])
        with pytest.raises(ValueError, match=f"prompts.jsonl:1: {message}|prompts.jsonl:1: .*{message}"):
            STAGE.check_sources(config)


def test_an_answer_may_be_the_number_zero(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "1 - 1", "answer": 0}])
    generation = [{"name": "a", "prompts": path, "metrics": ["exact_match"]}]
    STAGE.check_sources(config_of(models={"sft": "sft"}, generation=generation))
    assert accepted_answers(0) == ["0"]
