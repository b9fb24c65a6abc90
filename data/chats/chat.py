"""Chats: JSONL records in, token ids out, with a mask of the words that a model shall learn to say.

What is an assistant's is found by rendering: the tokens that a chat has more than its prefix does are the reply. So any
tokenizer whose template only appends will do, ours and foreign ones, without knowledge of their marks.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}     or
    {"prompt": "Hi", "response": "Hello!"}                        chats
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}  preferences
    {"prompt": "Hi", "answer": "…", …}                            prompts; the other fields are the verifier's

A prompt is a string (a user's message) or a list of messages.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.document import Bad
from data.sources.compression import is_damage, utf8_blocks
from data.sources.records import lines
from data.tokens.shards import PADDING_DOCUMENT, Rows
from data.tokens.tokenizer import chat_end_id, end_token_ids, pad_id
from data.tokens.tokenizer import load_tokenizer as load_any_tokenizer

ROLES = ("system", "user", "assistant")
PackedRows = Rows
"""Chats packed side by side, as arrays with the fields of a training batch, [rows, T]."""
_OPEN_ROWS = 64  # how many unfinished rows `pack` looks through for room

Messages = list[dict[str, str]]


class Chat(NamedTuple):
    where: str
    """File and line, for messages to the user."""
    messages: Messages


class Preference(NamedTuple):
    where: str
    prompt: Messages
    chosen: str
    rejected: str


class PromptRecord(NamedTuple):
    where: str
    messages: Messages
    """Up to and with the user's last message."""
    record: dict[str, Any]
    """All fields of the line."""

    @property
    def text(self) -> str:
        """The user's last message."""
        return self.messages[-1]["content"]


# Reading.


