"""Tests of training tokenizers of every kind."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from data.tokens.pre_tokenizer import PreTokenizerName
from data.tokens.tokenizer import (
    fingerprint,
    load_encoder,
    load_tokenizer,
    read_base_special_tokens,
    read_chat_special_tokens,
    save_tokenizer,
    vocab_size,
)
from data.tokens.tokenizer_recipe import MASK, SPECIAL_TOKENS, UNKNOWN, TokenizerRecipe
from data.tokens.tokenizer_training import count_words, train_tokenizer

TEXTS = ["the cat sat on the mat", "the cat and the hat", "a café, 2018; a hat"] * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(train_tokenizer(TEXTS, size=280), tmp_path / "ours")
    return tmp_path / "ours"


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tokenizer(train_tokenizer(iter(TEXTS), size=280), tmp_path / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


RECIPES = {
    "bpe": TokenizerRecipe(),
    "bpe NFC": TokenizerRecipe(normalization="NFC", split_digits=False),
    "bpe gpt2": TokenizerRecipe(pre_tokenizer="gpt2"),
    "bpe gpt2 numbers": TokenizerRecipe(pre_tokenizer="gpt2", split_digits=False),
    "bpe llama3": TokenizerRecipe(pre_tokenizer="llama3"),
    "bpe llama3 numbers": TokenizerRecipe(pre_tokenizer="llama3", split_digits=False),
    "wordpiece": TokenizerRecipe(kind="wordpiece"),
    "wordpiece uncased": TokenizerRecipe(kind="wordpiece", lowercase=True, normalization="NFKC", split_digits=False),
    "unigram": TokenizerRecipe(kind="unigram"),
    "unigram bytes": TokenizerRecipe(kind="unigram", byte_fallback=True),
}


SIZE = 320


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, plain_texts: list[str]) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("kind") for name in RECIPES}
    for name, recipe in RECIPES.items():
        save_tokenizer(train_tokenizer(plain_texts, size=SIZE, recipe=recipe), folders[name])
    return folders


def splits_of_the_library(name: PreTokenizerName) -> Any:
    """The pre-tokenizer with split digits, written out."""
    if name == "gpt2":
        return [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    pattern = (
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}[\p{L}\p{M}\x{200c}\x{200d}]*+|\p{N}| ?[^\s\p{L}\p{N}]++"
        r"|\s++(?=\p{N}|\z)|\s+(?=\s)|\s"
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level]


@pytest.mark.parametrize("name", ["words", "gpt2"])
def test_bpe_gives_the_same_bytes_as_the_trainer_of_tokenizers(
    tmp_path: Path, plain_texts: list[str], odd_texts: tuple[str, ...], name: PreTokenizerName
) -> None:
    texts = [*plain_texts, *odd_texts]
    expected = Tokenizer(models.BPE())
    expected.pre_tokenizer = pre_tokenizers.Sequence(splits_of_the_library(name))
    expected.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    expected.train_from_iterator(texts, trainer)
    bos = [("<|endoftext|>", 0)]
    expected.post_processor = processors.TemplateProcessing(
        single="<|endoftext|>:0 $A:0", pair="<|endoftext|>:0 $A:0 <|endoftext|>:1 $B:1", special_tokens=bos
    )
    expected.save(str(tmp_path / "expected.json"))
    save_tokenizer(train_tokenizer(texts, size=SIZE, recipe=TokenizerRecipe(pre_tokenizer=name)), tmp_path / "ours")
    assert (tmp_path / "ours/tokenizer.json").read_bytes() == (tmp_path / "expected.json").read_bytes()


def test_the_order_of_the_texts_does_not_matter_for_any_kind(
    folders: dict[str, Path], tmp_path: Path, plain_texts: list[str]
) -> None:
    shuffled = sorted(plain_texts, key=lambda text: text[::-1])
    for name, folder in folders.items():
        save_tokenizer(train_tokenizer(shuffled, size=SIZE, recipe=RECIPES[name]), tmp_path / name)
        assert (tmp_path / name / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_counted_words_are_the_pre_tokens_of_the_texts(folders: dict[str, Path], name: str) -> None:
    draw = random.Random(3)
    odd = [
        "\t",
        "\r\n",
        "\u3000",
        "\x1c",
        "\x85",
        "B's",
        "12",
        ".",
        "<|",
        "\u65e5",
        "e\u0301",
        "_",
        "_\n",
        "\u0901",
        "\u0940",
        "\u200d",
    ]
    pieces = [" ", "  ", "\n", "a", *odd]
    texts = ["".join(draw.choices(pieces, k=draw.randint(0, 12))) for _ in range(3000)]
    tokenizer = load_encoder(folders[name])
    expected: Counter[str] = Counter()
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        expected.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
    (counts,) = count_words(texts, RECIPES[name])
    assert counts == expected


def test_counts_are_yielded_before_they_need_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(4)
    texts = ["".join(draw.choices("กขคงจฉชซ\u0e34", k=500)) for _ in range(400)]  # each text is one word
    (whole,) = count_words(texts, TokenizerRecipe())
    monkeypatch.setattr("data.tokens.tokenizer_training._MAX_SUBSTRING_CHARACTERS", 5_000)
    monkeypatch.setattr("data.tokens.tokenizer_training._MAX_WORD_BYTES", 100_000)
    counters = list(count_words(texts, TokenizerRecipe()))
    assert len(counters) > 5
    assert max(sum(map(len, counter)) for counter in counters) < 75_000 < sum(map(len, whole))
    assert sum(counters, Counter()) == whole


def test_a_giant_word_is_counted_as_several_words_and_encoded_as_one() -> None:
    (counts,) = count_words(["ab" * 1300, "c"], TokenizerRecipe())
    assert counts == {"ab" * 512: 2, "ab" * 276: 1, "c": 1}
    tokenizer = train_tokenizer(["ab" * 1300], size=263)
    assert tokenizer.encode("ab" * 1300).tokens == ["ab"] * 1300


@pytest.mark.parametrize("name", RECIPES)
def test_transformers_gives_the_same_ids_for_every_kind(
    folders: dict[str, Path], name: str, plain_texts: list[str], odd_texts: tuple[str, ...]
) -> None:
    encoder, transformers_tokenizer = load_encoder(folders[name]), load_tokenizer(folders[name])
    assert encoder.get_vocab_size() == len(transformers_tokenizer) == vocab_size(folders[name]) == SIZE
    for text in (*plain_texts[:20], *odd_texts[:-1]):
        ids = encoder.encode(text).ids
        assert transformers_tokenizer.encode(text, add_special_tokens=False) == ids
        assert transformers_tokenizer.encode(text) == [0, *ids]
        assert transformers_tokenizer.decode(ids) == encoder.decode(ids, skip_special_tokens=False)
    special = RECIPES[name].special_tokens
    assert transformers_tokenizer.convert_tokens_to_ids(list(special)) == list(range(len(special)))
    assert transformers_tokenizer.encode("".join(special), add_special_tokens=False) == list(range(len(special)))
    assert read_chat_special_tokens(folders[name]) == (0, 5, 1) and read_base_special_tokens(folders[name]) == (0, 0, 1)
    assert transformers_tokenizer.unk_token == (UNKNOWN if UNKNOWN in special else None)
    assert transformers_tokenizer.mask_token == (MASK if MASK in special else None)
    transformers_tokenizer.save_pretrained(folders[name] / "again")
    assert fingerprint(folders[name] / "again") == fingerprint(folders[name])


@pytest.mark.parametrize("name", RECIPES)
def test_no_document_contains_special_tokens_or_byte_tokens(
    folders: dict[str, Path], name: str, odd_texts: tuple[str, ...]
) -> None:
    encoder = load_encoder(folders[name])
    unknown = encoder.token_to_id(UNKNOWN)
    special = {number for number in range(len(RECIPES[name].special_tokens)) if number != unknown}
    assert not special & {number for text in odd_texts for number in encoder.encode(text).ids}


@pytest.mark.parametrize("name", ["bpe", "bpe gpt2", "bpe llama3", "bpe llama3 numbers", "unigram bytes"])
def test_kinds_with_byte_tokens_decode_any_text_exactly(
    folders: dict[str, Path], name: str, plain_texts: list[str], odd_texts: tuple[str, ...]
) -> None:
    encoder = load_encoder(folders[name])
    for text in (*plain_texts[:20], *odd_texts, "a" * 100_000, " " * 1000, "\u65e5" * 1000):
        assert encoder.decode(encoder.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_size_that_is_too_small_for_the_characters_is_an_error(kind: Any, plain_texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"size: .*character_coverage"):
        train_tokenizer(plain_texts, size=12, recipe=TokenizerRecipe(kind=kind))


def test_a_size_that_is_too_small_for_the_bytes_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"size: 261 must be at least 262"):
        train_tokenizer(TEXTS, size=261)
