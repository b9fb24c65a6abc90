"""The tokenizer: three kinds of model, special tokens, a chat template, and the folder that transformers and vLLM load.

Two tokens end something, and they differ. `<|endoftext|>` is between documents: it is the tokenizer's bos and
eos, and no chat holds it. `<|end|>` closes a message. A base model's folder names the first as its end, a chat
model's the second (`base_special_tokens`, `chat_special_tokens`); an engine stops at the tokenizer's eos as well.

Every kind is learned from counted words (`count_words`, `train_on_word_counts`).
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from data.tokens.tokenizer_recipe import END_OF_TEXT, MASK, PAD, UNKNOWN

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception(\"role must be system, user or assistant, not \" + message['role'] | string) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# Folders.


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        **{name: token for name, token in (("unk_token", UNKNOWN), ("mask_token", MASK)) if token in special},
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face folder, ours or another's. Raises ValueError where there is none."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"tokenizer: {folder} holds no tokenizer.json; give a folder with a tokenizer of the fast kind"
        )
    # Late: it takes seconds, which the workers that only tokenize text need not pay.
    if _is_ours(folder):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    # To find the class of a foreign tokenizer it imports torch and scikit-learn: 7.9 s of CPU time against 1.5 s.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def _is_ours(folder: Path) -> bool:
    """Whether `save_tokenizer` wrote the folder's configuration, so that its class is known."""
    path = folder / "tokenizer_config.json"
    return path.is_file() and json.loads(path.read_text()).get("chat_template") == CHAT_TEMPLATE


def load_encoder(folder: Path) -> Tokenizer:
    """The bare tokenizer, for text that must not speak in special tokens: a document's `<|end|>` is characters.

    That holds for every kind we learn, and for a foreign tokenizer whose model cannot build a special token from
    characters. A Unigram model that has `</s>` in its vocabulary (T5, XLM-R) finds it in a text all the same.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def separator_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Id of the token between documents: `<|endoftext|>` where there is one (also in SmolLM2, whose chat eos is
    another), else the eos token, else the sep token (BERT has no eos)."""
    named: tuple[Any, ...] = (tokenizer.get_vocab().get(END_OF_TEXT), tokenizer.eos_token_id, tokenizer.sep_token_id)
    for token in named:
        if token is not None:
            return int(token)
    raise ValueError(
        f"tokenizer: neither {END_OF_TEXT} nor an eos or sep token is defined, so nothing could separate documents; "
        "name its eos_token in tokenizer_config.json"
    )


class TokenIds(NamedTuple):
    """The ids that a model's configuration names."""

    bos: int
    eos: int
    pad: int
    """Never the last token of a document or a chat, so that padding can be recognized."""


def base_special_tokens(folder: Path) -> TokenIds:
    """Of a base model: the separator begins and ends a text."""
    tokenizer = load_tokenizer(folder)
    separator = separator_id(tokenizer)
    return TokenIds(bos=separator, eos=separator, pad=pad_id(tokenizer))


def chat_special_tokens(folder: Path) -> TokenIds:
    """Of a chat model: a completion ends where the chat template closes an assistant's message, and bos is the
    tokenizer's own, or the separator where it has none."""
    tokenizer = load_tokenizer(folder)
    bos: Any = tokenizer.bos_token_id
    bos = separator_id(tokenizer) if bos is None else int(bos)
    return TokenIds(bos=bos, eos=chat_end_id(tokenizer), pad=pad_id(tokenizer))


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of padding: the tokenizer's own unless that ends a chat too (as in SmolLM2), else another special one."""
    ends = {chat_end_id(tokenizer)} if tokenizer.chat_template else {separator_id(tokenizer)}
    pad, unknown, bos = tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id
    candidates: tuple[Any, ...] = (pad, separator_id(tokenizer), unknown, bos)
    for candidate in candidates:
        if candidate is not None and candidate not in ends:
            return int(candidate)
    raise ValueError("tokenizer: no special token is free for padding; add a pad token to its tokenizer_config.json")


def vocab_size(folder: Path) -> int:
    """The number of rows that an embedding needs: the highest token id plus one."""
    return max(load_encoder(folder).get_vocab(with_added_tokens=True).values()) + 1


def end_token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids at which a chat's generation stops, lowest first: the token that closes the assistant's message, the
    tokenizer's eos, and the separator of documents."""
    eos: Any = tokenizer.eos_token_id
    ends = {separator_id(tokenizer), chat_end_id(tokenizer)}
    return sorted(ends if eos is None else ends | {int(eos)})


def chat_end_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the first special token after an assistant's words in the chat template."""
    if not tokenizer.chat_template:
        raise ValueError("tokenizer: it has no chat template; add chat_template to its tokenizer_config.json")
    words = "words"
    messages = [{"role": "user", "content": words}, {"role": "assistant", "content": words}]
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    after = whole.rpartition(words)[2]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token in tokenizer.encode(after, add_special_tokens=False):
        if token in special:
            return int(token)
    raise ValueError(
        f"tokenizer: its chat template closes an assistant's message with {after!r}, which is no special token"
    )


def fingerprint(folder: Path) -> str:
    """Identity of the text-to-ids mapping in a folder's `tokenizer.json`; formatting, padding and truncation are no
    part of it, so it stays the same when transformers saves the tokenizer again."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"tokenizer: {folder} holds no tokenizer.json")
    whole = json.loads(path.read_text())
    mapping = {part: whole.get(part) for part in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()[:32]