def read_records(urls: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of every line of JSONL files on any fsspec URL.

    Raises ValueError naming file and line for a line that is no JSON object, for files without any record, and for a
    damaged file.
    """
    found, names = 0, []
    for url in urls:
        names.append(url)
        for number, line in _numbered_lines(url):
            if not line.strip():
                continue
            found += 1
            yield f"{url}:{number}", _parse(f"{url}:{number}", line)
    if not found:
        raise ValueError(f"{', '.join(names)}: no record; expected one JSON object a line")


def _numbered_lines(url: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, (_, line) in enumerate(lines(utf8_blocks(url)), start=1):
            if isinstance(line, Bad):
                raise ValueError(f"{url}:{number}: {line}")
            yield number, line
    except Exception as error:
        if not is_damage(error):
            raise
        raise ValueError(f"{url}: damaged file, unreadable after line {number} ({error}); fetch it anew") from error


def _parse(where: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:  # malformed JSON and malformed UTF-8 alike
        raise ValueError(f"{where}: not readable as JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return record


def read_chats(urls: Iterable[str]) -> Iterator[Chat]:
    """Every chat of the files. Raises ValueError naming file, line and rule for a record that is none."""
    for where, record in read_records(urls):
        if "messages" in record:
            messages = _messages(where, "messages", record["messages"])
        elif "prompt" in record and "response" in record:
            reply = {"role": "assistant", "content": _text(where, "response", record["response"])}
            messages = [*_prompt(where, record), reply]
        else:
            raise ValueError(
                f"{where}: expected messages, or prompt and response; found {', '.join(record) or 'nothing'}"
            )
        if all(message["role"] != "assistant" for message in messages):
            raise ValueError(f"{where}: messages: none is by the assistant, so there is nothing to learn")
        yield Chat(where, messages)


def read_preferences(urls: Iterable[str]) -> Iterator[Preference]:
    """Every preference of the files. Raises ValueError naming file, line and rule for a record that is none."""
    for where, record in read_records(urls):
        prompt = _prompt(where, record)
        chosen, rejected = (_text(where, name, record.get(name)) for name in ("chosen", "rejected"))
        if chosen == rejected:
            raise ValueError(
                f"{where}: chosen and rejected are the same, so there is nothing to prefer; remove the record"
            )
        yield Preference(where, prompt, chosen, rejected)


def read_prompts(urls: Iterable[str]) -> Iterator[PromptRecord]:
    """Every prompt of the files. Raises ValueError naming file, line and rule for a record that is none."""
    for where, record in read_records(urls):
        messages = _messages(where, "messages", record["messages"]) if "messages" in record else _prompt(where, record)
        if messages[-1]["role"] != "user":
            raise ValueError(f"{where}: the last message must be the user's, not the {messages[-1]['role']}'s")
        yield PromptRecord(where, messages, record)


def _prompt(where: str, record: Mapping[str, Any]) -> Messages:
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        return _messages(where, "prompt", prompt)
    return [{"role": "user", "content": _text(where, "prompt", prompt)}]


def _messages(where: str, field: str, value: Any) -> Messages:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: {field} must be a list of messages with at least one")
    messages: Messages = []
    for number, message in enumerate(value):
        at = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise ValueError(f"{where}: {at} must be an object with role and content, not {type(message).__name__}")
        if message.get("role") not in ROLES:
            raise ValueError(f"{where}: {at}.role is {message.get('role')!r}; it must be one of {', '.join(ROLES)}")
        messages.append({"role": message["role"], "content": _text(where, f"{at}.content", message.get("content"))})
    return messages


def _text(where: str, field: str, value: Any) -> str:
    if value is None:
        raise ValueError(f"{where}: {field} is missing; add it or remove the record")
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field} must be a string, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{where}: {field} is empty; add text or remove the record")
    return value


# Rendering.


class ChatTokenizer:
    """A Hugging Face tokenizer with a chat template, as chats need it."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where there is no tokenizer, or one without a chat template."""
        self._tokenizer = load_any_tokenizer(folder)
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"tokenizer: the one in {folder} has no chat template; take a chat model's, or add a template"
            )
        self.pad_id = pad_id(self._tokenizer)
        self.end_id = chat_end_id(self._tokenizer)
        """The token that closes an assistant's message."""
        self.stop_ids = tuple(end_token_ids(self._tokenizer))
        """Generation ends at any of these."""
        self._marks = [str(token) for token in self._tokenizer.added_tokens_decoder.values()]

    def prompt_ids(self, messages: Messages, *, where: str = "chat") -> list[int]:
        """The chat so far and what opens the assistant's reply."""
        return self._ids(messages, where, add_generation_prompt=True)

    def chat_ids(self, messages: Messages, *, where: str = "chat") -> list[int]:
        """The whole chat; where the assistant has the last word, up to and with the token that closes it."""
        ids = self._ids(messages, where, add_generation_prompt=False)
        if messages[-1]["role"] == "assistant" and self.end_id in ids:
            # Some templates put a line break after the end, which a model neither says nor has to learn.
            return ids[: len(ids) - ids[::-1].index(self.end_id)]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply with its special tokens visible: what is judged is what was said."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _ids(self, messages: Messages, where: str, *, add_generation_prompt: bool) -> list[int]:
        for number, message in enumerate(messages):
            mark = next((mark for mark in self._marks if mark in message["content"]), None)
            if mark is not None:  # written out in a text, it would become the token and forge a turn
                raise ValueError(f"{where}: messages[{number}] holds the special token {mark!r} as text; remove it")
        try:
            ids: Any = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is its author's program and raises what it likes
            raise ValueError(f"{where}: the chat template refuses this chat ({error})") from error
        return [int(token) for token in ids]


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """The chat tokenizer of a Hugging Face folder. Raises ValueError when it has no chat template."""
    return ChatTokenizer(folder)


class RenderedChat(NamedTuple):
    ids: list[int]
    learnt: list[bool]
    """For each token whether it is the assistant's (with the token that closes its message)."""


