"""The tokenizer: exact, deterministic, and what transformers makes of its folder."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data.tokens.learning import count_words, train_tokenizer
from data.tokens.tokenizer import (
    base_special_tokens,
    chat_end_id,
    chat_special_tokens,
    end_token_ids,
    fingerprint,
    load_encoder,
    load_tokenizer,
    pad_id,
    save_tokenizer,
    separator_id,
    vocab_size,
)
from data.tokens.tokenizer_recipe import END, END_OF_TEXT, MASK, MIN_SIZE, PAD, SPECIAL_TOKENS, UNKNOWN, TokenizerRecipe
from data.tokens.unigram import sentencepiece_model

TEXTS = ["the cat sat on the mat", "the cat and the hat", "a café, 2018; a hat"] * 3
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(train_tokenizer(TEXTS, size=280), tmp_path / "ours")
    return tmp_path / "ours"


def save_chatml(folder: Path) -> None:
    """A tokenizer in SmolLM2-Instruct's manner: the end of a chat is eos and pad, bos opens a message."""
    tokenizer = train_tokenizer(TEXTS, size=280)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    save_tokenizer(tokenizer, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tokenizer(train_tokenizer(iter(TEXTS), size=280), tmp_path / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_any_text_comes_back_as_it_was(folder: Path) -> None:
    encoder = load_encoder(folder)
    for text in ("", " ", "\r\n\t x  ", "日本語 \U0001f600 naïve", "".join(map(chr, range(256))), "<|end|> <|pad|>"):
        assert encoder.decode(encoder.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_have_the_first_ids_and_digits_are_single(folder: Path) -> None:
    encoder = load_encoder(folder)
    assert [encoder.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert len(encoder.encode("2018").ids) == 4
    assert encoder.get_vocab_size() == vocab_size(folder) == 280 > MIN_SIZE


def test_a_document_cannot_speak_in_special_tokens(folder: Path) -> None:
    ids = load_encoder(folder).encode(f"say {END} {END_OF_TEXT}").ids
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))
    assert SPECIAL_TOKENS.index(END) in load_tokenizer(folder).encode(END)


def test_transformers_encodes_alike_and_renders_chats(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = "the cat's café 2018\n  <b>"
    assert tokenizer.encode(text) == load_encoder(folder).encode(text).ids
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False) == "<|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|>"
    )
    opened = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert opened == "<|system|>s<|end|><|user|>u<|end|><|assistant|>"
    with pytest.raises(Exception, match="role must be system, user or assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_ends_and_padding_of_our_tokenizer_and_of_a_foreign_one(folder: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(folder)
    assert (separator_id(ours), chat_end_id(ours), pad_id(ours), end_token_ids(ours)) == (0, 5, 1, [0, 5])
    assert ours.eos_token == END_OF_TEXT and ours.pad_token == PAD
    assert chat_special_tokens(folder) == (0, 5, 1) and base_special_tokens(folder) == (0, 0, 1)
    save_chatml(tmp_path / "chatml")
    foreign = load_tokenizer(tmp_path / "chatml")
    start, end = foreign.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    # Its pad token also ends a chat; padding must be told from the last real token, so another one is taken.
    assert (separator_id(foreign), chat_end_id(foreign), pad_id(foreign)) == (0, end, 0)
    assert chat_special_tokens(tmp_path / "chatml") == (start, end, 0)
    config = json.loads((tmp_path / "chatml/tokenizer_config.json").read_text())
    (tmp_path / "chatml/tokenizer_config.json").write_text(json.dumps(config | {"bos_token": None}))
    assert chat_special_tokens(tmp_path / "chatml") == (0, end, 0)  # without a bos of its own the separator


def test_the_fingerprint_outlives_saving_by_transformers_and_tells_another_vocabulary(
    folder: Path, tmp_path: Path
) -> None:
    load_tokenizer(folder).save_pretrained(tmp_path / "again")
    assert fingerprint(tmp_path / "again") == fingerprint(folder)
    save_tokenizer(train_tokenizer(TEXTS, size=279), tmp_path / "smaller")
    assert fingerprint(tmp_path / "smaller") != fingerprint(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        fingerprint(tmp_path)


# The kinds.

RECIPES = {
    "bpe": TokenizerRecipe(),
    "bpe NFC": TokenizerRecipe(normalization="NFC", split_digits=False),
    "wordpiece": TokenizerRecipe(kind="wordpiece"),
    "wordpiece uncased": TokenizerRecipe(kind="wordpiece", lowercase=True, normalization="NFKC", split_digits=False),
    "unigram": TokenizerRecipe(kind="unigram"),
    "unigram bytes": TokenizerRecipe(kind="unigram", byte_fallback=True),
}
SIZE = 320
ODD_TEXTS = (
    "",
    " ",
    "   the  cats   \n\n\tsat\r\n  ",
    "na\u00efve nai\u0308ve, \u65e5\u672c\u8a9e \U0001f600 2018 \u00bd",
    "\u2581 a\u2581b \u2581\u2581",
    "".join(map(chr, range(256))),
    "<|end|> x<|endoftext|>y <|unk|><|mask|> <0x0A> <0xFF> </s> [UNK] ##a <<|pad|>>",
)


def sample(number: int = 400) -> list[str]:
    """Texts of many words, in which all of ODD_TEXTS's letters are rare or missing."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdluE", k=draw.randint(1, 8))) for _ in range(300)]
    return [" ".join([*draw.choices(words, k=30), str(draw.randint(0, 999)), "(end). </b>"]) for _ in range(number)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("kind") for name in RECIPES}
    for name, recipe in RECIPES.items():
        save_tokenizer(train_tokenizer(sample(), size=SIZE, recipe=recipe), made[name])
    return made


def test_the_default_is_byte_for_byte_what_the_trainer_of_tokenizers_makes(tmp_path: Path) -> None:
    texts = [*sample(), *ODD_TEXTS]
    known = Tokenizer(models.BPE())
    known.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    known.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    known.train_from_iterator(texts, trainer)
    known.save(str(tmp_path / "known.json"))
    save_tokenizer(train_tokenizer(texts, size=SIZE), tmp_path / "ours")
    assert (tmp_path / "ours/tokenizer.json").read_bytes() == (tmp_path / "known.json").read_bytes()


def test_every_kind_gives_the_same_bytes_for_the_texts_in_any_order(folders: dict[str, Path], tmp_path: Path) -> None:
    mixed = sorted(sample(), key=lambda text: text[::-1])
    for name, folder in folders.items():
        save_tokenizer(train_tokenizer(mixed, size=SIZE, recipe=RECIPES[name]), tmp_path / name)
        assert (tmp_path / name / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_words_are_counted_as_the_whole_text_is_cut(folders: dict[str, Path], name: str) -> None:
    draw = random.Random(3)
    odd = ["\t", "\r\n", "\u3000", "\x1c", "\x85", "B's", "12", ".", "<|", "\u65e5", "e\u0301", "_"]
    pieces = [" ", "  ", "\n", "a", *odd]
    texts = ["".join(draw.choices(pieces, k=draw.randint(0, 12))) for _ in range(3000)]
    tokenizer = load_encoder(folders[name])
    expected: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        expected.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    assert count_words(texts, RECIPES[name]) == expected


@pytest.mark.parametrize("name", RECIPES)
def test_transformers_encodes_every_kind_alike(folders: dict[str, Path], name: str) -> None:
    ours, theirs = load_encoder(folders[name]), load_tokenizer(folders[name])
    assert ours.get_vocab_size() == len(theirs) == vocab_size(folders[name]) == SIZE
    for text in (*sample(20), *ODD_TEXTS[:-1]):
        ids = ours.encode(text).ids
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False)
    special = RECIPES[name].special_tokens
    assert theirs.convert_tokens_to_ids(list(special)) == list(range(len(special)))
    assert theirs.encode("".join(special)) == list(range(len(special)))
    assert chat_special_tokens(folders[name]) == (0, 5, 1) and base_special_tokens(folders[name]) == (0, 0, 1)
    assert theirs.unk_token == (UNKNOWN if UNKNOWN in special else None)
    assert theirs.mask_token == (MASK if MASK in special else None)
    theirs.save_pretrained(folders[name] / "again")
    assert fingerprint(folders[name] / "again") == fingerprint(folders[name])


@pytest.mark.parametrize("name", RECIPES)
def test_no_document_speaks_in_special_tokens_or_bytes(folders: dict[str, Path], name: str) -> None:
    encoder = load_encoder(folders[name])
    unknown = encoder.token_to_id(UNKNOWN)
    special = {number for number in range(len(RECIPES[name].special_tokens)) if number != unknown}
    assert not special & {number for text in ODD_TEXTS for number in encoder.encode(text).ids}


@pytest.mark.parametrize("name", ["bpe", "unigram bytes"])
def test_kinds_with_bytes_give_any_text_back(folders: dict[str, Path], name: str) -> None:
    encoder = load_encoder(folders[name])
    for text in (*sample(20), *ODD_TEXTS, "a" * 100_000, " " * 1000, "\u65e5" * 1000):
        assert encoder.decode(encoder.encode(text).ids, skip_special_tokens=False) == text


def test_unigram_encodes_as_sentencepiece_does() -> None:
    recipe = RECIPES["unigram bytes"]
    words = count_words(sample(), recipe)
    tokenizer = train_tokenizer(sample(), size=SIZE, recipe=recipe)
    oracle = sentencepiece.SentencePieceProcessor(
        model_proto=sentencepiece_model(list(words), list(words.values()), SIZE, recipe)
    )
    tokenizer.encode_special_tokens = True
    for text in (*sample(), *(text for text in ODD_TEXTS if "\u2581" not in text)):
        assert tokenizer.encode(text).ids == oracle.encode(text), text


def test_unigram_without_bytes_differs_from_sentencepiece_in_the_number_of_unknown_tokens_alone() -> None:
    recipe = RECIPES["unigram"]
    words = count_words(sample(), recipe)
    tokenizer = train_tokenizer(sample(), size=SIZE, recipe=recipe)
    oracle = sentencepiece.SentencePieceProcessor(
        model_proto=sentencepiece_model(list(words), list(words.values()), SIZE, recipe)
    )
    tokenizer.encode_special_tokens = True
    unknown = tokenizer.token_to_id(UNKNOWN)

    def with_single_unknowns(ids: list[int]) -> list[int]:
        return [number for before, number in pairwise([-1, *ids]) if not before == number == unknown]

    odd = ("\u65e57", "\u65e5\u65e5<\u65e5", "a\u65e5 \u65e5a", *(text for text in ODD_TEXTS if "\u2581" not in text))
    differing = 0
    for text in (*sample(), *odd):
        ours, theirs = tokenizer.encode(text).ids, oracle.encode(text)
        assert with_single_unknowns(ours) == with_single_unknowns(theirs), text
        differing += ours != theirs
    assert 0 < differing <= len(odd)


def test_wordpiece_takes_the_longest_token_first_and_knows_not_every_word() -> None:
    tokenizer = train_tokenizer(["hug hugs pugs"] * 9, size=20, recipe=RECIPES["wordpiece"])
    # u g: 27, h ug: 18; then p ug before hug s, both 9, for p stands before hug in the ids.
    merged = [tokenizer.id_to_token(number) for number in range(8, 20)]
    assert merged == ["g", "h", "p", "s", "u", "##g", "##s", "##u", "##ug", "hug", "pug", "hugs"]
    assert tokenizer.encode("hugs  pugs hugx shug").tokens == ["hugs", "pug", "##s", UNKNOWN, UNKNOWN]


def test_characters_beyond_the_coverage_have_no_token() -> None:
    texts = ["ab ba"] * 999 + ["a\u03b6"]  # 4 x 999 + 2 characters, one of them rare
    for kind in ("wordpiece", "unigram"):
        for coverage, known in ((0.99, False), (1.0, True)):
            recipe = TokenizerRecipe(kind=kind, character_coverage=coverage)
            vocab = train_tokenizer(texts, size=30, recipe=recipe).get_vocab()
            assert ("\u03b6" in vocab) is known


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"byte_fallback": True}, "byte_fallback: true is for kind unigram; bpe works on bytes anyway"),
        ({"kind": "wordpiece", "byte_fallback": True}, "wordpiece has no byte tokens"),
        ({"kind": "unigram", "lowercase": True}, "lowercase: true is for kind wordpiece, not unigram"),
        ({"character_coverage": 0.9}, "character_coverage: bpe covers every character"),
        ({"kind": "unigram", "character_coverage": 1.5}, r"character_coverage: 1.5 must be above 0 and at most 1"),
    ],
)
def test_a_setting_that_the_kind_would_not_heed_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerRecipe(**values).check()


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_size_without_room_for_the_characters_is_an_error(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"size: .*character_coverage"):
        train_tokenizer(sample(), size=12, recipe=TokenizerRecipe(kind=kind))


def test_a_foreign_tokenizer_without_ends_and_template_says_what_it_lacks(tmp_path: Path) -> None:
    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    bare.add_special_tokens(["[SEP]", "[PAD]"])
    bare.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="neither .* nor an eos or sep token is defined"):
        separator_id(tokenizer)
    with pytest.raises(ValueError, match="no chat template; add chat_template"):
        chat_end_id(tokenizer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert base_special_tokens(tmp_path) == (2, 2, 3)  # as of a BERT, which has no eos
