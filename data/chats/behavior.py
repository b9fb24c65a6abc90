"""What a chat template does, found by trying it out on a few short chats.

A template is a program. Nothing is assumed about it, except that a reply in a longer chat has the same header and the
same end as in these chats.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from data.chats.messages import Message, Messages, assistant_message, user_message
from data.document import BadRecord

Tools = list[dict[str, Any]] | None
Render = Callable[[Messages, Tools, bool], str]
"""Renders messages with tools. The last argument is whether the generation prompt is added. Raises BadRecord if the
template refuses the messages."""

_QUESTION, _REPLY, _INSTRUCTIONS, _RESULT = "question", "words", "instructions", "sunshine"
_CALL_ID = "abcdefghi"  # the templates of Mistral want nine letters or digits
_TOOLS: Tools = [
    {
        "type": "function",
        "function": {
            "name": "find_weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


class ToolCallForm(NamedTuple):
    """How a template wants the messages that call tools."""

    empty_content: str | None
    """The content of a message that only calls tools."""
    arguments_as_text: bool
    """Whether the arguments of a call are JSON text. Otherwise they are an object."""


class Behavior(NamedTuple):
    """What a template does."""

    header: str
    """The text between the user's message and the assistant's, such as `<|im_start|>assistant` and a line break."""
    has_generation_prompt: bool
    """Whether the template writes the header of a reply that does not exist yet."""
    opening: str
    """What the generation prompt has after the header, such as `<think>` and a line break, although the rendering of a
    reply does not begin with it."""
    before_text: str
    """White space between the header and the text of a reply."""
    after_text: str
    """What follows the text of a reply."""
    tool_call_form: ToolCallForm | None
    """None if the template does not show calls of tools."""
    shows_further_calls: bool
    """Whether the template shows all calls of a message. That of gpt-oss, for example, shows only the first one."""
    shows_tools: bool
    """Whether the template shows the descriptions of tools."""
    hidden_roles: frozenset[str]
    """Roles whose messages the template accepts but does not show."""
    source: str
    """The text of the template."""

    @property
    def joins_thoughts(self) -> bool:
        """Whether a thought must be given to the template as a part of the content, between <think> and </think>."""
        return "</think>" in self.source and "reasoning_content" not in self.source

    def adapt(self, message: Message) -> Message:
        """Return the message in the form that the template expects."""
        thought = message.get("reasoning_content")
        if isinstance(thought, str) and thought.strip() and self.joins_thoughts:
            text = (message["content"] or "").lstrip()
            message = {**message, "content": f"<think>\n{thought.strip()}\n</think>\n\n{text}"}
        if "tool_calls" not in message:
            return message
        if self.tool_call_form is None:
            if not message["content"]:
                raise BadRecord("a message only calls tools, but the chat template does not show calls of tools")
            return message
        return _with_form(message, self.tool_call_form)

    def unread_fields(self, messages: Messages, tools: Tools) -> set[str]:
        """Return the names of the fields of a chat that the template does not show."""
        unread = {"tools"} if tools and not self.shows_tools else set[str]()
        for message in messages:
            if message["role"] in self.hidden_roles:
                unread.add(f"messages[].content with the role {message['role']}")
            if "tool_calls" in message and self.tool_call_form is None:
                unread.add("messages[].tool_calls")
            elif len(message.get("tool_calls", ())) > 1 and not self.shows_further_calls:
                unread.add("messages[].tool_calls after the first")
            for key in message.keys() - {"role", "content", "tool_calls"}:
                if key == "reasoning_content" and self.joins_thoughts:
                    continue
                if not re.search(rf"\b{re.escape(key)}\b", self.source):
                    unread.add(f"messages[].{key}")
        return unread


def observe(render: Render, source: str, *, special: re.Pattern[str]) -> Behavior:
    """Return what the template does. `special` matches the tokenizer's special and added tokens in a text.

    Raises BadRecord if the template refuses a chat of one question and one reply, or does not show the reply.
    """
    question = [user_message(_QUESTION)]
    bare, prompt = render(question, None, False), render(question, None, True)
    shown = render([*question, assistant_message(_REPLY)], None, False)
    before, found, after = shown.rpartition(_REPLY)
    if not found:
        raise BadRecord("the chat template does not show the text of a reply")
    header_start = _common_length(bare, before, special)
    header, opening, before_text = before[header_start:], "", ""
    if shown.startswith(prompt) and prompt != bare:
        header = prompt[header_start:]
        between = before[len(prompt) :]
        before_text = between if not between.strip() else ""
    elif prompt != bare and prompt.startswith(before.rstrip()):
        header, opening = before.rstrip()[header_start:], prompt[len(before.rstrip()) :]
    if not header.strip():  # as in the template of Llama 2, in which a reply has no header
        header, before_text = "", header + before_text
    tool_call_form = _find_tool_call_form(render)
    return Behavior(
        header=header,
        has_generation_prompt=prompt != bare or not header,
        opening=opening,
        before_text=before_text,
        after_text=after,
        tool_call_form=tool_call_form,
        shows_further_calls=tool_call_form is not None and _shows_further_calls(render, tool_call_form),
        shows_tools=_shows(render, question, "find_weather", tools=_TOOLS),
        hidden_roles=_find_hidden_roles(render),
        source=source,
    )


def _common_length(first: str, second: str, special: re.Pattern[str]) -> int:
    """Return the length of the text that both begin with. It does not end within a special token of `second`."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return next((match.start() for match in special.finditer(second) if match.start() < length < match.end()), length)


