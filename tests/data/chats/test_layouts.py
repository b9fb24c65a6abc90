"""The layouts of chats, preferences and prompts, and the records that are set aside."""

from typing import Any

import pytest

from data.chats.layouts import Tie, parse_chat, parse_preference, parse_prompt
from data.document import BadRecord

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}
MORE = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Fine"}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("layout", "record"),
    [
        ("messages", {"messages": [USER, REPLY]}),
        ("ShareGPT", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello you"}]}),
        ("completion", {"prompt": "Hi", "completion": "Hello you"}),
        ("completion", {"prompt": [USER], "completion": [REPLY]}),
        ("response", {"prompt": "Hi", "response": "Hello you"}),
        ("Alpaca", {"instruction": "Hi", "input": "", "output": "Hello you"}),
    ],
)
def test_all_layouts_of_chats_give_the_same_messages(layout: str, record: dict[str, Any]) -> None:
    chat = parse_chat(record)
    assert (chat.layout, chat.messages, chat.is_learned) == (layout, [USER, REPLY], [False, True])
    assert not chat.unread


def test_further_fields_of_the_layouts_are_read() -> None:
    share_gpt = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "Sunny!"},
    ]
    chat = parse_chat({"conversations": share_gpt, "system": "Be kind.", "tools": '[{"name": "weather"}]'})
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["tool_calls"] == [CALL] and chat.messages[2]["content"] is None
    assert chat.tools == [TOOL] and chat.is_learned == [False, False, True, False, True] and not chat.unread
    alpaca = {"instruction": "Add.", "input": "1 + 2", "output": "3", "system": "Count.", "history": [["Hi", "Yes?"]]}
    chat = parse_chat(alpaca)
    assert [message["content"] for message in chat.messages] == ["Count.", "Hi", "Yes?", "Add.\n\n1 + 2", "3"]


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
@pytest.mark.parametrize("content", [None, ""])
def test_tool_calls_have_their_arguments_as_an_object_or_as_json(arguments: Any, content: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    message = {"role": "assistant", "content": content, "tool_calls": [call]}
    chat = parse_chat({"messages": [USER, message], "tools": [TOOL]})
    assert chat.messages[1] == {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **CALL}]}


def test_content_parts_and_other_names_of_roles_are_read() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]
    chat = parse_chat({"messages": [{"role": "developer", "content": "Be kind."}, USER | {"content": parts}, REPLY]})
    assert chat.messages[:2] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi\nyou"}]


@pytest.mark.parametrize("key", ["weight", "train", "training"])
def test_a_reply_of_weight_0_is_not_learned(key: str) -> None:
    chat = parse_chat({"messages": [USER, REPLY | {key: 0}, *MORE[:1], MORE[1] | {key: True}]})
    assert chat.is_learned == [False, False, False, True]
    assert chat.messages == [USER, REPLY, *MORE], "the template does not get the weight"


def test_what_stands_in_the_prompt_is_not_learned() -> None:
    assert parse_chat({"prompt": [USER, REPLY, MORE[0]], "completion": [MORE[1]]}).is_learned == [False] * 3 + [True]


def test_fields_that_nothing_reads_are_named_and_keys_of_messages_are_kept() -> None:
    chat = parse_chat({"messages": [USER, REPLY | {"reasoning_content": "Hm."}], "source": "web", "empty": None})
    assert chat.unread == ("source",) and chat.messages[1]["reasoning_content"] == "Hm."


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "x"}, "a chat needs the field messages, the field conversations, or .* this record has prompt"),
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": [USER]}, "no message has the role assistant"),
        ({"messages": [USER, REPLY | {"weight": 0}]}, "every message of the assistant has the weight 0"),
        ({"messages": [USER, REPLY | {"weight": 0.5}]}, r"messages\[1\].weight is 0.5; only 0 and 1"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            r"messages\[0\].role is 'bot'; it must be one of system, user",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\].content is missing"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, r"messages\[1\].content must be a string, not int"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, REPLY]}, "a part of type 'image_url'"),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": 1}]}]},
            "a call of a function",
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": "{x"}]},
                ]
            },
            r"tool_calls\[0\].arguments is not valid JSON",
        ),
        ({"messages": [USER | {"content": "\ud800"}, REPLY]}, "lone surrogate"),
        ({"prompt": "x", "response": "  "}, "response is empty"),
        ({"instruction": "x", "output": ""}, "output is empty"),
    ],
)
def test_the_reason_of_a_malformed_chat_names_the_field(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        parse_chat(record)


HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Who?\n\nAssistant:"


@pytest.mark.parametrize(
    ("layout", "record"),
    [
        ("explicit", {"prompt": "Hi", "chosen": "Hello you", "rejected": "Go"}),
        ("explicit", {"prompt": [USER], "chosen": [REPLY], "rejected": [REPLY | {"content": "Go"}]}),
        ("explicit", {"prompt": "Hi", "chosen": [USER, REPLY], "rejected": [USER, REPLY | {"content": "Go"}]}),
        ("explicit", {"messages": [USER], "chosen": REPLY, "rejected": REPLY | {"content": "Go"}}),
        ("implicit", {"chosen": [USER, REPLY], "rejected": [USER, REPLY | {"content": "Go"}]}),
        (
            "dialogue",
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello you",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Go",
            },
        ),
        (
            "scored list",
            {
                "instruction": "Hi",
                "completions": [
                    {"response": "Go", "overall_score": 2.0},
                    {"response": "Yes", "overall_score": 5},
                    {"response": "Hello you", "overall_score": 8.5},
                ],
            },
        ),
        ("scored list", {"prompt": "Hi", "responses": ["Hello you", "Yes", "Go"], "scores": [0.9, 0.5, 0.1]}),
    ],
)
def test_all_layouts_of_preferences_give_the_same_messages(layout: str, record: dict[str, Any]) -> None:
    preference = parse_preference(record)
    assert preference.layout == layout and preference.prompt == [USER] and preference.chosen == [REPLY]
    assert preference.rejected == [{"role": "assistant", "content": "Go"}] and not preference.unread


