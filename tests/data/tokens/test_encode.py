"""The fast route gives the tokenizer's own ids, or is not taken."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import data.tokens.encode
from data.tokens.encode import TRYING_TEXTS, PlainEncoder, TiktokenEncoder, fast_encoder
from data.tokens.tokenizer import load_encoder, save_tokenizer
from data.tokens.tokenizer_training import train_tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""The published cuts of Llama 3."""
ANYTHING = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def learning_texts() -> list[str]:
    """Text with structure to merge: repeated words, indented code, numbers, accents, many scripts."""
    root = Path(data.tokens.encode.__file__).parents[1]
    return [*TRYING_TEXTS, *(path.read_text() for path in sorted(root.rglob("[d-t]*.py")))]


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
    tokenizer.train_from_iterator(learning_texts(), trainer)
    return tokenizer


def byte_level(use_regex: bool = True) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False)])


TOKENIZERS = {
    "ours": lambda: train_tokenizer(learning_texts(), size=2000),
    "gpt2": lambda: trained(byte_level()),
    "llama3": lambda: trained(split(LLAMA3)),
    "gaps": lambda: trained(split(r"\p{L}+")),
    "nfkc": lambda: trained(byte_level(), normalizer=normalizers.NFKC()),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    for name, make in TOKENIZERS.items():
        save_tokenizer(make(), root / name)
    return {name: root / name for name in TOKENIZERS}


def random_texts(seed: int) -> list[str]:
    """Texts that mix what cuts and merges hang on: blanks, digits, marks, apostrophes, any code point at all."""
    draw = random.Random(seed)
    pieces = [*" \n\t'1é²Ⅷ-", "  ", "\r\n", "'s", "'ll", "the", "def ", "e\u0301", "23", "__"]
    return [
        "".join(draw.choice(pieces) if draw.random() < 0.8 else chr(draw.choice(ANYTHING)) for _ in range(length))
        for length in range(400)
    ]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_fast_route_gives_equal_ids_on_any_text(folders: dict[str, Path], name: str) -> None:
    fast, plain = fast_encoder(folders[name]), PlainEncoder(load_encoder(folders[name]))
    assert fast.route == "tiktoken"
    texts = [*TRYING_TEXTS, *learning_texts(), *random_texts(1)]
    for text, ids, expected in zip(texts, fast.encode_batch(texts), plain.encode_batch(texts), strict=True):
        assert ids.dtype == expected.dtype == np.uint32
        assert ids.tolist() == expected.tolist(), text


def test_every_code_point_is_cut_alike(folders: dict[str, Path]) -> None:
    uniform = [range(0x3400, 0xA000), range(0xAC00, 0xF900), range(0x17000, 0x19000), range(0x1FC00, 0x110000)]
    rest = (code for code in ANYTHING if not any(code in block[64:-64] for block in uniform))
    text = "".join(f"{chr(code)}1{chr(code)} " for code in rest)
    fast, plain = fast_encoder(folders["ours"]), PlainEncoder(load_encoder(folders["ours"]))
    assert np.array_equal(fast.encode_batch([text])[0], plain.encode_batch([text])[0])


@pytest.mark.parametrize(
    ("name", "piece"), [("ours", " "), ("ours", "ab"), ("llama3", "\n"), ("llama3", "-="), ("gaps", "1")]
)
def test_a_giant_word_or_blank_neither_stops_nor_changes_the_fast_route(
    folders: dict[str, Path], name: str, piece: str
) -> None:
    text = "x" + piece * (1_000_000 // len(piece)) + "y"
    fast, plain = fast_encoder(folders[name]), PlainEncoder(load_encoder(folders[name]))
    assert np.array_equal(fast.encode_batch([text])[0], plain.encode_batch([text])[0])


def test_a_text_on_which_tiktoken_gives_up_takes_the_slow_route_alone(folders: dict[str, Path]) -> None:
    text = "a" + "1" * 3_000_000 + "b"
    fast = fast_encoder(folders["gaps"], ["a cat"])
    assert isinstance(fast, TiktokenEncoder)
    with pytest.raises(ValueError, match="Max stack size exceeded"):
        fast.encoding.encode_to_numpy(text, disallowed_special=())
    long, short = fast.encode_batch([text, "a cat"])
    assert long.tolist() == fast.plain.encode_batch([text])[0].tolist()
    assert short.tolist() == load_encoder(folders["gaps"]).encode("a cat").ids


def test_a_sample_on_which_tiktoken_gives_up_does_not_stop_the_comparison(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.tokens.encode, "_TRIED_CHARACTERS", 3_000_000)
    assert fast_encoder(folders["gaps"], ["1" * 3_000_000]).route == "tiktoken"


def test_a_text_is_spelt_without_a_token_that_it_would_hold() -> None:
    pieces = [("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in "\u2581a</s>")]
    tokenizer = Tokenizer(models.Unigram(vocab=pieces, unk_id=1))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    tokenizer.encode_special_tokens = True
    encoder = PlainEncoder(tokenizer)

    def spelt(text: str) -> str:
        return "".join(str(tokenizer.id_to_token(int(number))) for number in encoder.encode_without(text, 0))

    assert tokenizer.encode("a</s>a\uff1c/s\uff1e").ids.count(0) == 2  # also of fullwidth signs, after NFKC
    assert spelt("a</s>a\uff1c/s\uff1e") == "\u2581a<\u2581/s>a<\u2581/s>"
    assert spelt("</s> </s>") == "\u2581<\u2581/s>\u2581<\u2581/s>"
    assert spelt("a") == "\u2581a" and spelt("") == ""
    assert encoder.encode_without("aas", 3).tolist() == tokenizer.encode("s").ids


def test_special_tokens_in_a_text_are_characters(folders: dict[str, Path]) -> None:
    (ids,) = fast_encoder(folders["ours"]).encode_batch(["a<|endoftext|>b"])
    assert load_encoder(folders["ours"]).token_to_id("<|endoftext|>") == 0 and 0 not in ids.tolist()


def changed(folder: Path, target: Path, change: Any) -> Path:
    whole = json.loads((folder / "tokenizer.json").read_text())
    change(whole)
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps(whole))
    return target


def test_ids_need_not_follow_the_merges(folders: dict[str, Path], tmp_path: Path) -> None:
    def mirror(whole: dict[str, Any]) -> None:
        vocab = whole["model"]["vocab"]
        for token, number in vocab.items():
            vocab[token] = len(vocab) - 1 - number
        whole["added_tokens"] = []

    folder = changed(folders["ours"], tmp_path / "mirrored", mirror)
    fast = fast_encoder(folder)
    assert fast.route == "tiktoken"
    (ids,), (first,) = fast.encode_batch(["the text"]), fast_encoder(folders["ours"]).encode_batch(["the text"])
    assert ids.tolist() == [1999 - number for number in first.tolist()]


def hand_made(merges: list[tuple[str, str]]) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *dict.fromkeys("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = byte_level()
    return tokenizer


def test_merges_that_rank_alone_would_do_otherwise_are_refused(tmp_path: Path) -> None:
    # "abc" is a token by (ab, c), but bc is united first, so the tokenizer itself never comes to it: a, bc. By rank
    # alone a and bc would be united.
    tokenizer = hand_made([("b", "c"), ("a", "b"), ("ab", "c")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = fast_encoder(tmp_path)
    assert encoder.route == "tokenizers"
    assert [tokenizer.id_to_token(int(number)) for number in encoder.encode_batch(["abc"])[0]] == ["a", "bc"]


def test_merges_whose_tokens_all_come_out_are_taken(tmp_path: Path) -> None:
    hand_made([("a", "b"), ("ab", "c"), ("b", "c")]).save(str(tmp_path / "tokenizer.json"))
    assert fast_encoder(tmp_path).route == "tiktoken"


def test_what_tiktoken_does_not_know_is_left_to_the_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    def lower(whole: dict[str, Any]) -> None:
        whole["normalizer"] = {"type": "Lowercase"}

    def prefix_space(whole: dict[str, Any]) -> None:
        whole["pre_tokenizer"] = {**whole["pre_tokenizer"], "add_prefix_space": True}

    def dropout(whole: dict[str, Any]) -> None:
        whole["model"]["dropout"] = 0.1

    for number, change in enumerate((lower, prefix_space)):
        encoder = fast_encoder(changed(folders["gpt2"], tmp_path / str(number), change))
        assert encoder.route == "tokenizers"
        assert encoder.encode_batch(["ABC"])[0].dtype == np.uint32
    assert fast_encoder(changed(folders["gpt2"], tmp_path / "dropout", dropout)).route == "tokenizers"
    added = train_tokenizer(["the text"], size=262)
    added.add_tokens([AddedToken("the", special=False)])
    save_tokenizer(added, tmp_path / "added")
    assert fast_encoder(tmp_path / "added").route == "tokenizers"
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    save_tokenizer(pieces, tmp_path / "pieces")
    assert [ids.tolist() for ids in fast_encoder(tmp_path / "pieces").encode_batch(["a b", ""])] == [[1, 0], []]


def test_a_difference_on_the_sample_sends_that_sample_alone_the_slow_way(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong_on_zebras(self: TiktokenEncoder, text: str) -> np.ndarray:
        return np.zeros(1, dtype=np.uint32) if "zebra" in text else right(self, text)

    right = TiktokenEncoder._encode
    monkeypatch.setattr(TiktokenEncoder, "_encode", wrong_on_zebras)
    assert fast_encoder(folders["ours"], ["a horse", "a zebra"]).route == "tokenizers"
    assert "tiktoken differs from the tokenizer on a text that begins 'a zebra'" in caplog.text
    assert fast_encoder(folders["ours"], ["a horse"]).route == "tiktoken"