_ARGUMENTS_AS_JSON = re.compile(r'"place":\s*"Oslo"')
# As in <parameter=place>Oslo</parameter> or place="Oslo". Two texts do not match, because a template shows them if it
# expects the other form of arguments: {'place': 'Oslo'} and {\"place\": \"Oslo\"}.
_ARGUMENTS_ONE_BY_ONE = re.compile(r"""\bplace\b(?!['"\\])[^\\]{1,60}?\bOslo\b""")


def _find_tool_call_form(render: Render) -> ToolCallForm | None:
    """Return the first form of a tool call in which the template shows the name and the arguments.

    Forms in which it shows the arguments as JSON come first.
    """
    forms = [ToolCallForm(content, as_text) for content in (None, "") for as_text in (False, True)]
    for arguments in (_ARGUMENTS_AS_JSON, _ARGUMENTS_ONE_BY_ONE):
        for form in forms:
            try:
                rendered = render([user_message(_QUESTION), _with_form(_tool_call(), form)], _TOOLS, False)
            except BadRecord:
                continue
            if "find_sunset" in rendered and arguments.search(rendered) and "None" not in rendered:
                return form
    return None


def _shows_further_calls(render: Render, form: ToolCallForm) -> bool:
    message = _with_form(_tool_call("find_sunset", "find_sunrise"), form)
    return _shows(render, [user_message(_QUESTION), message], "find_sunrise", tools=_TOOLS)


def _tool_call(*names: str) -> Message:
    """Return a message that calls functions, or one function if no name is given."""
    calls = [
        {"id": _CALL_ID, "type": "function", "function": {"name": name, "arguments": {"place": "Oslo"}}}
        for name in names or ("find_sunset",)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _with_form(message: Message, form: ToolCallForm) -> Message:
    calls = message["tool_calls"]
    if form.arguments_as_text:
        calls = [
            {**call, "function": call["function"] | {"arguments": _to_json(call["function"]["arguments"])}}
            for call in calls
        ]
    content = form.empty_content if message["content"] is None else message["content"]
    return {**message, "content": content, "tool_calls": calls}


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _find_hidden_roles(render: Render) -> frozenset[str]:
    system = {"role": "system", "content": _INSTRUCTIONS}
    tool = {"role": "tool", "name": "find_sunset", "tool_call_id": _CALL_ID, "content": _RESULT}
    question, call = user_message(_QUESTION), {**_tool_call(), "content": ""}
    shown = {
        "system": _shows(render, [system, question], _INSTRUCTIONS),
        "tool": _shows(render, [question, call, tool], _RESULT),
    }
    return frozenset(role for role, is_shown in shown.items() if not is_shown)


def _shows(render: Render, messages: Messages, text: str, *, tools: Tools = None) -> bool:
    """Whether the rendering contains a text. A template that refuses the messages hides nothing, so this is true."""
    try:
        return text in render(messages, tools, True)
    except BadRecord:
        return True
