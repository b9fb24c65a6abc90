"""Documents tokenized again have the same bytes, begin and end as in training, and say whether their text was kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.held_out_text import keeps_text, retokenized_documents, shard_documents
from actors.likelihood import TextScores, common_documents, merge_scores, score_text, xz_size
from cluster.storage import Storage
from data.tokens.encode import fast_encoder
from data.tokens.shard_format import Generation, ShardManifest, write_manifest
from data.tokens.shard_writer import TextDocument, write_shard
from data.tokens.tokenizer import (
    document_tokens,
    fingerprint,
    load_encoder,
    load_tokenizer,
    read_base_special_tokens,
    save_tokenizer,
)
from data.tokens.tokenizer_recipe import MIN_BPE_SIZE, TokenizerRecipe
from data.tokens.tokenizer_training import train_tokenizer
from model.batch import batch_from_sequences
from model.huggingface import load_hf_model, save_hf_model
from model.huggingface_config import SpecialTokens
from model.objectives import logprobs
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

TEXTS = [
    "the cat and the dog and the cat",
    "人人生而自由，在尊严和权利上一律平等。",
    "सभी मनुष्यों को गौरव 🙂",
    "two  spaces,\n\ttabs … ﬁne ½",
    "  and a document with <|endoftext|> in it",
    "e\u0301 is not \u00e9",
]
RECIPES = {
    "bytes": (MIN_BPE_SIZE, TokenizerRecipe()),
    "bpe": (MIN_BPE_SIZE + 60, TokenizerRecipe()),
    "nfc": (MIN_BPE_SIZE + 60, TokenizerRecipe(normalization="NFC")),
    "nfkc": (MIN_BPE_SIZE + 60, TokenizerRecipe(normalization="NFKC")),
    "wordpiece": (400, TokenizerRecipe(kind="wordpiece", lowercase=True)),
    "unigram": (700, TokenizerRecipe(kind="unigram", byte_fallback=True)),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, (size, recipe) in RECIPES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        save_tokenizer(train_tokenizer(TEXTS * 5, size=size, recipe=recipe), folders[name])
    return folders


def write_split(folder: Path, tokenizer: Path) -> Storage:
    storage, (begin, end) = Storage(str(folder)), document_tokens(tokenizer)
    manifest = ShardManifest(
        tokenizer=fingerprint(tokenizer),
        vocab_size=len(load_tokenizer(tokenizer)),
        begin=begin,
        separator=end,
        sources=("test",),
        generations=(),
    )
    documents = [TextDocument(str(number), text, "test") for number, text in enumerate(TEXTS)]
    shard = write_shard(storage, "shard-00000", documents, fast_encoder(tokenizer), manifest)
    write_manifest(storage, dataclasses.replace(manifest, generations=(Generation(corpus="c", shards=(shard,)),)))
    return storage


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Path]) -> Storage:
    return write_split(tmp_path_factory.mktemp("split"), tokenizers["bytes"])


def save_model(folder: Path, tokenizer: Path, *, is_uniform: bool = False) -> Transformer:
    """A random model with this tokenizer. If it is uniform, it predicts every token with the same probability."""
    config = TransformerConfig(
        vocab_size=len(load_tokenizer(tokenizer)), width=32, num_layers=1, num_heads=1, num_kv_heads=1, ffn_width=48,
        max_length=40, tie_embeddings=True,
    )  # fmt: skip
    model = Transformer(config)
    initialize(model, 0)
    with torch.no_grad():
        model.embedding.weight.mul_(0.0 if is_uniform else 5.0)
    tokens = SpecialTokens(**read_base_special_tokens(tokenizer)._asdict())
    save_hf_model(folder, model.state_dict(), config, special_tokens=tokens, tokenizer_folder=tokenizer)
    return model


def scores(folder: Path, split: Storage, tokenizer: Path | None, *, num_parts: int = 1) -> TextScores:
    parts = [
        score_text(
            Storage(str(folder)),
            split,
            part=part,
            num_parts=num_parts,
            overlap=8,
            precision="float32",
            device="cpu",
            shards_tokenizer=None if tokenizer is None else Storage(str(tokenizer)),
        )
        for part in range(num_parts)
    ]
    return merge_scores(parts)


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_the_tokens_are_those_that_shards_of_the_models_tokenizer_would_have(
    tmp_path: Path, tokenizers: dict[str, Path], split: Storage, name: str
) -> None:
    expected = shard_documents(write_split(tmp_path, tokenizers[name]), part=0, num_parts=1)
    computed = retokenized_documents(split, tokenizers["bytes"], tokenizers[name], part=0, num_parts=1)
    for document, again in zip(expected, computed, strict=True):
        assert again.tokens.tolist() == document.tokens.tolist() and again.num_bytes == document.num_bytes
    assert [document.num_bytes for document in computed] == [len(text.encode()) for text in TEXTS]


def test_the_bytes_of_shards_are_found_again_from_another_tokenizer(
    tmp_path: Path, tokenizers: dict[str, Path]
) -> None:
    split = write_split(tmp_path, tokenizers["bpe"])
    computed = retokenized_documents(split, tokenizers["bpe"], tokenizers["bytes"], part=1, num_parts=2)
    decode = load_encoder(tokenizers["bytes"]).decode
    assert [decode(document.tokens[1:-1].tolist()) for document in computed] == TEXTS[1::2]
    assert all(document.is_exact for document in computed)


def test_bits_per_byte_of_uniform_models_are_those_by_hand(
    tmp_path: Path, tokenizers: dict[str, Path], split: Storage
) -> None:
    save_model(tmp_path / "bytes", tokenizers["bytes"], is_uniform=True)
    save_model(tmp_path / "bpe", tokenizers["bpe"], is_uniform=True)
    own, other = scores(tmp_path / "bytes", split, None), scores(tmp_path / "bpe", split, tokenizers["bytes"])
    num_bytes = np.array([len(text.encode()) for text in TEXTS])
    # One token for each byte and one for the end, each with the probability 1 / vocabulary.
    assert own.nats == pytest.approx((num_bytes + 1) * np.log(MIN_BPE_SIZE), rel=1e-5)
    num_tokens = [len(load_encoder(tokenizers["bpe"]).encode(text).ids) + 1 for text in TEXTS]
    assert other.nats == pytest.approx(np.array(num_tokens) * np.log(MIN_BPE_SIZE + 60), rel=1e-5)
    assert (own.num_bytes == num_bytes).all() and (other.num_bytes == num_bytes).all()
    assert other.num_tokens.tolist() == num_tokens and num_tokens[0] < own.num_tokens[0]
    in_parts = scores(tmp_path / "bpe", split, tokenizers["bytes"], num_parts=3)
    assert in_parts.nats == pytest.approx(other.nats) and in_parts.index.tolist() == list(range(len(TEXTS)))


def test_the_score_is_the_models_own_log_likelihood(
    tmp_path: Path, tokenizers: dict[str, Path], split: Storage
) -> None:
    save_model(tmp_path / "bpe", tokenizers["bpe"])
    computed = scores(tmp_path / "bpe", split, tokenizers["bytes"])
    begin, end = document_tokens(tokenizers["bpe"])
    ids = [begin, *load_encoder(tokenizers["bpe"]).encode(TEXTS[0]).ids, end]
    batch = batch_from_sequences([ids], [[True] * len(ids)], length=len(ids) - 1, pad_id=0)
    direct = -logprobs(load_hf_model(tmp_path / "bpe"), batch).sum().item()
    assert computed.nats[0] == pytest.approx(direct, rel=1e-5)


def test_a_document_that_a_tokenizer_changes_is_not_exact(tokenizers: dict[str, Path], split: Storage) -> None:
    exact = {
        name: [document.is_exact for document in retokenized_documents(
            split, tokenizers["bytes"], tokenizers[name], part=0, num_parts=1
        )]
        for name in ("bytes", "bpe", "nfc", "nfkc", "wordpiece")
    }  # fmt: skip
    assert all(exact["bytes"]) and all(exact["bpe"])
    assert exact["nfc"] == [True] * 5 + [False]
    assert exact["nfkc"] == [True, False, True, False, True, False]  # full-width comma; …, ﬁ and ½; decomposed é
    assert not exact["wordpiece"][1] and not exact["wordpiece"][3]  # no space at the marks, and no second space


def test_a_document_whose_shard_lost_its_text_is_not_exact(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    split = write_split(tmp_path, tokenizers["nfkc"])
    documents = retokenized_documents(split, tokenizers["nfkc"], tokenizers["bytes"], part=0, num_parts=1)
    assert [document.is_exact for document in documents] == [True, False, True, False, True, False]
    assert xz_size(split, Storage(str(tokenizers["nfkc"]))).index.tolist() == [0, 2, 4]


def test_only_documents_that_all_keep_are_compared(tokenizers: dict[str, Path], split: Storage) -> None:
    index, tokenizer = np.arange(3), Storage(str(tokenizers["bytes"]))

    def of(*is_exact: bool) -> TextScores:
        return TextScores(index, index * 1.0, index, index, np.array(is_exact))

    assert common_documents([of(True, True, True), of(True, False, True)], None).tolist() == [True, False, True]
    whole = xz_size(split, tokenizer)
    assert whole.index.tolist() == list(range(len(TEXTS)))
    part = xz_size(split, tokenizer, np.array([0, 2]))
    assert part.index.tolist() == [0, 2] and part.num_bytes < whole.num_bytes
    assert common_documents([of(True, True, True), of(False, True, True)], part).tolist() == [False, False, True]
    selected = of(True, False, True).select(np.array([True, False, True]))
    assert selected.nats.tolist() == [0.0, 2.0] and selected.index.tolist() == [0, 2]


def test_tokenizers_that_change_ordinary_text_are_known_before_the_run(tokenizers: dict[str, Path]) -> None:
    assert [name for name, folder in tokenizers.items() if not keeps_text(folder)] == ["wordpiece"]
