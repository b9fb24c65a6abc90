"""The layouts in which data sets have chats, preferences and prompts.

A layout is recognized by the fields of a record. Chats:

    messages        {"messages": [{"role": "user", "content": "Hi"}, …], "tools": […]}
    completion      {"prompt": …, "completion": …}, each a string or a list of messages
    response        {"prompt": …, "response": "Hello!"}
    ShareGPT        {"conversations": [{"from": "human", "value": "Hi"}, …], "system": …, "tools": …}
    Alpaca          {"instruction": …, "input": …, "output": …, "system": …, "history": [[…, …], …]}

Preferences:

    explicit        {"prompt": …, "chosen": …, "rejected": …}, each a string or a list of messages
    implicit        {"chosen": …, "rejected": …}: what both begin with is the prompt
    dialogue        the same with strings of the form "\\n\\nHuman: … \\n\\nAssistant: …", as in hh-rlhf
    scored list     {"instruction": …, "completions": [{"response": …, "overall_score": …}, …]}, as in UltraFeedback

A prompt is `{"prompt": …}`, `{"messages": […]}` or `{"conversations": […]}`. A prompt that is a string is the text of a
user's message or, for a tokenizer without a chat template, the text itself.
"""

import os
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, TypeGuard

from data.chats.messages import (
    Messages,
    ParsedMessages,
    assistant_message,
    parse_messages,
    parse_text,
    parse_tools,
    text_of,
    user_message,
)
from data.document import BadRecord


class Tie(BadRecord):
    """Raised for a preference in which neither completion is preferred."""


class RawChat(NamedTuple):
    """A chat whose prompt and completion are texts, for a tokenizer without a chat template."""

    prompt: str
    completion: str


class Chat(NamedTuple):
    layout: str
    """Name of the record's layout, such as `ShareGPT`."""
    messages: Messages
    is_learned: list[bool]
    """For each message, whether it is a message of the assistant that is learned."""
    tools: list[dict[str, Any]] | None = None
    """Descriptions of the tools that the assistant can call."""
    raw: RawChat | None = None
    """None if the record has lists of messages."""
    unread: tuple[str, ...] = ()
    """Names of the record's fields that the layout does not have."""


class RawPreference(NamedTuple):
    """A preference of texts, for a tokenizer without a chat template."""

    prompt: str
    chosen: str
    rejected: str


class Preference(NamedTuple):
    layout: str
    """Name of the record's layout, such as `implicit`."""
    prompt: Messages
    chosen: Messages
    """The messages of the preferred completion. The last one is the assistant's."""
    rejected: Messages
    """The messages of the other completion. The last one is the assistant's."""
    tools: list[dict[str, Any]] | None = None
    """Descriptions of the tools that the assistant can call."""
    raw: RawPreference | None = None
    """None if the record has lists of messages."""
    unread: tuple[str, ...] = ()
    """Names of the record's fields that the layout does not have."""


class PromptRecord(NamedTuple):
    location: str
    """File and line of the record, as `file:line`, for error messages."""
    messages: Messages
    """The messages of the prompt. The last one is the user's or the result of a tool."""
    record: dict[str, Any]
    """All fields of the record."""
    tools: list[dict[str, Any]] | None = None
    """Descriptions of the tools that the assistant can call."""
    raw: str | None = None
    """The prompt as a text, for a tokenizer without a chat template. None if the record has a list of messages."""

    @property
    def text(self) -> str:
        """The text of the last message."""
        return text_of(self.messages[-1])


# Chats.


def parse_chat(record: Mapping[str, Any]) -> Chat:
    """Return the chat in a record. Raises BadRecord if the record has no known layout or is malformed."""
    if "messages" in record:
        chat = _from_messages("messages", "messages", record)
    elif "conversations" in record:
        chat = _from_messages("ShareGPT", "conversations", record)
    elif "prompt" in record and "completion" in record:
        chat = _from_completion("completion", "completion", record)
    elif "prompt" in record and "response" in record:
        chat = _from_completion("response", "response", record)
    elif "instruction" in record and "output" in record:
        chat = _from_instruction(record)
    else:
        raise BadRecord(
            "a chat needs the field messages, the field conversations, or the fields prompt and completion, prompt and "
            f"response, or instruction and output; this record has {', '.join(record) or 'no fields'}"
        )
    if all(message["role"] != "assistant" for message in chat.messages):
        raise BadRecord("no message has the role assistant, so there is nothing to train on; add a reply")
    if not any(chat.is_learned):
        raise BadRecord("every message of the assistant has the weight 0, so there is nothing to train on")
    return chat