def test_a_preference_may_diverge_in_the_middle_of_a_chat() -> None:
    other = [REPLY | {"content": "Go"}, *MORE]
    preference = parse_preference({"chosen": [USER, REPLY, *MORE], "rejected": [USER, *other]})
    assert preference.prompt == [USER] and preference.chosen == [REPLY, *MORE] and preference.rejected == other
    longer = parse_preference({"chosen": [USER, REPLY], "rejected": [USER, REPLY, *MORE]})
    assert (longer.prompt, longer.chosen, longer.rejected) == ([USER], [REPLY], [REPLY, *MORE])
    dialogue = parse_preference({"chosen": HH + " Me", "rejected": HH + " You\n\nHuman: Ha\n\nAssistant: Yes"})
    assert [message["content"] for message in dialogue.prompt] == ["Hi", "Yes?", "Who?"]
    assert [message["content"] for message in dialogue.rejected] == ["You", "Ha", "Yes"]
    assert dialogue.raw is not None and dialogue.raw.prompt == HH and dialogue.raw.chosen == " Me"


@pytest.mark.parametrize(
    ("record", "error", "reason"),
    [
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, Tie, "chosen and rejected are equal"),
        ({"chosen": [USER, REPLY], "rejected": [USER, REPLY]}, Tie, "chosen and rejected are equal"),
        ({"chosen": HH + " a", "rejected": HH + " a"}, Tie, "chosen and rejected are equal"),
        (
            {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 4.0, "score_rejected": 4},
            Tie,
            "have equal scores",
        ),
        ({"instruction": "Hi", "completions": [{"response": x, "score": 3} for x in "ab"]}, Tie, "have equal scores"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 4}, BadRecord, "higher"),
        ({"prompt": "Hi", "chosen": "a", "rejected": ""}, BadRecord, "rejected is empty"),
        ({"prompt": "Hi", "chosen": "a"}, BadRecord, "rejected is missing"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "  "}, BadRecord, "rejected is empty"),
        ({"chosen": HH + " a", "rejected": HH}, BadRecord, "rejected has a turn of the assistant that is empty"),
        ({"chosen": [USER, REPLY], "rejected": [MORE[0], REPLY]}, BadRecord, "have no message in common"),
        ({"chosen": [USER, REPLY], "rejected": [USER, REPLY, MORE[0]]}, BadRecord, "must have the role assistant"),
        ({"instruction": "Hi", "completions": [{"response": "a"}, {"response": "b"}]}, BadRecord, "has no score"),
        ({"text": "Hi"}, BadRecord, "a preference needs the fields chosen and rejected, or .* this record has text"),
    ],
)
def test_ties_and_empty_answers_are_set_aside(record: dict[str, Any], error: type, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason) as caught:
        parse_preference(record)
    assert type(caught.value) is error


def test_prompts_keep_all_fields_and_must_end_with_the_user() -> None:
    record = {"messages": [USER, REPLY, {"role": "user", "content": "2+2?"}], "answer": "4"}
    prompt = parse_prompt("f:1", record)
    assert (prompt.text, prompt.record, len(prompt.messages), prompt.raw) == ("2+2?", record, 3, None)
    assert parse_prompt("f:1", {"prompt": "1+1?"}).raw == "1+1?"
    with pytest.raises(BadRecord, match="the last message of a prompt must have the role user"):
        parse_prompt("f:1", {"messages": [USER, REPLY]})


@pytest.mark.parametrize("prompt", [{"prompt": "Hi"}, {"instruction": "Hi"}, {"conversations": [USER]}])
@pytest.mark.parametrize(
    "answers",
    [
        {"chosen": "Hello", "rejected": "Go"},
        {"completions": [{"response": "Hello", "score": 2}, {"response": "Go", "score": 1}]},
    ],
)
def test_the_system_field_of_a_preference_is_read_or_named(prompt: dict[str, Any], answers: dict[str, Any]) -> None:
    system = {"role": "system", "content": "Be kind."}
    preference = parse_preference({**prompt, **answers, "system": "Be kind."})
    assert preference.prompt == [system, USER] and not preference.unread
    with_two = parse_preference({"messages": [system, USER], **answers, "system": "Be brief.", "input": "x"})
    assert with_two.prompt == [system, USER] and with_two.unread == ("system", "input")


def test_a_sharegpt_prompt_has_the_system_message_that_training_shows() -> None:
    record = {"conversations": [{"from": "human", "value": "Hi"}], "system": "Be kind."}
    chat = parse_chat({**record, "conversations": [*record["conversations"], {"from": "gpt", "value": "Hello"}]})
    assert parse_prompt("f:1", record).messages == chat.messages[:-1]
    with_own = [{"role": "system", "content": "Be brief."}, USER]
    assert parse_prompt("f:1", {**record, "conversations": with_own}).messages == with_own
