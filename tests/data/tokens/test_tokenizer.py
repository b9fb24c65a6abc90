"""Tests of tokenizer folders: special tokens, chat templates, fingerprints."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models

from data.tokens.tokenizer import (
    chat_end_id,
    end_token_ids,
    fingerprint,
    load_encoder,
    load_tokenizer,
    pad_id,
    read_base_special_tokens,
    read_chat_special_tokens,
    save_tokenizer,
    separator_id,
    vocab_size,
)
from data.tokens.tokenizer_recipe import END, END_OF_TEXT, MIN_BPE_SIZE, PAD, SPECIAL_TOKENS
from data.tokens.tokenizer_training import train_tokenizer

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
    """Save a tokenizer like that of SmolLM2-Instruct. Its eos token ends messages and is also its pad token."""
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


def test_any_text_is_decoded_exactly(folder: Path) -> None:
    encoder = load_encoder(folder)
    for text in ("", " ", "\r\n\t x  ", "日本語 \U0001f600 naïve", "".join(map(chr, range(256))), "<|end|> <|pad|>"):
        assert encoder.decode(encoder.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_have_the_first_ids_and_every_digit_is_a_token(folder: Path) -> None:
    encoder = load_encoder(folder)
    assert [encoder.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert len(encoder.encode("2018").ids) == 4
    assert encoder.get_vocab_size() == vocab_size(folder) == 280 > MIN_BPE_SIZE


def test_a_document_cannot_contain_special_tokens(folder: Path) -> None:
    ids = load_encoder(folder).encode(f"say {END} {END_OF_TEXT}").ids
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))
    assert SPECIAL_TOKENS.index(END) in load_tokenizer(folder).encode(END)


def test_transformers_gives_the_same_ids_and_renders_chats(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = "the cat's café 2018\n  <b>"
    assert tokenizer.encode(text) == [0, *load_encoder(folder).encode(text).ids]
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False) == "<|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|>"
    )
    opened = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert opened == "<|system|>s<|end|><|user|>u<|end|><|assistant|>"
    with pytest.raises(Exception, match="role must be system, user or assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_end_and_padding_tokens_of_our_tokenizer_and_of_another_one(folder: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(folder)
    assert (separator_id(ours), chat_end_id(ours), pad_id(ours), end_token_ids(ours)) == (0, 5, 1, [0, 5])
    assert ours.eos_token == END_OF_TEXT and ours.pad_token == PAD
    assert read_chat_special_tokens(folder) == (0, 5, 1) and read_base_special_tokens(folder) == (0, 0, 1)
    save_chatml(tmp_path / "chatml")
    foreign = load_tokenizer(tmp_path / "chatml")
    start, end = foreign.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    # The pad token also ends a chat. Padding must be distinguishable from that, so another token is used.
    assert (separator_id(foreign), chat_end_id(foreign), pad_id(foreign)) == (0, end, 0)
    assert read_chat_special_tokens(tmp_path / "chatml") == (start, end, 0)
    config = json.loads((tmp_path / "chatml/tokenizer_config.json").read_text())
    (tmp_path / "chatml/tokenizer_config.json").write_text(json.dumps(config | {"bos_token": None}))
    assert read_chat_special_tokens(tmp_path / "chatml") == (0, end, 0)  # Without a bos token, the separator is used.


def test_the_fingerprint_stays_when_transformers_saves_and_differs_for_another_vocabulary(
    folder: Path, tmp_path: Path
) -> None:
    load_tokenizer(folder).save_pretrained(tmp_path / "again")
    assert fingerprint(tmp_path / "again") == fingerprint(folder)
    save_tokenizer(train_tokenizer(TEXTS, size=279), tmp_path / "smaller")
    assert fingerprint(tmp_path / "smaller") != fingerprint(folder)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        fingerprint(tmp_path)


def test_errors_say_which_token_or_template_a_tokenizer_lacks(tmp_path: Path) -> None:
    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    bare.add_special_tokens(["[SEP]", "[PAD]"])
    bare.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="neither .* nor an eos or sep token"):
        separator_id(tokenizer)
    with pytest.raises(ValueError, match="no chat template; add chat_template"):
        chat_end_id(tokenizer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_base_special_tokens(tmp_path) == (2, 2, 3)  # BERT has no eos token either.