def _from_messages(layout: str, field: str, record: Mapping[str, Any]) -> Chat:
    messages, is_learned = parse_messages(field, record[field])
    read = [field, "tools"]
    if layout == "ShareGPT" and messages[0]["role"] != "system":
        system = _system_messages(record)
        messages, is_learned = [*system, *messages], [False] * len(system) + is_learned
        read.append("system")
    return Chat(layout, messages, is_learned, parse_tools(record.get("tools")), unread=_unread(record, read))


def _from_completion(layout: str, field: str, record: Mapping[str, Any]) -> Chat:
    prompt, completion, tools = record["prompt"], record[field], parse_tools(record.get("tools"))
    unread = _unread(record, ["prompt", field, "tools"])
    raw = RawChat(prompt, completion) if isinstance(prompt, str) and isinstance(completion, str) else None
    before = parse_prompt_value("prompt", prompt)
    after = (
        parse_messages(field, completion)
        if isinstance(completion, list)
        else ParsedMessages([assistant_message(parse_text(field, completion))], [True])
    )
    return Chat(layout, [*before, *after.messages], [False] * len(before) + after.is_learned, tools, raw, unread)


def _from_instruction(record: Mapping[str, Any]) -> Chat:
    prompt, output = instruction_text(record), parse_text("output", record["output"])
    messages: Messages = []
    history = record.get("history") or []
    if not isinstance(history, list) or any(not isinstance(turn, list) or len(turn) != 2 for turn in history):
        raise BadRecord("history must be a list of pairs, each a text of the user and a text of the assistant")
    for number, (asked, answered) in enumerate(history):
        messages.append(user_message(parse_text(f"history[{number}][0]", asked)))
        messages.append(assistant_message(parse_text(f"history[{number}][1]", answered)))
    messages = [*_system_messages(record), *messages, user_message(prompt), assistant_message(output)]
    is_learned = [message["role"] == "assistant" for message in messages]
    raw = RawChat(f"{prompt}\n\n", output) if len(messages) == 2 else None
    unread = _unread(record, ["instruction", "input", "output", "system", "history"])
    return Chat("Alpaca", messages, is_learned, raw=raw, unread=unread)


def instruction_text(record: Mapping[str, Any]) -> str:
    """Return the fields `instruction` and `input` of an Alpaca record as one text, with a blank line between them."""
    instruction = parse_text("instruction", record["instruction"])
    more = record.get("input")
    return f"{instruction}\n\n{parse_text('input', more)}" if more else instruction


def _system_messages(record: Mapping[str, Any]) -> Messages:
    """Return the record's field `system` as a message, or no message if the record does not have this field."""
    if not record.get("system"):
        return []
    return [{"role": "system", "content": parse_text("system", record["system"])}]


def parse_prompt_value(field: str, value: Any) -> Messages:
    """Return the messages of a prompt, which is a text or a list of messages. Raises BadRecord for anything else."""
    if isinstance(value, list):
        return parse_messages(field, value).messages
    return [user_message(parse_text(field, value))]


