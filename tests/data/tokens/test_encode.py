"""tiktoken gives exactly the tokenizer's ids, or is not used."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import data.tokens.encode
from data.tokens.encode import PROBE_TEXTS, PlainEncoder, TiktokenEncoder, fast_encoder
from data.tokens.pre_tokenizer import PreTokenizerName
from data.tokens.tokenizer import load_encoder, save_tokenizer
from data.tokens.tokenizer_recipe import TokenizerRecipe
from data.tokens.tokenizer_training import train_tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""The published regular expression by which Llama 3 splits text."""
ALL_CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def training_texts() -> list[str]:
    """Texts with many possible merges: repeated words, indented code, numbers, accents, many scripts."""
    root = Path(data.tokens.encode.__file__).parents[1]
    return [*PROBE_TEXTS, *(path.read_text() for path in sorted(root.rglob("[d-t]*.py")))]


def trained(pre_tokenizer: Any, *, normalizer: Any = None, size: int = 2000) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def byte_level(use_regex: bool = True) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False)])


def ours(name: PreTokenizerName = "words", *, split_digits: bool = True) -> Tokenizer:
    recipe = TokenizerRecipe(pre_tokenizer=name, split_digits=split_digits)
    return train_tokenizer(training_texts(), size=2000, recipe=recipe)


