"""Which tokens of a chat are learned, for twelve chat templates in the styles of well-known models.

The lists of learned texts were written by hand. `<end>` stands for the token that ends a reply.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from data.chats.layouts import parse_chat
from data.chats.rendering import RenderedSamples, render_chat
from data.chats.template import ChatTokenizer, RenderedChat
from data.document import BadRecord
from data.tokens.tokenizer import save_tokenizer
from data.tokens.tokenizer_training import train_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
TEXTS = ["Hi Hello you, how are you? Fine thanks. It is sunny in Oslo.\n"] * 3


class Style(NamedTuple):
    """The special tokens of a template's models."""

    end: str
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    """Added tokens that are not special."""
    bos: str | None = None
    eos: str | None = None
    """The eos token, if it is not the token that ends a reply."""
    is_sentencepiece: bool = False


CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
R1 = (
    *(
        "<|User|>",
        "<|Assistant|>",
        "<|calls_begin|>",
        "<|call_begin|>",
        "<|call_sep|>",
        "<|call_end|>",
        "<|calls_end|>",
    ),
    *("<|outputs_begin|>", "<|outputs_end|>", "<|output_begin|>", "<|output_end|>"),
)
STYLES = {
    "chatml": Style("<|im_end|>", CHATML),
    "llama2": Style("</s>", bos="<s>", is_sentencepiece=True),
    "llama3": Style("<|eot_id|>", LLAMA3, bos="<|begin_of_text|>"),
    "llama3_1": Style("<|eot_id|>", LLAMA3, bos="<|begin_of_text|>"),
    "mistral": Style("</s>", ("[INST]", "[/INST]", "[TOOL_CALLS]"), bos="<s>", is_sentencepiece=True),
    "gemma": Style("<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>"),
    "zephyr": Style("</s>", bos="<s>", is_sentencepiece=True),
    "qwen2_5": Style("<|im_end|>", CHATML, added=("<tool_call>", "</tool_call>")),
    "qwen3": Style("<|im_end|>", CHATML, added=("<tool_call>", "</tool_call>", "<think>", "</think>")),
    "r1": Style("<|end_of_sentence|>", R1, added=("<think>", "</think>"), bos="<|begin_of_sentence|>"),
    "phi": Style("<|end|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), eos="<|endoftext|>"),
    "smollm": Style("<|im_end|>", CHATML),
}


def sentencepiece_style_tokenizer() -> Tokenizer:
    """Return a BPE tokenizer that writes spaces as U+2581, also before a text, and unknown characters as bytes."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    # Trained word by word, so that no token spans a space.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # The trainer makes the bytes special tokens, but a text that looks like one is not this byte.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in bytes_]
    return Tokenizer.from_str(json.dumps(content))


def make_tokenizer(name: str, folder: Path, **changes: str) -> ChatTokenizer:
    """Save a small tokenizer with a template and its special tokens, and load it."""
    style = STYLES[name]
    tokenizer = sentencepiece_style_tokenizer() if style.is_sentencepiece else train_tokenizer(TEXTS, size=300)
    eos = style.eos or style.end
    special = [token for token in (*style.special, style.end, style.bos, eos) if token]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(special)]
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in style.added])
    save_tokenizer(tokenizer, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": (TEMPLATES / f"{name}.jinja").read_text()}
    config |= {"bos_token": style.bos, "eos_token": eos, "pad_token": "<unk>" if style.is_sentencepiece else "<|pad|>"}
    path.write_text(json.dumps(config | changes))
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def load(name: str) -> ChatTokenizer:
        return make_tokenizer(name, tmp_path_factory.mktemp(name))

    return load


def learned_texts(tokenizer: ChatTokenizer, sample: RenderedChat) -> list[str]:
    """Return the text of each sequence of consecutive learned tokens."""
    runs: list[list[int]] = []
    for index, (token, is_learned) in enumerate(zip(sample.ids.tolist(), sample.loss_mask, strict=True)):
        if is_learned and (index == 0 or not sample.loss_mask[index - 1]):
            runs.append([])
        if is_learned:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def render(tokenizer: ChatTokenizer, messages: list[dict[str, Any]], **fields: Any) -> RenderedSamples:
    return render_chat(tokenizer, parse_chat({"messages": messages, **fields}))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reply(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CASES: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [user("Hi"), reply("Hello you")]},
    "several turns": {"messages": [user("Hi"), reply("Hello you"), user("How?"), reply("Fine, thanks")]},
    "assistant first": {"messages": [reply("Welcome"), user("Hi"), reply("Hello you")]},
    "tools": {
        "messages": [
            user("Is it sunny?"),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "name": "weather", "tool_call_id": "call12345", "content": "sunny"},
            reply("It is sunny"),
        ],
        "tools": TOOLS,
    },
    "thoughts": {
        "messages": [
            user("Hi"),
            reply("<think>\nA greeting.\n</think>\n\nHello you"),
            user("How?"),
            reply("<think>\nGood.\n</think>\n\nFine"),
        ]
    },
}
HELLO, FINE, WELCOME, SUNNY = "Hello you<end>", "Fine, thanks<end>", "Welcome<end>", "It is sunny<end>"
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><end>'
NO_THOUGHT = "<think>\n\n</think>\n\n"
THOUGHTS = ["<think>\nA greeting.\n</think>\n\nHello you<end>", "<think>\nGood.\n</think>\n\nFine<end>"]
OPENED = [text.removeprefix("<think>\n") for text in THOUGHTS]
TURNS_REFUSED, CALLS_REFUSED = "take turns", "does not show calls of tools"

PLAIN = {
    "one turn": [[HELLO]],
    "several turns": [[HELLO, FINE]],
    "assistant first": [[WELCOME, HELLO]],
    "tools": CALLS_REFUSED,
    "thoughts": [THOUGHTS],
}
"""A template that only appends each message: one sample with all replies."""
SPACED = {
    "one turn": [["Hello you <end>"]],
    "several turns": [["Hello you <end>", "Fine, thanks <end>"]],
    "assistant first": TURNS_REFUSED,
    "tools": CALLS_REFUSED,
    "thoughts": [["<think>\nA greeting.\n</think>\n\nHello you <end>", "<think>\nGood.\n</think>\n\nFine <end>"]],
}
EXPECTED: dict[str, dict[str, Any]] = {
    "chatml": PLAIN,
    "llama2": SPACED,
    "llama3": PLAIN,
    "llama3_1": PLAIN | {"tools": [['{"name": "weather", "parameters": {"city": "Oslo"}}<end>', SUNNY]]},
    # The description of the tools stands before the last message of the user, so it does not move here.
    "mistral": PLAIN
    | {
        "assistant first": TURNS_REFUSED,
        "tools": [['[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}, "id": "call12345"}]<end>', SUNNY]],
    },
    "gemma": PLAIN | {"assistant first": TURNS_REFUSED},
    "zephyr": PLAIN,
    "qwen2_5": PLAIN | {"tools": [[HERMES, SUNNY]]},
    # Earlier replies are shown without thoughts, and the last reply with an empty one if it has none.
    "qwen3": {
        "one turn": [[NO_THOUGHT + HELLO]],
        "several turns": [[NO_THOUGHT + HELLO], [NO_THOUGHT + FINE]],
        "assistant first": [[WELCOME, NO_THOUGHT + HELLO]],
        "tools": [[NO_THOUGHT + HERMES], [NO_THOUGHT + SUNNY]],
        "thoughts": [[THOUGHTS[0]], [THOUGHTS[1]]],
    },
    # The prompt ends with <think>, and all renderings of replies leave the thoughts out.
    "r1": {
        "one turn": [[HELLO]],
        "several turns": [[HELLO, FINE]],
        "assistant first": [[WELCOME, HELLO]],
        "tools": [
            [
                '<|calls_begin|><|call_begin|>function<|call_sep|>weather\n```json\n{"city": "Oslo"}\n```<|call_end|>'
                "<|calls_end|><end>",
                SUNNY,
            ]
        ],
        "thoughts": [[OPENED[0]], [OPENED[1]]],
    },
    "phi": PLAIN,
    "smollm": PLAIN,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", STYLES)
def test_exactly_the_replies_are_learned(tokenizers: Any, name: str, case: str) -> None:
    tokenizer, expected = tokenizers(name), EXPECTED[name][case]
    if isinstance(expected, str):
        with pytest.raises(BadRecord, match=expected):
            render(tokenizer, **CASES[case])
        return
    samples = render(tokenizer, **CASES[case]).samples
    # A tokenizer in the style of SentencePiece decodes a space after a special token to two spaces.
    learned = [[text.strip(" ").replace("  ", " ") for text in learned_texts(tokenizer, sample)] for sample in samples]
    assert learned == [[text.replace("<end>", STYLES[name].end) for text in sample] for sample in expected]


def test_a_thought_in_a_field_of_its_own_is_learned_where_the_template_shows_thoughts(tokenizers: Any) -> None:
    messages = [user("Hi"), reply("Hello you", reasoning_content="A greeting.")]
    for name, expected in (("qwen3", THOUGHTS[0]), ("r1", OPENED[0])):
        rendered = render(tokenizers(name), messages)
        (sample,) = rendered.samples
        assert learned_texts(tokenizers(name), sample) == [expected.replace("<end>", STYLES[name].end)]
        assert not rendered.unread
    assert render(tokenizers("chatml"), messages).unread == {"messages[].reasoning_content"}


def test_a_template_that_hides_thoughts_does_not_hide_them_from_training(tmp_path: Path) -> None:
    # The first template of R1: the prompt does not end with <think>.
    template = (TEMPLATES / "r1.jinja").read_text().replace("<|Assistant|><think>\\n", "<|Assistant|>")
    tokenizer = make_tokenizer("r1", tmp_path, chat_template=template)
    samples = render(tokenizer, **CASES["thoughts"]).samples
    learned = [learned_texts(tokenizer, sample) for sample in samples]
    assert learned == [[text.replace("<end>", STYLES["r1"].end)] for text in THOUGHTS]
    assert "greeting" not in tokenizer.decode(samples[1].ids.tolist())


@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5", "smollm"])
def test_default_system_prompts_are_in_the_sample_but_not_learned(tokenizers: Any, name: str) -> None:
    (sample,) = render(tokenizers(name), [reply("Welcome")]).samples
    text = tokenizers(name).decode(sample.ids.tolist())
    assert "system" in text and text.endswith(f"Welcome{STYLES[name].end}")
    assert learned_texts(tokenizers(name), sample) == [f"Welcome{STYLES[name].end}"]


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("text", ["नमस्ते दुनिया", "您好！", "مرحبا", "s", "a\n\nb", "words question"])
def test_replies_of_any_script_are_learned_whole(tokenizers: Any, name: str, text: str) -> None:
    tokenizer = tokenizers(name)
    (sample,) = render(tokenizer, [user(text), reply(text)]).samples
    (learned,) = learned_texts(tokenizer, sample)
    body = learned.removesuffix(STYLES[name].end).strip().removeprefix(NO_THOUGHT if name == "qwen3" else "").strip()
    assert body == text


def test_replies_after_the_end_of_a_row_are_not_rendered(tokenizers: Any) -> None:
    chat = parse_chat({"messages": [user("Hi"), reply("Hello you")] * 200})
    whole, cut = render_chat(tokenizers("chatml"), chat), render_chat(tokenizers("chatml"), chat, max_tokens=100)
    assert not whole.is_cut and cut.is_cut
    num_tokens = len(cut.samples[0].ids)
    assert 100 < num_tokens < len(whole.samples[0].ids) / 2
    assert whole.samples[0].ids[:num_tokens].tolist() == cut.samples[0].ids.tolist()


OTHERS = {
    "names in plain text": (
        "zephyr",
        "{{ bos_token }}A chat of a user and an assistant.{% for m in messages %}"
        "{{ ' USER: ' + m.content if m.role == 'user' else ' ASSISTANT: ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
        {"several turns": [[HELLO, FINE]], "assistant first": [[WELCOME, HELLO]]},
    ),
    "marks of what is generated": (
        "chatml",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        {"several turns": [[HELLO, FINE]], "assistant first": [[WELCOME, HELLO]]},
    ),
    # The last reply ends with another token than earlier ones, so each reply is a sample.
    "another end of the last reply": (
        "phi",
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
        "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        {
            "several turns": [["Hello you<|endoftext|>"], ["Fine, thanks<|endoftext|>"]],
            "assistant first": [["Welcome<|endoftext|>"], ["Hello you<|endoftext|>"]],
        },
    ),
    # As in Qwen3-Thinking, the prompt ends with <think>, and the reply begins after it.
    "an opened thought": (
        "qwen3",
        (TEMPLATES / "qwen3.jinja")
        .read_text()
        .replace("{{- '<|im_start|>assistant\\n' }}\n", "{{- '<|im_start|>assistant\\n<think>\\n' }}\n"),
        {
            "one turn": [["\n</think>\n\n" + HELLO]],
            "thoughts": [[OPENED[0]], [OPENED[1]]],
        },
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_exactly_the_replies_are_learned_with_templates_of_other_kinds(tmp_path: Path, name: str) -> None:
    style, template, cases = OTHERS[name]
    tokenizer = make_tokenizer(style, tmp_path, chat_template=template)
    for case, expected in cases.items():
        samples = render(tokenizer, **CASES[case]).samples
        learned = [[text.lstrip(" ") for text in learned_texts(tokenizer, sample)] for sample in samples]
        assert learned == [[text.replace("<end>", STYLES[style].end) for text in sample] for sample in expected], case


CHATML_HEADER_AFTER = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role IS %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GRANITE = (
    "{% set first = 0 if messages[0].role != 'system' else 1 %}"
    "{{ '<|system|>' + (messages[0].content if first else 'Be kind.') + '<|end|>\n' }}"
    "{% for m in messages[first:] %}{{ '<|' + m.role + '|>' + m.content + '<|end|>\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("style", "template"),
    [
        ("chatml", CHATML_HEADER_AFTER.replace("IS", "== 'user'")),
        ("chatml", CHATML_HEADER_AFTER.replace("IS", "!= 'assistant'")),
        ("phi", GRANITE),
    ],
)
def test_headers_are_not_learned_where_the_template_leaves_the_generation_prompt_out(
    tmp_path: Path, style: str, template: str
) -> None:
    tokenizer, end = make_tokenizer(style, tmp_path, chat_template=template), STYLES[style].end
    system = {"role": "system", "content": "Be brief."}
    (after_system,) = render(tokenizer, [system, reply("Welcome"), user("Hi"), reply("Hello")]).samples
    assert learned_texts(tokenizer, after_system) == [f"Welcome{end}", f"Hello{end}"]
    (in_a_row,) = render(tokenizer, [user("Hi"), reply("Hello"), reply("How are you?"), user("Fine")]).samples
    text = tokenizer.decode(in_a_row.ids[in_a_row.loss_mask].tolist())
    assert text == f"Hello{end}How are you?{end}"


def test_special_tokens_that_contain_white_space_do_not_stop_a_chat(tmp_path: Path) -> None:
    make_tokenizer("phi", tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] in STYLES["phi"].special  # as in the tokenizer of Phi-3
    path.write_text(json.dumps(content))
    tokenizer = ChatTokenizer(tmp_path)
    for case in ("one turn", "several turns", "assistant first"):
        (sample,) = render(tokenizer, **CASES[case]).samples
        expected = [text.replace("<end>", "<|end|>") for text in PLAIN[case][0]]
        assert learned_texts(tokenizer, sample) == expected, case
        prompt = tokenizer.prompt_ids([user("Hi")])
        assert case == "assistant first" or sample.ids[: len(prompt)].tolist() == prompt


CALLS = {
    "xml": (
        "{{ '<function=' + c.function.name + '>' }}{% for k, v in c.function.arguments.items() %}"
        "{{ '<parameter=' + k + '>' + v + '</parameter>' }}{% endfor %}{{ '</function>' }}",
        "<function=weather><parameter=city>Oslo</parameter></function>",
    ),
    "python": (
        "{{ '[' + c.function.name + '(' }}{% for k, v in c.function.arguments.items() %}"
        "{{ k + '=' + v | tojson }}{% endfor %}{{ ')]' }}",
        '[weather(city="Oslo")]',
    ),
    "text": ("{{ c.function.name + ' ' + c.function.arguments | string }}", 'weather {"city": "Oslo"}'),
    "json": ("{{ c.function.name + ' ' + c.function.arguments | tojson }}", 'weather {"city": "Oslo"}'),
}


def template_with_calls(call: str) -> str:
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
        "{% for c in m.tool_calls or [] %}CALL{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ).replace("CALL", call)


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_tools_are_learned_in_the_form_of_the_template(tmp_path: Path, name: str) -> None:
    call, shown = CALLS[name]
    tokenizer = make_tokenizer("chatml", tmp_path, chat_template=template_with_calls(call))
    (sample,) = render(tokenizer, **CASES["tools"]).samples
    assert learned_texts(tokenizer, sample) == [f"{shown}<|im_end|>", "It is sunny<|im_end|>"]


def test_calls_that_a_template_leaves_out_are_named(tmp_path: Path) -> None:
    # As in the template of gpt-oss, which shows only the first call of a message.
    first = "{% if loop.first %}{{ c.function.name + ' ' + c.function.arguments | tojson }}{% endif %}"
    tokenizer = make_tokenizer("chatml", tmp_path, chat_template=template_with_calls(first))
    messages = [user("Is it sunny?"), reply("", tool_calls=[CALL, CALL | {"id": "call54321"}])]
    assert render(tokenizer, messages).unread == {"messages[].tool_calls after the first"}
    assert not render(tokenizer, [messages[0], messages[1] | {"tool_calls": [CALL]}]).unread