def _unread(record: Mapping[str, Any], fields: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the record's fields that have a value and are not among `fields`."""
    return tuple(name for name, value in record.items() if name not in fields and value is not None)


# Prompts.


def parse_prompt(location: str, record: dict[str, Any]) -> PromptRecord:
    """Return the prompt in a record. Raises BadRecord if it is malformed or if its last message is the assistant's."""
    field = next((name for name in ("messages", "conversations", "prompt") if name in record), "prompt")
    messages = parse_prompt_value(field, record.get(field))
    if field == "conversations" and messages[0]["role"] != "system":
        messages = [*_system_messages(record), *messages]
    if messages[-1]["role"] not in ("user", "tool"):
        raise BadRecord(
            f"the last message of a prompt must have the role user, but it has the role {messages[-1]['role']}; remove "
            "that message"
        )
    raw = record[field] if isinstance(record[field], str) else None
    return PromptRecord(location, messages, record, parse_tools(record.get("tools")), raw)


# Preferences.

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""The beginning of a turn in a dialogue of the form of hh-rlhf."""
_COMPLETION_LISTS = ("completions", "responses", "generations")
_SCORE_LISTS = ("scores", "ratings")
_COMPLETION_TEXTS = ("response", "completion", "text", "content")
_COMPLETION_SCORES = ("overall_score", "score", "rating", "reward")
_SCORE_PAIRS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
_PROMPT_FIELDS = ("prompt", "messages", "conversations", "instruction")


def parse_preference(record: Mapping[str, Any]) -> Preference:
    """Return the preference in a record.

    Raises Tie if neither completion is preferred, and BadRecord if the record has no known layout or is malformed.
    """
    scored = next((name for name in _COMPLETION_LISTS if isinstance(record.get(name), list)), None)
    if "chosen" in record or "rejected" in record:
        for name in ("chosen", "rejected"):
            if not record.get(name):
                raise BadRecord(f"{name} is {'empty' if name in record else 'missing'}; add it or remove the record")
        preference = _from_pair(record)
    elif scored is not None:
        preference = _from_scored_list(record, scored)
    else:
        raise BadRecord(
            "a preference needs the fields chosen and rejected, or a list of completions with scores; this record has "
            f"{', '.join(record) or 'no fields'}"
        )
    if not preference.prompt:
        raise BadRecord("chosen and rejected have no message in common, so there is no prompt; add the field prompt")
    for name, messages in (("chosen", preference.chosen), ("rejected", preference.rejected)):
        if not messages:
            raise BadRecord(f"{name} has no message after the prompt, so this answer is empty")
        if messages[-1]["role"] != "assistant":
            raise BadRecord(f"the last message of {name} must have the role assistant, not {messages[-1]['role']}")
    if preference.chosen == preference.rejected:
        raise Tie("chosen and rejected are equal, so neither is preferred")
    return preference


def _from_pair(record: Mapping[str, Any]) -> Preference:
    chosen, rejected = record["chosen"], record["rejected"]
    tools = parse_tools(record.get("tools"))
    scores = _check_scores(record)
    field = next((name for name in _PROMPT_FIELDS if record.get(name)), None)
    read = ["chosen", "rejected", "tools", *scores]
    if field is not None:
        prompt = record[field] if field != "instruction" else instruction_text(record)
        preference = _from_explicit(prompt, chosen, rejected, record)
        read += [field, *(["input"] if field == "instruction" else []), *_read_system(record, preference)]
        return preference._replace(tools=tools, unread=_unread(record, read))
    unread = _unread(record, read)
    if isinstance(chosen, str) and isinstance(rejected, str):
        parsed = _from_dialogues(chosen, rejected) if _is_dialogue(chosen) else _from_texts(chosen, rejected)
        return parsed._replace(tools=tools, unread=unread)
    first, second = (_completion_messages(name, record[name]) for name in ("chosen", "rejected"))
    num_shared = _num_common(first, second)
    # The last message of the shorter list is its answer, also if the other list goes on after it.
    num_shared = min(num_shared, len(first) - 1, len(second) - 1) if first != second else len(first) - 1
    return Preference("implicit", first[:num_shared], first[num_shared:], second[num_shared:], tools, unread=unread)


def _read_system(record: Mapping[str, Any], preference: Preference) -> list[str]:
    """Return the name of the record's field `system` if the preference has it as its first message."""
    system = {"role": "system", "content": record.get("system")}
    return ["system"] if preference.prompt[:1] == [system] else []


def _check_scores(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the fields with the scores of chosen and rejected, or nothing if the record has no scores.

    Raises Tie if the scores are equal, and BadRecord if the rejected completion has the higher score.
    """
    for names in _SCORE_PAIRS:
        chosen, rejected = (record.get(name) for name in names)
        if not _is_number(chosen) or not _is_number(rejected):
            continue
        if chosen == rejected:
            raise Tie("chosen and rejected have equal scores, so neither is preferred")
        if chosen < rejected:
            raise BadRecord(f"{names[1]} is higher than {names[0]}, so the rejected completion would be the better one")
        return names
    return ()


def _from_explicit(prompt: Any, chosen: Any, rejected: Any, record: Mapping[str, Any]) -> Preference:
    is_raw = all(isinstance(value, str) for value in (prompt, chosen, rejected))
    if is_raw and _is_dialogue(prompt):
        preference = _from_dialogues(prompt + chosen, prompt + rejected)
        return preference._replace(raw=RawPreference(prompt, chosen, rejected))
    before = parse_prompt_value("prompt", prompt)
    if before[0]["role"] != "system" and (system := _system_messages(record)):
        before, is_raw = [*system, *before], False
    completions = [
        _without_prompt(name, _completion_messages(name, value), before)
        for name, value in (("chosen", chosen), ("rejected", rejected))
    ]
    raw = RawPreference(prompt, chosen, rejected) if is_raw else None
    return Preference("explicit", before, *completions, raw=raw)


def _without_prompt(name: str, messages: Messages, prompt: Messages) -> Messages:
    """Return the messages of a completion without the prompt, with which the lists of some data sets begin."""
    if messages[: len(prompt)] == prompt:
        return messages[len(prompt) :]
    if messages[0]["role"] in ("system", "user"):
        raise BadRecord(f"{name} begins with a message of the {messages[0]['role']} that is not the prompt's")
    return messages


def _completion_messages(name: str, value: Any) -> Messages:
    if isinstance(value, str):
        return [assistant_message(parse_text(name, value))]
    return parse_messages(name, [value] if isinstance(value, dict) else value).messages


def _from_texts(chosen: str, rejected: str) -> Preference:
    """Return the preference between two texts. The prompt is what both begin with, up to the last space."""
    shared = os.path.commonprefix([chosen, rejected])
    prompt = shared[: max((shared.rfind(space) + 1 for space in " \n"), default=0)]
    if not prompt.strip():
        if chosen == rejected:
            raise Tie("chosen and rejected are equal, so neither is preferred")
        raise BadRecord("chosen and rejected begin differently and there is no prompt; add the field prompt")
    first, second = chosen[len(prompt) :], rejected[len(prompt) :]
    messages = [_completion_messages(name, text) for name, text in (("chosen", first), ("rejected", second))]
    raw = RawPreference(prompt, first, second)
    return Preference("implicit", [user_message(prompt.rstrip())], messages[0], messages[1], raw=raw)


def _is_dialogue(text: str) -> bool:
    return text.lstrip().startswith(("Human:", "Assistant:")) and "Assistant:" in text


def _from_dialogues(chosen: str, rejected: str) -> Preference:
    """Return the preference between two dialogues of the form of hh-rlhf. What both begin with is the prompt."""
    first, second = (_dialogue_messages(name, text) for name, text in (("chosen", chosen), ("rejected", rejected)))
    if first == second:
        raise Tie("chosen and rejected are equal, so neither is preferred")
    num_shared = min(_num_common(first, second), len(first) - 1, len(second) - 1)
    for name, messages in (("chosen", first), ("rejected", second)):
        empty = next((message for message in messages if not message["content"]), None)
        if empty is not None:
            raise BadRecord(f"{name} has a turn of the {empty['role']} that is empty; remove the record")
    shared = os.path.commonprefix([chosen, rejected])
    starts = [turn.end() for turn in _TURN.finditer(chosen) if turn.end() <= len(shared) and turn[1] == "Assistant"]
    raw = None
    if starts:
        raw = RawPreference(chosen[: starts[-1]], chosen[starts[-1] :], rejected[starts[-1] :])
    return Preference("dialogue", first[:num_shared], first[num_shared:], second[num_shared:], raw=raw)


def _dialogue_messages(name: str, text: str) -> Messages:
    turns = list(_TURN.finditer(text))
    if not turns or text[: turns[0].start()].strip():
        raise BadRecord(f"{name} must begin with 'Human:', because the other completion is a dialogue of this form")
    ends = [*(turn.start() for turn in turns[1:]), len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[turn[1]], "content": text[turn.end() : end].strip()}
        for turn, end in zip(turns, ends, strict=True)
    ]


def _from_scored_list(record: Mapping[str, Any], field: str) -> Preference:
    """Return the best completion of a list as chosen and the worst as rejected.

    Of several best or worst ones the first is taken. So a record gives one pair, and the pair with the clearest
    difference.
    """
    items = record[field]
    prompt_field = next((name for name in _PROMPT_FIELDS if record.get(name)), None)
    if prompt_field is None:
        raise BadRecord(f"a list of completions needs one of the fields {', '.join(_PROMPT_FIELDS)}")
    scores_field = next((name for name in _SCORE_LISTS if isinstance(record.get(name), list)), None)
    scores = record[scores_field] if scores_field is not None else [None] * len(items)
    if len(scores) != len(items):
        raise BadRecord(f"{scores_field} has {len(scores)} items, but {field} has {len(items)}")
    scored: list[tuple[float, Any]] = []
    for number, (item, score) in enumerate(zip(items, scores, strict=True)):
        completion = item
        if isinstance(item, dict):
            completion = next((item[name] for name in _COMPLETION_TEXTS if name in item), None)
            score = next((item[name] for name in _COMPLETION_SCORES if _is_number(item.get(name))), score)
        if not _is_number(score):
            raise BadRecord(f"{field}[{number}] has no score, so it cannot be compared with the others")
        scored.append((float(score), completion))
    if len({score for score, _ in scored}) < 2:
        raise Tie(f"all of {field} have equal scores, so none is preferred")
    best, worst = max(scored, key=lambda pair: pair[0])[1], min(scored, key=lambda pair: pair[0])[1]
    prompt = record[prompt_field] if prompt_field != "instruction" else instruction_text(record)
    for name, value in (("the best completion", best), ("the worst completion", worst)):
        if not value or (isinstance(value, str) and not value.strip()):
            raise BadRecord(f"{name} of {field} is empty")
    preference = _from_explicit(prompt, best, worst, record)
    read = [field, prompt_field, *([scores_field] if scores_field else []), *_read_system(record, preference)]
    read += ["input"] if prompt_field == "instruction" else []
    return preference._replace(layout="scored list", unread=_unread(record, read))


def _num_common(first: Messages, second: Messages) -> int:
    """Return how many messages both chats begin with."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