TOKENIZERS = {
    "ours": ours,
    "numbers": lambda: ours(split_digits=False),
    "single digits": lambda: ours("gpt2"),
    "qwen2": lambda: ours("llama3"),
    "gpt2": lambda: trained(byte_level()),
    "llama3": lambda: trained(split(LLAMA3)),
    "gaps": lambda: trained(split(r"\p{L}+")),
    "nfkc": lambda: trained(byte_level(), normalizer=normalizers.NFKC()),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    for name, train in TOKENIZERS.items():
        save_tokenizer(train(), root / name)
    return {name: root / name for name in TOKENIZERS}


def random_texts(seed: int) -> list[str]:
    """Random texts of what decides splits and merges: white space, digits, marks, apostrophes and any code point."""
    draw = random.Random(seed)
    pieces = [*" \n\t'1é²Ⅷ-", "  ", "\r\n", "'s", "'ll", "the", "def ", "e\u0301", "\u0915\u093f", "\u200d", "23", "__"]
    return [
        "".join(
            draw.choice(pieces) if draw.random() < 0.8 else chr(draw.choice(ALL_CODE_POINTS)) for _ in range(length)
        )
        for length in range(400)
    ]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tiktoken_gives_equal_ids_on_any_text(folders: dict[str, Path], name: str) -> None:
    fast, plain = fast_encoder(folders[name]), PlainEncoder(load_encoder(folders[name]))
    assert fast.backend == "tiktoken"
    texts = [*PROBE_TEXTS, *training_texts(), *random_texts(1)]
    for text, ids, expected in zip(texts, fast.encode_batch(texts), plain.encode_batch(texts), strict=True):
        assert ids.dtype == expected.dtype == np.uint32
        assert ids.tolist() == expected.tolist(), text


@pytest.mark.parametrize("name", ["ours", "numbers", "single digits", "qwen2"])
def test_texts_are_split_in_the_same_way_at_every_code_point(folders: dict[str, Path], name: str) -> None:
    # Inside these large blocks all characters behave alike, so only their ends are tested.
    uniform = [range(0x3400, 0xA000), range(0xAC00, 0xF900), range(0x17000, 0x19000), range(0x1FC00, 0x110000)]
    tested = (code for code in ALL_CODE_POINTS if not any(code in block[64:-64] for block in uniform))
    text = "".join(f"{chr(code)}1{chr(code)} a{chr(code)}a" for code in tested)
    fast, plain = fast_encoder(folders[name]), PlainEncoder(load_encoder(folders[name]))
    assert np.array_equal(fast.encode_batch([text])[0], plain.encode_batch([text])[0])


@pytest.mark.parametrize(
    ("name", "piece"), [("ours", " "), ("ours", "ab"), ("llama3", "\n"), ("llama3", "-="), ("gaps", "1")]
)
def test_tiktoken_gives_equal_ids_on_a_giant_word_or_run_of_spaces(
    folders: dict[str, Path], name: str, piece: str
) -> None:
    text = "x" + piece * (1_000_000 // len(piece)) + "y"
    fast, plain = fast_encoder(folders[name]), PlainEncoder(load_encoder(folders[name]))
    assert np.array_equal(fast.encode_batch([text])[0], plain.encode_batch([text])[0])


def test_only_the_text_on_which_tiktoken_fails_is_encoded_by_tokenizers(folders: dict[str, Path]) -> None:
    text = "a" + "1" * 3_000_000 + "b"
    fast = fast_encoder(folders["gaps"], ["a cat"])
    assert isinstance(fast, TiktokenEncoder)
    with pytest.raises(ValueError, match="Max stack size exceeded"):
        fast.encoding.encode_to_numpy(text, disallowed_special=())
    long, short = fast.encode_batch([text, "a cat"])
    assert long.tolist() == fast.plain.encode_batch([text])[0].tolist()
    assert short.tolist() == load_encoder(folders["gaps"]).encode("a cat").ids


def test_a_sample_on_which_tiktoken_fails_does_not_stop_the_comparison(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.tokens.encode, "_MAX_COMPARED_CHARACTERS", 3_000_000)
    assert fast_encoder(folders["gaps"], ["1" * 3_000_000]).backend == "tiktoken"


def test_a_text_is_encoded_without_a_token_that_it_contains() -> None:
    pieces = [("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in "\u2581a</s>")]
    tokenizer = Tokenizer(models.Unigram(vocab=pieces, unk_id=1))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    tokenizer.encode_special_tokens = True
    encoder = PlainEncoder(tokenizer)

    def pieces_without_token(text: str) -> str:
        return "".join(str(tokenizer.id_to_token(int(number))) for number in encoder.encode_without(text, [0]))

    # The tokenizer finds the token twice, because NFKC normalizes the fullwidth signs.
    assert tokenizer.encode("a</s>a\uff1c/s\uff1e").ids.count(0) == 2
    assert pieces_without_token("a</s>a\uff1c/s\uff1e") == "\u2581a<\u2581/s>a<\u2581/s>"
    assert pieces_without_token("</s> </s>") == "\u2581<\u2581/s>\u2581<\u2581/s>"
    assert pieces_without_token("a") == "\u2581a" and pieces_without_token("") == ""
    assert encoder.encode_without("aas", [3]).tolist() == tokenizer.encode("s").ids


def test_special_tokens_in_a_text_are_encoded_as_characters(folders: dict[str, Path]) -> None:
    (ids,) = fast_encoder(folders["ours"]).encode_batch(["a<|endoftext|>b"])
    assert load_encoder(folders["ours"]).token_to_id("<|endoftext|>") == 0 and 0 not in ids.tolist()


def with_change(folder: Path, target: Path, change: Any) -> Path:
    description = json.loads((folder / "tokenizer.json").read_text())
    change(description)
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps(description))
    return target


def test_ids_need_not_be_in_the_order_of_the_merges(folders: dict[str, Path], tmp_path: Path) -> None:
    def reverse_ids(description: dict[str, Any]) -> None:
        vocab = description["model"]["vocab"]
        for token, number in vocab.items():
            vocab[token] = len(vocab) - 1 - number
        description["added_tokens"] = []

    folder = with_change(folders["ours"], tmp_path / "reversed", reverse_ids)
    fast = fast_encoder(folder)
    assert fast.backend == "tiktoken"
    (ids,), (first,) = fast.encode_batch(["the text"]), fast_encoder(folders["ours"]).encode_batch(["the text"])
    assert ids.tolist() == [1999 - number for number in first.tolist()]


def tokenizer_of_merges(merges: list[tuple[str, str]]) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *dict.fromkeys("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = byte_level()
    return tokenizer


def test_tiktoken_is_not_used_for_merges_whose_ranks_would_give_other_tokens(tmp_path: Path) -> None:
    # The token "abc" is the merge of (ab, c). But the tokenizer merges b and c first, so it encodes "abc" as a, bc.
    # tiktoken would merge a and bc, because together they are a token.
    tokenizer = tokenizer_of_merges([("b", "c"), ("a", "b"), ("ab", "c")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = fast_encoder(tmp_path)
    assert encoder.backend == "tokenizers"
    assert [tokenizer.id_to_token(int(number)) for number in encoder.encode_batch(["abc"])[0]] == ["a", "bc"]


def test_tiktoken_is_used_for_merges_that_give_every_token(tmp_path: Path) -> None:
    tokenizer_of_merges([("a", "b"), ("ab", "c"), ("b", "c")]).save(str(tmp_path / "tokenizer.json"))
    assert fast_encoder(tmp_path).backend == "tiktoken"


def test_tiktoken_is_not_used_for_unsupported_tokenizers(folders: dict[str, Path], tmp_path: Path) -> None:
    def lower(description: dict[str, Any]) -> None:
        description["normalizer"] = {"type": "Lowercase"}

    def prefix_space(description: dict[str, Any]) -> None:
        description["pre_tokenizer"] = {**description["pre_tokenizer"], "add_prefix_space": True}

    def dropout(description: dict[str, Any]) -> None:
        description["model"]["dropout"] = 0.1

    for number, change in enumerate((lower, prefix_space)):
        encoder = fast_encoder(with_change(folders["gpt2"], tmp_path / str(number), change))
        assert encoder.backend == "tokenizers"
        assert encoder.encode_batch(["ABC"])[0].dtype == np.uint32
    assert fast_encoder(with_change(folders["gpt2"], tmp_path / "dropout", dropout)).backend == "tokenizers"
    added = train_tokenizer(["the text"], size=262)
    added.add_tokens([AddedToken("the", special=False)])
    save_tokenizer(added, tmp_path / "added")
    assert fast_encoder(tmp_path / "added").backend == "tokenizers"
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    save_tokenizer(pieces, tmp_path / "pieces")
    assert [ids.tolist() for ids in fast_encoder(tmp_path / "pieces").encode_batch(["a b", ""])] == [[1, 0], []]


def test_tiktoken_is_not_used_for_a_sample_on_which_ids_differ(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def encode_zebras_wrongly(self: TiktokenEncoder, text: str) -> np.ndarray:
        return np.zeros(1, dtype=np.uint32) if "zebra" in text else original_encode(self, text)

    original_encode = TiktokenEncoder._encode
    monkeypatch.setattr(TiktokenEncoder, "_encode", encode_zebras_wrongly)
    assert fast_encoder(folders["ours"], ["a horse", "a zebra"]).backend == "tokenizers"
    assert "tiktoken gives different ids on the text that begins with 'a zebra'" in caplog.text
    assert fast_encoder(folders["ours"], ["a horse"]).backend == "tiktoken"
