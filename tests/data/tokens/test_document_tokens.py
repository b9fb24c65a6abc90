"""Tests of the special tokens around documents, for tokenizers in the style of well-known models.

Every tokenizer has the letters a, b and c and its special tokens. The ids are written by hand.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cluster.storage import Storage
from data.tokens.encode import fast_encoder
from data.tokens.shard_format import Generation, ShardManifest, write_manifest
from data.tokens.shard_reader import ShardReader
from data.tokens.shard_writer import TextDocument, write_shard
from data.tokens.tokenizer import (
    declare_bos,
    document_tokens,
    load_tokenizer,
    read_base_special_tokens,
    save_tokenizer,
)
from data.tokens.tokenizer_recipe import SPECIAL_TOKENS
from data.tokens.tokenizer_training import train_tokenizer

LETTERS = {"a": 10, "b": 11, "c": 12}


class Style(NamedTuple):
    """A tokenizer's special tokens, and what must follow from them."""

    special: dict[str, int]
    config: dict[str, Any]
    begin: int
    end: int
    template: str = ""
    """What the post-processor of tokenizer.json adds, such as `<s> $A`."""
    adds_bos: bool = True
    """Whether the exported tokenizer begins every text with `begin`."""


STYLES = {
    "llama 2": Style(
        {"<unk>": 0, "<s>": 1, "</s>": 2},
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False},
        begin=1,
        end=2,
    ),
    "mistral, with a template": Style(
        {"<unk>": 0, "<s>": 1, "</s>": 2},
        {"bos_token": "<s>", "eos_token": "</s>"},
        begin=1,
        end=2,
        template="<s> $A",
    ),
    "llama 3": Style(
        {"<|begin_of_text|>": 3, "<|end_of_text|>": 4, "<|eot_id|>": 5},
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        begin=3,
        end=4,
        template="<|begin_of_text|> $A",
    ),
    "llama 3 instruct": Style(
        {"<|begin_of_text|>": 3, "<|end_of_text|>": 4, "<|eot_id|>": 5},
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        begin=3,
        end=4,
        template="<|begin_of_text|> $A",
    ),
    "gemma": Style(
        {"<pad>": 0, "<eos>": 1, "<bos>": 2},
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "add_bos_token": True},
        begin=2,
        end=1,
    ),
    "deepseek": Style(
        {"<｜begin▁of▁sentence｜>": 0, "<｜end▁of▁sentence｜>": 1},
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "add_bos_token": True},
        begin=0,
        end=1,
    ),
    "a bos token that nothing adds": Style(
        {"<s>": 1, "</s>": 2}, {"bos_token": "<s>", "eos_token": "</s>"}, begin=1, end=2
    ),
    "gpt2": Style({"<|endoftext|>": 7}, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, begin=7, end=7),
    "qwen 2.5": Style(
        {"<|endoftext|>": 7, "<|im_start|>": 8, "<|im_end|>": 9},
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False},
        begin=7,
        end=7,
        adds_bos=False,
    ),
    "phi 3, which never adds its bos token": Style(
        {"<s>": 1, "<|endoftext|>": 7},
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "add_bos_token": False},
        begin=7,
        end=7,
        adds_bos=False,
    ),
    "smollm 2 instruct": Style(
        {"<|endoftext|>": 7, "<|im_start|>": 8, "<|im_end|>": 9},
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        begin=7,
        end=7,
        adds_bos=False,
    ),
}


def write_tokenizer(folder: Path, style: Style) -> None:
    tokenizer = Tokenizer(models.WordLevel({**style.special, **LETTERS}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(list(style.special))
    if style.template:
        token = style.template.split()[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=style.template, special_tokens=[(token, style.special[token])]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **style.config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def shards_of(folder: Path, split: Storage, texts: list[str]) -> ShardReader:
    begin, separator = document_tokens(folder)
    manifest = ShardManifest(
        tokenizer="t", vocab_size=13, begin=begin, separator=separator, sources=("web",), generations=()
    )
    documents = [TextDocument(text, text, "web") for text in texts]
    info = write_shard(split, "shard-00000", documents, fast_encoder(folder), manifest)
    write_manifest(split, replace(manifest, generations=(Generation(corpus="c", shards=(info,)),)))
    return ShardReader(split, sequence_length=100)


@pytest.mark.parametrize("name", STYLES)
def test_documents_begin_with_bos_and_end_with_the_separator(tmp_path: Path, name: str) -> None:
    style = STYLES[name]
    write_tokenizer(tmp_path / "tokenizer", style)
    begin, end = style.begin, style.end
    reader = shards_of(tmp_path / "tokenizer", Storage(str(tmp_path / "split")), ["abc", "b", "ca"])
    rows = reader.rows([0])
    filled = rows.loss_mask[0]
    # Every document is read after the token that it begins with, and its end is learned. No document predicts the next.
    assert rows.input_ids[0][filled].tolist() == [begin, 10, 11, 12, begin, 11, begin, 12, 10]
    assert rows.targets[0][filled].tolist() == [10, 11, 12, end, 11, end, 12, 10, end]
    assert rows.document_ids[0][filled].tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 3]
    # Evaluation scores these tokens.
    assert [document.tokens.tolist() for document in reader.documents()] == [
        [begin, 10, 11, 12, end],
        [begin, 11, end],
        [begin, 12, 10, end],
    ]


@pytest.mark.parametrize("name", STYLES)
def test_the_exported_tokenizer_begins_texts_as_the_shards_do(tmp_path: Path, name: str) -> None:
    style = STYLES[name]
    write_tokenizer(tmp_path, style)
    declare_bos(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    declare_bos(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("ab").input_ids == ([style.begin] if style.adds_bos else []) + [10, 11]
    assert document_tokens(tmp_path) == (style.begin, style.end)


def test_a_tokenizer_file_without_the_field_post_processor_gets_one(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, STYLES["llama 2"])
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    del content["post_processor"]
    path.write_text(json.dumps(content))
    declare_bos(tmp_path)
    assert Tokenizer.from_file(str(path)).encode("ab").ids == [1, 10, 11]


def test_a_base_model_names_the_tokens_around_documents(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "llama", STYLES["llama 2"])
    assert read_base_special_tokens(tmp_path / "llama") == (1, 2, 0)
    save_tokenizer(train_tokenizer(["the cat"], size=262), tmp_path / "ours")
    ours = load_tokenizer(tmp_path / "ours")
    assert document_tokens(tmp_path / "ours") == (0, 0) and SPECIAL_TOKENS[0] == "<|endoftext|>"
    assert ours("a").input_ids == [0, *ours("a", add_special_tokens=False).input_ids]


def test_no_document_contains_the_token_that_documents_begin_with(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "a</s>")]
    tokenizer = Tokenizer(models.Unigram(vocab=pieces, unk_id=0))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reader = shards_of(tmp_path, Storage(str(tmp_path / "split")), ["a<s>a</s>a"])
    (document,) = reader.documents()
    assert document.tokens.tolist() == [1, 3, 4, 6, 7, 3, 4, 5, 6, 7, 3, 2]
