"""Readers of chats, preferences and prompts. Each line of a JSONL file is one record.

A chat has one of two forms:

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    {"prompt": "Hi", "response": "Hello!"}

A preference is a prompt with two completions:

    {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}

A prompt can have further fields, which the verifier (the user-provided reward function) reads:

    {"prompt": "Hi", "answer": "…", …}

The field `prompt` is either a string, which is a message of the user, or a list of messages. A file of prompts may also
have the list of messages in a field `messages` instead.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from data.document import BadRecord
from data.sources.compression import is_damage_error, read_utf8_blocks
from data.sources.records import split_lines

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]
"""Messages of a chat, each with the keys `role` and `content`."""


class Chat(NamedTuple):
    location: str
    """File and line of the record, as `file:line`, for error messages."""
    messages: Messages


class Preference(NamedTuple):
    location: str
    """File and line of the record, as `file:line`, for error messages."""
    prompt: Messages
    chosen: str
    """The text of the preferred completion."""
    rejected: str
    """The text of the other completion."""


class PromptRecord(NamedTuple):
    location: str
    """File and line of the record, as `file:line`, for error messages."""
    messages: Messages
    """The messages of the prompt. The last one is the user's."""
    record: dict[str, Any]
    """All fields of the record."""

    @property
    def text(self) -> str:
        """The text of the user's last message."""
        return self.messages[-1]["content"]


def read_records(urls: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file:line`, record) for every line of JSONL files that is not blank.

    The files can be on any file system of fsspec. Raises ValueError if a line is too long or not a JSON object, if a
    file is damaged, or if the files contain no record at all. The message names the file and, where possible, the line.
    """
    num_records, read_urls = 0, []
    for url in urls:
        read_urls.append(url)
        for number, line in _numbered_lines(url):
            if not line.strip():
                continue
            num_records += 1
            yield f"{url}:{number}", _parse(f"{url}:{number}", line)
    if not num_records:
        raise ValueError(f"{', '.join(read_urls)}: no record found; expected one JSON object per line")


def _numbered_lines(url: str) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) for every line of a file. The first line has the number 1.

    Raises ValueError for a line that is too long and for a damaged file.
    """
    number = 0
    try:
        for number, (_, line) in enumerate(split_lines(read_utf8_blocks(url)), start=1):
            if isinstance(line, BadRecord):
                raise ValueError(f"{url}:{number}: {line}")
            yield number, line
    except Exception as error:
        if not is_damage_error(error):
            raise
        raise ValueError(
            f"{url}: the file cannot be read after line {number} ({error}); if it is damaged, download it again"
        ) from error


def _parse(location: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:  # Raised for malformed JSON and for malformed UTF-8.
        raise ValueError(f"{location}: the line is not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{location}: expected a JSON object, found {type(record).__name__}")
    return record


def read_chats(urls: Iterable[str]) -> Iterator[Chat]:
    """Yield every chat of the files.

    Raises ValueError for a malformed chat and for a chat without a message of the assistant. The message names the
    file, the line and the problem. Also raises the errors of `read_records`.
    """
    for location, record in read_records(urls):
        if "messages" in record:
            messages = _messages(location, "messages", record["messages"])
        elif "prompt" in record and "response" in record:
            reply = {"role": "assistant", "content": _text(location, "response", record["response"])}
            messages = [*_prompt(location, record), reply]
        else:
            raise ValueError(
                f"{location}: a chat needs the field messages, or the fields prompt and response; this record has "
                f"{', '.join(record) or 'no fields'}"
            )
        if all(message["role"] != "assistant" for message in messages):
            raise ValueError(
                f"{location}: messages: no message has the role assistant, so there is nothing to train on; add a "
                "reply or remove the record"
            )
        yield Chat(location, messages)


def read_preferences(urls: Iterable[str]) -> Iterator[Preference]:
    """Yield every preference of the files.

    Raises ValueError for a malformed preference and for one with two equal completions. The message names the file, the
    line and the problem. Also raises the errors of `read_records`.
    """
    for location, record in read_records(urls):
        prompt = _prompt(location, record)
        chosen, rejected = (_text(location, name, record.get(name)) for name in ("chosen", "rejected"))
        if chosen == rejected:
            raise ValueError(
                f"{location}: chosen and rejected are the same text, so neither is preferred; remove the record"
            )
        yield Preference(location, prompt, chosen, rejected)


def read_prompts(urls: Iterable[str]) -> Iterator[PromptRecord]:
    """Yield every prompt of the files.

    Raises ValueError for a malformed prompt and for one whose last message is not the user's. The message names the
    file, the line and the problem. Also raises the errors of `read_records`.
    """
    for location, record in read_records(urls):
        messages = (
            _messages(location, "messages", record["messages"]) if "messages" in record else _prompt(location, record)
        )
        if messages[-1]["role"] != "user":
            raise ValueError(
                f"{location}: the last message of a prompt must have the role user, but it has the role "
                f"{messages[-1]['role']}; remove that message"
            )
        yield PromptRecord(location, messages, record)


def _prompt(location: str, record: Mapping[str, Any]) -> Messages:
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        return _messages(location, "prompt", prompt)
    return [{"role": "user", "content": _text(location, "prompt", prompt)}]


def _messages(location: str, field: str, value: Any) -> Messages:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{location}: {field} must be a list of at least one message")
    messages: Messages = []
    for number, message in enumerate(value):
        path = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise ValueError(
                f"{location}: {path} must be an object with the keys role and content, not {type(message).__name__}"
            )
        if message.get("role") not in ROLES:
            raise ValueError(
                f"{location}: {path}.role is {message.get('role')!r}; it must be one of {', '.join(ROLES)}"
            )
        messages.append(
            {"role": message["role"], "content": _text(location, f"{path}.content", message.get("content"))}
        )
    return messages


def _text(location: str, field: str, value: Any) -> str:
    if value is None:
        raise ValueError(f"{location}: {field} is missing; add it or remove the record")
    if not isinstance(value, str):
        raise ValueError(f"{location}: {field} must be a string, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{location}: {field} is empty; add text or remove the record")
    return value
