"""Chat, preference and prompt records, from JSONL files.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}     or
    {"prompt": "Hi", "response": "Hello!"}                        chats
    {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}  preferences
    {"prompt": "Hi", "answer": "…", …}                            prompts; the other fields are for the verifier

A prompt is a string (a user's message) or a list of messages.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from data.document import BadRecord
from data.sources.compression import is_damage_error, read_utf8_blocks
from data.sources.records import split_lines

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]


class Chat(NamedTuple):
    location: str
    """File and line, for messages to the user."""
    messages: Messages


class Preference(NamedTuple):
    location: str
    prompt: Messages
    chosen: str
    rejected: str


class PromptRecord(NamedTuple):
    location: str
    messages: Messages
    """Up to the user's last message."""
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
    num_records, names = 0, []
    for url in urls:
        names.append(url)
        for number, line in _numbered_lines(url):
            if not line.strip():
                continue
            num_records += 1
            yield f"{url}:{number}", _parse(f"{url}:{number}", line)
    if not num_records:
        raise ValueError(f"{', '.join(names)}: no record; expected one JSON object a line")


def _numbered_lines(url: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, (_, line) in enumerate(split_lines(read_utf8_blocks(url)), start=1):
            if isinstance(line, BadRecord):
                raise ValueError(f"{url}:{number}: {line}")
            yield number, line
    except Exception as error:
        if not is_damage_error(error):
            raise
        raise ValueError(f"{url}: damaged file, unreadable after line {number} ({error}); fetch it anew") from error


def _parse(location: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:  # malformed JSON and malformed UTF-8 alike
        raise ValueError(f"{location}: not readable as JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{location}: expected a JSON object, found {type(record).__name__}")
    return record


def read_chats(urls: Iterable[str]) -> Iterator[Chat]:
    """Every chat of the files. Raises ValueError naming file, line and rule for a malformed record."""
    for location, record in read_records(urls):
        if "messages" in record:
            messages = _messages(location, "messages", record["messages"])
        elif "prompt" in record and "response" in record:
            reply = {"role": "assistant", "content": _text(location, "response", record["response"])}
            messages = [*_prompt(location, record), reply]
        else:
            raise ValueError(
                f"{location}: expected messages, or prompt and response; found {', '.join(record) or 'nothing'}"
            )
        if all(message["role"] != "assistant" for message in messages):
            raise ValueError(f"{location}: messages: none is by the assistant, so there is nothing to learn")
        yield Chat(location, messages)


def read_preferences(urls: Iterable[str]) -> Iterator[Preference]:
    """Every preference of the files. Raises ValueError naming file, line and rule for a malformed record."""
    for location, record in read_records(urls):
        prompt = _prompt(location, record)
        chosen, rejected = (_text(location, name, record.get(name)) for name in ("chosen", "rejected"))
        if chosen == rejected:
            raise ValueError(
                f"{location}: chosen and rejected are the same, so there is nothing to prefer; remove the record"
            )
        yield Preference(location, prompt, chosen, rejected)


def read_prompts(urls: Iterable[str]) -> Iterator[PromptRecord]:
    """Every prompt of the files. Raises ValueError naming file, line and rule for a malformed record."""
    for location, record in read_records(urls):
        messages = (
            _messages(location, "messages", record["messages"]) if "messages" in record else _prompt(location, record)
        )
        if messages[-1]["role"] != "user":
            raise ValueError(f"{location}: the last message must be the user's, not the {messages[-1]['role']}'s")
        yield PromptRecord(location, messages, record)


def _prompt(location: str, record: Mapping[str, Any]) -> Messages:
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        return _messages(location, "prompt", prompt)
    return [{"role": "user", "content": _text(location, "prompt", prompt)}]


def _messages(location: str, field: str, value: Any) -> Messages:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{location}: {field} must be a list of messages with at least one")
    messages: Messages = []
    for number, message in enumerate(value):
        at = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise ValueError(f"{location}: {at} must be an object with role and content, not {type(message).__name__}")
        if message.get("role") not in ROLES:
            raise ValueError(f"{location}: {at}.role is {message.get('role')!r}; it must be one of {', '.join(ROLES)}")
        messages.append({"role": message["role"], "content": _text(location, f"{at}.content", message.get("content"))})
    return messages


def _text(location: str, field: str, value: Any) -> str:
    if value is None:
        raise ValueError(f"{location}: {field} is missing; add it or remove the record")
    if not isinstance(value, str):
        raise ValueError(f"{location}: {field} must be a string, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{location}: {field} is empty; add text or remove the record")
    return value
