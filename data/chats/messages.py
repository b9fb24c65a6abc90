"""Messages of chats, brought to one form from the forms in which data sets have them.

A message of the OpenAI form has `role` and `content`, a message of the ShareGPT form has `from` and `value`. In our
form a message is a dictionary with the keys `role` (one of `ROLES`), `content` and, for a message of the assistant that
calls tools, `tool_calls`. Further keys of the message, such as `name` or `reasoning_content`, stay as they are, and the
chat template receives them.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from data.document import BadRecord

ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]
Messages = list[Message]
"""The messages of a chat in our form."""

_ROLE_NAMES = {role: role for role in ROLES} | {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Our role for each name of a role in data sets. OpenAI's `developer` is its later name for `system`."""

_TOOL_CALL_ROLE = "function_call"
"""The ShareGPT role of a message that contains only a call of a tool, as JSON."""

_LEARNED_KEYS = ("weight", "train", "training")
"""Keys of a message that say whether the assistant's message is learned: 1 or true, 0 or false."""


class ParsedMessages(NamedTuple):
    messages: Messages
    is_learned: list[bool]
    """For each message, whether it is a message of the assistant that is learned."""


def parse_messages(field: str, value: Any) -> ParsedMessages:
    """Return a list of messages in our form. Raises BadRecord, which names the message and the key."""
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{field} must be a list of at least one message")
    parsed = ParsedMessages([], [])
    for number, item in enumerate(value):
        path = f"{field}[{number}]"
        if not isinstance(item, dict):
            raise BadRecord(f"{path} must be an object with the keys role and content, not {type(item).__name__}")
        message = _parse_message(path, item)
        is_learned = _read_learned(path, item)
        parsed.messages.append(message)
        parsed.is_learned.append(is_learned and message["role"] == "assistant")
    return parsed


def user_message(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant_message(text: str) -> Message:
    return {"role": "assistant", "content": text}


def text_of(message: Message) -> str:
    """Return the text of a message, which is empty if a message only calls tools."""
    return message["content"] or ""


def parse_text(field: str, value: Any, *, may_be_blank: bool = False) -> str:
    """Return a string. Raises BadRecord for another type, a missing value, and for a blank string if it may not be."""
    if value is None:
        raise BadRecord(f"{field} is missing; add it or remove the record")
    if not isinstance(value, str):
        raise BadRecord(f"{field} must be a string, not {type(value).__name__}")
    if not may_be_blank and not value.strip():
        raise BadRecord(f"{field} is empty; add text or remove the record")
    check_unicode(field, value)
    return value


def check_unicode(field: str, text: str) -> None:
    """Raises BadRecord if a text contains a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"{field} contains a lone surrogate, which is not valid Unicode") from error


def parse_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return the descriptions of tools in the form of OpenAI, or None if the value is empty.

    The value is a list of objects, or such a list as a JSON string. Raises BadRecord for any other value.
    """
    tools = _parse_json("tools", value) if isinstance(value, str) and value.strip() else value
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecord("tools must be a list of objects that describe functions")
    return [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool} for tool in tools
    ]


def _parse_message(path: str, item: Mapping[str, Any]) -> Message:
    is_share_gpt = "from" in item and "role" not in item
    role_key, text_key = ("from", "value") if is_share_gpt else ("role", "content")
    name, text = item.get(role_key), item.get(text_key)
    extra = {key: value for key, value in item.items() if key not in (role_key, text_key, *_LEARNED_KEYS)}
    if name == _TOOL_CALL_ROLE:
        return extra | {
            "role": "assistant",
            "content": None,
            "tool_calls": _parse_tool_calls(f"{path}.{text_key}", text),
        }
    role = _ROLE_NAMES.get(name) if isinstance(name, str) else None
    if role is None:
        raise BadRecord(f"{path}.{role_key} is {name!r}; it must be one of {', '.join(_ROLE_NAMES)}")
    calls = extra.pop("tool_calls", None) or extra.pop("function_call", None)
    extra = {key: value for key, value in extra.items() if value is not None}
    text = _join_parts(f"{path}.{text_key}", text) if isinstance(text, list) else text
    if calls and role == "assistant":
        content = parse_text(f"{path}.{text_key}", text, may_be_blank=True) if text else None
        tool_calls = _parse_tool_calls(f"{path}.tool_calls", calls)
        return {"role": role, "content": content, **extra, "tool_calls": tool_calls}
    if calls:
        raise BadRecord(f"{path}.tool_calls: only a message of the assistant can call tools, not one of the {role}")
    content = parse_text(f"{path}.{text_key}", text, may_be_blank=role in ("system", "tool"))
    return {"role": role, "content": content, **extra}


def _read_learned(path: str, item: Mapping[str, Any]) -> bool:
    """Return whether the keys of a message allow to learn it. Without such a key it is learned."""
    is_learned = True
    for key in _LEARNED_KEYS:
        value = item.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # true and false are 1 and 0
            raise BadRecord(f"{path}.{key} is {value!r}; only 0 and 1 (or false and true) are supported")
        is_learned = is_learned and bool(value)
    return is_learned


def _join_parts(field: str, parts: list[Any]) -> str:
    """Return the texts of content parts, joined with line breaks, which is also how vLLM joins them.

    Raises BadRecord for a part that is not text.
    """
    texts: list[str] = []
    for number, part in enumerate(parts):
        if isinstance(part, dict) and part.get("type") == "text":
            texts.append(parse_text(f"{field}[{number}].text", part.get("text"), may_be_blank=True))
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadRecord(f"{field}[{number}] is a part of type {kind!r}; only text is supported")
    return "\n".join(texts)


def _parse_tool_calls(field: str, value: Any) -> list[dict[str, Any]]:
    """Return tool calls in the form of OpenAI, with the arguments as an object.

    The value is a call or a list of calls, also as JSON. A call may be `{"function": {"name", "arguments"}}` or
    `{"name", "arguments"}`, and the arguments may be an object or JSON. Raises BadRecord for anything else.
    """
    calls = _parse_json(field, value) if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    return [_parse_tool_call(f"{field}[{number}]", call) for number, call in enumerate(calls)]


def _parse_tool_call(path: str, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecord(f"{path} must be a call of a function with the keys name and arguments")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _parse_json(f"{path}.arguments", arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict | None):
        raise BadRecord(f"{path}.arguments must be an object, not {type(arguments).__name__}")
    extra = {key: call[key] for key in ("id",) if "function" in call and key in call}
    return {**extra, "type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}


def _parse_json(field: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{field} is not valid JSON ({error})") from error
