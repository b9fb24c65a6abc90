"""Tokenizers as folders that transformers and vLLM load: special tokens, chat template and fingerprint.

A tokenizer is either trained by the stage `vocabulary` and saved by `save_tokenizer`, or it comes from a Hugging Face
folder of another project.

In a tokenizer that Raymill trains, two special tokens mark an end. `<|endoftext|>` is the separator between documents.
It is the tokenizer's bos and eos token, and no chat contains it. `<|end|>` is at the end of each message of a chat. For
other tokenizers, `document_tokens` and `chat_end_id` find the corresponding tokens.

A model folder names its end token: a base model ends a text with the separator (`read_base_special_tokens`), and a chat
model ends a completion with the token at the end of a message (`read_chat_special_tokens`). vLLM also stops at the
tokenizer's eos token.

A document begins with the same token in shards, in evaluation and in an exported base model: the post-processor in
tokenizer.json, which `save_tokenizer` and `declare_bos` write, adds it when transformers or vLLM encode a text.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Tokenizer, processors

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
    if (bos := tokenizer.token_to_id(END_OF_TEXT)) is not None:
        tokenizer.post_processor = _begin_with(END_OF_TEXT, bos)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "add_bos_token": True,
        "pad_token": PAD,
        **{name: token for name, token in (("unk_token", UNKNOWN), ("mask_token", MASK)) if token in special},
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a Hugging Face folder. Raises ValueError if the folder has no tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"tokenizer: {folder} has no tokenizer.json; use a folder with a fast tokenizer of Hugging Face, which has "
            "this file"
        )
    # transformers is imported here, because it takes seconds and workers that only encode text do not need it.
    if _is_saved_by_raymill(folder):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    # AutoTokenizer imports torch and scikit-learn to find the class, so it takes 7.9 s of CPU time instead of 1.5 s.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def _is_saved_by_raymill(folder: Path) -> bool:
    """Return whether `save_tokenizer` wrote the folder. Then the tokenizer's class is PreTrainedTokenizerFast."""
    config = _read_config(folder)
    return config.get("chat_template") == CHAT_TEMPLATE and config.get("tokenizer_class") == "PreTrainedTokenizerFast"


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the content of tokenizer_config.json, or an empty dictionary if the folder does not have the file."""
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def load_encoder(folder: Path) -> Tokenizer:
    """Return the tokenizer for encoding documents. It does not recognize special tokens in a text, and adds none.

    A text with `<|end|>` is encoded as these characters, not as the special token. This is true for every tokenizer
    that Raymill trains, and for most others. An exception is a Unigram model with `</s>` in its vocabulary (T5, XLM-R),
    which finds this token in a text (see `Encoder.encode_without`).
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.post_processor = None  # It would add the bos token to every text, and this function's result adds none.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class DocumentTokens(NamedTuple):
    """The ids of the special tokens around a document. Both are the same for many tokenizers."""

    begin: int
    """Id of the token that a model reads before the first token of a document."""
    end: int
    """Id of the token that a model learns to predict after the last token of a document: the separator."""


def document_tokens(folder: Path, tokenizer: "PreTrainedTokenizerBase | None" = None) -> DocumentTokens:
    """Return the special tokens around a document. A document begins with the tokenizer's bos token if it has one.

    `tokenizer` is the tokenizer of the folder, if the caller has loaded it.

    Without a bos token (Qwen 2.5), a document begins with the separator. So does a document if the tokenizer never adds
    its bos token: because `add_bos_token` is false (Phi 3), or because its bos and eos tokens belong to chats.
    SmolLM2-Instruct is an example of this: its bos token begins a message, and its eos token is not the separator.

    Raises ValueError if the tokenizer has no tokenizer.json or no separator.
    """
    tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
    end = separator_id(tokenizer)
    bos: Any = tokenizer.bos_token_id
    if bos is None:
        return DocumentTokens(begin=end, end=end)
    declared = _read_config(folder).get("add_bos_token")
    is_for_documents = tokenizer.eos_token_id == end if declared is None else declared
    return DocumentTokens(begin=int(bos) if is_for_documents or _adds_bos(tokenizer) else end, end=end)