def render(tokenizer: ChatTokenizer, chat: Chat) -> RenderedChat:
    """Token ids of a chat and the mask of the assistant's. Raises ValueError naming the record."""
    messages = chat.messages
    ids = tokenizer.chat_ids(messages, where=chat.where)
    learnt = [False] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.prompt_ids(messages[:number], where=chat.where) if number else []
        last = number == len(messages) - 1
        after = ids if last else tokenizer.chat_ids(messages[: number + 1], where=chat.where)
        if after[: len(before)] != before or ids[: len(after)] != after:
            raise ValueError(
                f"{chat.where}: the chat template rewrites what came before messages[{number}], so the reply cannot be "
                "told from its prompt; give each reply a record of its own"
            )
        learnt[len(before) : len(after)] = [True] * (len(after) - len(before))
    return RenderedChat(ids, learnt)


class PreferenceTokens(NamedTuple):
    chosen: list[int]
    """Prompt and preferred answer, up to the token that closes it."""
    rejected: list[int]


def render_preference(tokenizer: ChatTokenizer, preference: Preference) -> PreferenceTokens:
    """Token ids of both sides of a preference. Raises ValueError naming the record."""
    chosen, rejected = (
        tokenizer.chat_ids([*preference.prompt, {"role": "assistant", "content": answer}], where=preference.where)
        for answer in (preference.chosen, preference.rejected)
    )
    return PreferenceTokens(chosen, rejected)


# Packing.


class FittingChats(NamedTuple):
    chats: list[RenderedChat]
    num_cut: int
    """How many of them lost their end."""
    num_left_out: int
    """How many were left out because no reply begins within the row."""


def fit_chats(chats: Sequence[RenderedChat], *, length: int) -> FittingChats:
    """The chats as they fit into rows of `length` positions, of which one of n tokens takes n - 1.

    A longer chat is cut at its end, and left out when nothing that is the assistant's remains.
    """
    cut = [RenderedChat(chat.ids[: length + 1], chat.learnt[: length + 1]) for chat in chats]
    fitting = [chat for chat in cut if any(chat.learnt[1:])]
    num_cut = sum(any(new.learnt[1:]) and len(new.ids) < len(old.ids) for new, old in zip(cut, chats, strict=True))
    return FittingChats(fitting, num_cut, len(chats) - len(fitting))


def pack(chats: Sequence[RenderedChat], *, length: int, pad_id: int) -> PackedRows:
    """Chats side by side in rows of `length` positions: each goes into the first of the last open rows with room.

    The chats must fit (`fit_chats`).
    """
    rows: list[list[RenderedChat]] = []
    room: list[int] = []
    for chat in chats:
        needed = len(chat.ids) - 1
        assert needed <= length, f"a chat of {needed} positions in rows of {length}; fit it first"
        first = max(0, len(rows) - _OPEN_ROWS)
        row = next((row for row in range(first, len(rows)) if room[row] >= needed), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(chat)
        room[row] -= needed
    return _to_arrays(rows, length, pad_id)


def _to_arrays(rows: Sequence[Sequence[RenderedChat]], length: int, pad_id: int) -> PackedRows:
    shape = (len(rows), length)
    packed = PackedRows(
        input_ids=np.full(shape, pad_id, dtype=np.int64),
        targets=np.full(shape, pad_id, dtype=np.int64),
        loss_mask=np.zeros(shape, dtype=np.bool_),
        positions=np.zeros(shape, dtype=np.int64),
        document_ids=np.full(shape, PADDING_DOCUMENT, dtype=np.int64),
    )
    for row, chats in enumerate(rows):
        start = 0
        for number, chat in enumerate(chats):
            span = slice(start, start + len(chat.ids) - 1)
            packed.input_ids[row, span] = chat.ids[:-1]
            packed.targets[row, span] = chat.ids[1:]
            packed.loss_mask[row, span] = chat.learnt[1:]
            packed.positions[row, span] = np.arange(len(chat.ids) - 1)
            packed.document_ids[row, span] = number
            start = span.stop
    return packed