def _adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the tokenizer begins every text with its bos token."""
    return tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]


def declare_bos(folder: Path) -> None:
    """Change the tokenizer in `folder` so that it begins every text with the token that documents begin with.

    Nothing is changed if it does so already, or if documents do not begin with its bos token.
    """
    tokenizer = load_tokenizer(folder)
    bos: Any = tokenizer.bos_token_id
    if document_tokens(folder, tokenizer).begin != bos or _adds_bos(tokenizer):
        return
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    adds_bos = json.loads(_begin_with(str(tokenizer.bos_token), int(bos)).__getstate__())
    steps = [content["post_processor"]] if content.get("post_processor") else []
    content["post_processor"] = {"type": "Sequence", "processors": [*steps, adds_bos]} if steps else adds_bos
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False))


def _begin_with(token: str, token_id: int) -> processors.TemplateProcessing:
    """Return a post-processor that begins every text with a special token."""
    template = [f"{token}:0", "$A:0"]
    pair = [*template, f"{token}:1", "$B:1"]
    return processors.TemplateProcessing(single=template, pair=pair, special_tokens=[(token, token_id)])


def separator_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the separator, the special token after every document.

    The separator is `<|endoftext|>` or `<|end_of_text|>` if the tokenizer has this token, otherwise the eos token,
    otherwise the sep token. SmolLM2-Instruct and Llama-3-Instruct are examples with such a token and a different eos
    token. BERT is an example without an eos token.

    Raises ValueError if the tokenizer has none of these tokens.
    """
    vocab = tokenizer.get_vocab()
    candidates: tuple[Any, ...] = (
        *(vocab.get(token) for token in _SEPARATORS),
        tokenizer.eos_token_id,
        tokenizer.sep_token_id,
    )
    for token_id in candidates:
        if token_id is not None:
            return int(token_id)
    raise ValueError(
        f"tokenizer: it has neither {' nor '.join(_SEPARATORS)} nor an eos or sep token, so no token can separate "
        "documents; define eos_token in its tokenizer_config.json"
    )


_SEPARATORS = (END_OF_TEXT, "<|end_of_text|>")
"""Tokens that end documents in every tokenizer that has them, also if the tokenizer's eos token ends messages."""


class SpecialTokenIds(NamedTuple):
    """The ids of the special tokens that a model's configuration names."""

    bos: int
    eos: int
    pad: int
    """Id of the padding token. It is never the token at the end of a chat message or, without a chat template, of a
    document (see `pad_id`)."""


def read_base_special_tokens(folder: Path) -> SpecialTokenIds:
    """Return the special tokens of a base model. Its bos and eos tokens are those around a document."""
    tokenizer = load_tokenizer(folder)
    begin, end = document_tokens(folder, tokenizer)
    return SpecialTokenIds(bos=begin, eos=end, pad=pad_id(tokenizer))


def read_chat_special_tokens(folder: Path) -> SpecialTokenIds:
    """Return the special tokens of a chat model.

    The eos token is the token at the end of a message in the chat template. The bos token is that of the tokenizer, or
    the separator if the tokenizer has none.
    """
    tokenizer = load_tokenizer(folder)
    bos: Any = tokenizer.bos_token_id
    bos = separator_id(tokenizer) if bos is None else int(bos)
    return SpecialTokenIds(bos=bos, eos=chat_end_id(tokenizer), pad=pad_id(tokenizer))


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of a special token that can be used for padding.

    It is the first of these tokens that exists and is not the end token: the pad token, the separator, the unknown
    token, the bos token. The end token is the token at the end of a message in the chat template, or the separator if
    there is no chat template. SmolLM2 is an example of a tokenizer whose pad token is also the end token.

    Raises ValueError if none of these tokens can be used.
    """
    end_ids = {chat_end_id(tokenizer)} if tokenizer.chat_template else {separator_id(tokenizer)}
    pad, unknown, bos = tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id
    candidates: tuple[Any, ...] = (pad, separator_id(tokenizer), unknown, bos)
    for candidate in candidates:
        if candidate is not None and candidate not in end_ids:
            return int(candidate)
    raise ValueError(
        "tokenizer: it has no special token for padding that is not also an end token; define pad_token in its "
        "tokenizer_config.json"
    )


def vocab_size(folder: Path) -> int:
    """Return the number of rows that the embedding table needs: the highest token id plus one.

    Special tokens count too that only tokenizer_config.json names, because transformers gives them the next ids.
    """
    return max(load_tokenizer(folder).get_vocab().values()) + 1


def end_token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids of the tokens at which generation in a chat stops, in ascending order.

    These are the token at the end of an assistant's message, the tokenizer's eos token, and the separator.
    """
    eos: Any = tokenizer.eos_token_id
    end_ids = {separator_id(tokenizer), chat_end_id(tokenizer)}
    return sorted(end_ids if eos is None else end_ids | {int(eos)})


def chat_end_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the first special token after an assistant's message in the chat template.

    Raises ValueError if there is no chat template, or if it has no special token after the message.
    """
    if not tokenizer.chat_template:
        raise ValueError("tokenizer: it has no chat template; add chat_template to its tokenizer_config.json")
    text = "words"
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    chat = str(tokenizer.apply_chat_template(messages, tokenize=False))
    after_message = chat.rpartition(text)[2]
    special_ids = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token_id in tokenizer.encode(after_message, add_special_tokens=False):
        if token_id in special_ids:
            return int(token_id)
    raise ValueError(
        f"tokenizer: its chat template ends an assistant's message with {after_message!r}, which contains no special "
        "token; change chat_template in tokenizer_config.json so that a special token ends each message"
    )


def fingerprint(folder: Path) -> str:
    """Return a hash of everything in a folder's tokenizer.json that decides how text is encoded.

    The format of the file and its settings for padding and truncation do not change the hash. So the hash stays
    the same when transformers loads and saves the tokenizer.

    Raises ValueError if the folder has no tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"tokenizer: {folder} has no tokenizer.json")
    content = json.loads(path.read_text())
    mapping = {section: content.get(section) for section in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()[:32]
