"""Chat templates: conversion of messages to the text and the tokens that a model reads and writes.

At inference a model reads the prompt, which is the rendering of the messages so far with the header of the assistant's
message (the generation prompt). It writes the reply, up to the token that ends it. `ChatTokenizer.turn` returns exactly
these two texts, for any template. The tokens of the prompt are those of inference, so a token never spans the end of a
prompt.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.chats.behavior import Behavior, Tools, observe
from data.chats.messages import Message, Messages, assistant_message, check_unicode, text_of, user_message
from data.document import BadRecord
from data.tokens.tokenizer import (
    SpecialTokenIds,
    chat_end_id,
    document_tokens,
    end_token_ids,
    load_tokenizer,
    pad_id,
    read_base_special_tokens,
    read_chat_special_tokens,
)


class Turn(NamedTuple):
    """A reply of the assistant as the template shows it at inference."""

    prompt: str
    """The rendering of all messages before the reply, with the header of the reply."""
    reply: str
    """What the assistant writes, up to the token that ends the reply."""


class RenderedChat(NamedTuple):
    """A chat as tokens. If its template rewrites earlier messages, a chat becomes several of these."""

    ids: np.ndarray
    """Token ids, int32 [n]."""
    loss_mask: np.ndarray
    """For each token, whether it is learned, bool [n]. These are the assistant's texts with the tokens that end them.
    Headers, system messages and everything else that a template adds are not learned."""


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template. The tokenizer of a base model may have no template."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer and try out its template.

        Raises ValueError if the folder contains no tokenizer, or if the template cannot render a chat.
        """
        self._tokenizer = load_tokenizer(folder)
        self._backend: Any = self._tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.has_template = bool(self._tokenizer.chat_template)
        """Without a template, prompts and completions are texts, one after the other."""
        if self.has_template:
            try:
                self._apply_template([user_message("Hi"), assistant_message("Hello")], None, False)
            except BadRecord as bad:
                raise ValueError(f"tokenizer: the chat template in {folder} cannot be used: {bad}") from bad
        self.pad_id = pad_id(self._tokenizer)
        begin, end = document_tokens(folder, self._tokenizer)
        self._start_id = begin
        self.end_id = chat_end_id(self._tokenizer) if self.has_template else end
        """The token that ends an assistant's message or, without a chat template, a text."""
        self.stop_ids = tuple(end_token_ids(self._tokenizer)) if self.has_template else (self.end_id,)
        """Tokens at which generation stops."""
        added = self._tokenizer.added_tokens_decoder
        self._added_ids = np.array(sorted(added), dtype=np.int64)
        self._end_text = str(self._tokenizer.convert_ids_to_tokens(self.end_id))
        special = {str(token) for token in added.values() if token.special} | {self._end_text}
        self._special_pattern = _any_of(special)
        self._behavior: Behavior | None = None
        if self.has_template:
            try:
                added_pattern = _any_of({str(token) for token in added.values()} | special)
                self._behavior = observe(self._apply_template, self._template_source(), special=added_pattern)
            except BadRecord as bad:
                raise ValueError(f"tokenizer: the chat template in {folder} cannot be used: {bad}") from bad

    @property
    def behavior(self) -> Behavior:
        """What the chat template does. Raises BadRecord if the tokenizer has no template."""
        if self._behavior is None:
            raise BadRecord(
                "the tokenizer has no chat template, so it can only render texts; write prompt and completion (or "
                "chosen and rejected) as strings, or use a chat model or a chat template"
            )
        return self._behavior

    @property
    def shows_date(self) -> bool:
        """Whether the template may write today's date."""
        return self._behavior is not None and "strftime_now" in self._behavior.source

    def unread_fields(self, messages: Messages, tools: Tools = None) -> set[str]:
        """Return the names of the fields of a chat that the template does not show. Without a template it is empty."""
        return set() if self._behavior is None else self._behavior.unread_fields(messages, tools)

    # Messages to text.

    def adapt(self, messages: Messages, tools: Tools = None) -> Messages:
        """Return the messages in the form that the template expects, as `prompt_text` and `turn` need them.

        Raises BadRecord if a message or a description of a tool contains a special token or invalid Unicode. The
        tokenizer would turn the text of a special token into this token, so a message could imitate the end of a
        message.
        """
        behavior = self.behavior
        for number, message in enumerate(messages):
            for text in _texts_in(message):
                self._check_text(f"messages[{number}]", text)
        if tools:
            self._check_text("tools", json.dumps(tools, ensure_ascii=False))
        return [behavior.adapt(message) for message in messages]

    def prompt_text(self, messages: Messages, tools: Tools = None) -> str:
        """Return the rendering of adapted messages, with the header of the assistant's next message.

        Raises BadRecord if the template refuses the messages, with the template's reason.
        """
        rendered = self._apply_template(messages, tools, True)
        return rendered if self.behavior.has_generation_prompt else rendered + self.behavior.header

    def turn(self, before: Messages, message: Message, tools: Tools = None) -> Turn:
        """Return the prompt and the reply of an assistant's message that follows the messages `before`.

        The messages are adapted. Raises BadRecord if the template refuses them, or if it renders them in a way in which
        the reply cannot be found.
        """
        shown = self._apply_template([*before, message], tools, False)
        if not before:
            return self._first_turn(shown, message)
        prompt = self.prompt_text(before, tools)
        if not shown.startswith(prompt):
            return self._turn_after_opening(shown, prompt, message)
        prompt = self._with_header(prompt, shown)
        return self._restored(prompt, self._cut_after_end(shown[len(prompt) :]), message)

    def _with_header(self, prompt: str, shown: str) -> str:
        """Return a prompt with the reply's header, if `shown` has the header only after the prompt.

        Some templates write the generation prompt only after certain messages, such as the user's. The header of a
        reply that follows another reply, the system message or the result of a tool would be learned otherwise.
        """
        header, rest = self.behavior.header.lstrip(), shown[len(prompt) :].lstrip()
        endings = (header.rstrip(), (header + self.behavior.opening).rstrip())
        if not header or not rest.startswith(header) or prompt.rstrip().endswith(endings):
            return prompt
        return shown[: len(shown) - len(rest) + len(header)]

    def _first_turn(self, shown: str, message: Message) -> Turn:
        """Return the turn of a message without messages before it. `shown` is its rendering.

        Most templates do not render an empty chat. So the reply begins after the first header in `shown` or, without a
        header, where the message's text begins.
        """
        header, text = self.behavior.header, text_of(message).strip()
        start = shown.find(header) + len(header) if header and header in shown else shown.find(text)
        if start < 0 or not (header or text):
            raise BadRecord("the chat template does not show the text of the first message, which is the assistant's")
        return self._restored(shown[:start], self._cut_after_end(shown[start:]), message)

    def _turn_after_opening(self, shown: str, prompt: str, message: Message) -> Turn:
        """Return the turn for a template whose generation prompt has more than the header (`Behavior.opening`).

        R1 is an example: its prompts end with `<think>`, and its renderings of replies leave out all thoughts. If the
        message begins with the opening, the reply is the rest of the message. Otherwise the reply is what the template
        shows, after a prompt without the opening.
        """
        opening = self.behavior.opening
        without_opening = prompt.removesuffix(opening)
        if not opening or not shown.startswith(without_opening):
            raise BadRecord("the chat template renders the messages before a reply differently when the reply follows")
        text = text_of(message).strip()
        if not text.startswith(opening.strip()):
            return Turn(without_opening, self._cut_after_end(shown[len(without_opening) :]))
        return Turn(prompt, text.removeprefix(opening.strip()).lstrip("\n") + self._after_text)

    def _restored(self, prompt: str, reply: str, message: Message) -> Turn:
        """Return the turn, with the beginning of the message's text if the template leaves it out.

        The templates of some models that think show only what follows the thought, also in the last reply. In others
        the prompt ends with <think>, so the text begins in the prompt and nothing is missing.
        """
        text = text_of(message).strip()
        shown = reply.removesuffix(self._after_text).strip()
        is_complete = text in prompt[-len(text) :] + reply if text else True
        if shown and not is_complete and text.endswith(shown):
            return Turn(prompt, self.behavior.before_text + text + self._after_text)
        return Turn(prompt, reply)

    @property
    def _after_text(self) -> str:
        return self._cut_after_end(self.behavior.after_text)

    def _cut_after_end(self, reply: str) -> str:
        """Return the reply up to the token that ends it. Some templates add a line break or an eos token after it."""
        position = reply.rfind(self._end_text)
        if position >= 0:
            return reply[: position + len(self._end_text)]
        # The reply may end with another token, such as <|eom_id|> after a tool call. A line break after it is cut.
        stripped = reply.rstrip()
        ends_with_special = any(match.end() == len(stripped) for match in self._special_pattern.finditer(stripped))
        return stripped if ends_with_special else reply

    def _apply_template(self, messages: Messages, tools: Tools, add_generation_prompt: bool) -> str:
        try:
            rendered: Any = self._tokenizer.apply_chat_template(
                messages,
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # A template is a program and can raise any exception.
            raise BadRecord(f"the chat template refuses this chat ({error})") from error
        return rendered

    def _template_source(self) -> str:
        template = self._tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else str(template)

    # Text to tokens.

    def prompt_ids(self, messages: Messages, tools: Tools = None) -> list[int]:
        """Return the token ids of the messages and of the header of the assistant's next message.

        Raises BadRecord if the messages cannot be rendered.
        """
        return self.encode(self.prompt_text(self.adapt(messages, tools), tools))

    def raw_prompt_ids(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt that is a text: the token that begins a document, and the text.

        Raises BadRecord if the text contains a special token.
        """
        self._check_text("the text", prompt)
        return [self._start_id, *self.encode(prompt)]

    def tokenize(self, text: str, replies: Sequence[tuple[int, int]]) -> RenderedChat:
        """Return the tokens of a rendering. `replies` are the ranges of characters that are learned.

        The tokens before a reply are those of the prompt alone, as at inference. If the tokenizer would join the last
        characters of a prompt with the first ones of the reply, the two are encoded one by one. Raises BadRecord if
        that is not possible.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int64)
        starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        loss_mask = np.zeros(len(ids), dtype=np.bool_)
        # An added token divides a text into parts that are encoded independently. So the tokens of a prompt alone are
        # those in the complete text, if this is true for the part of the prompt after its last added token.
        part_starts = np.flatnonzero(np.isin(ids, self._added_ids))
        for begin, end in replies:
            first, stop = np.searchsorted(starts, (begin, end))
            part = int(part_starts[: np.searchsorted(part_starts, first)][-1:].sum())  # 0 without an added token
            prompt_end = text[starts[part] : begin] if first else ""
            # An added token can contain the white space that follows it, as the tokens of Phi-3 do. Such a token before
            # a border is one that inference has, too.
            spans_border = any(
                index and ends[index - 1] > border and ids[index - 1] not in self._added_ids
                for index, border in ((first, begin), (stop, end))
            )
            if spans_border or self.encode(prompt_end) != ids[part:first].tolist():
                return self._tokenize_by_parts(text, replies, ids)
            loss_mask[first:stop] = True
        return RenderedChat(ids.astype(np.int32), loss_mask)

    def _tokenize_by_parts(self, text: str, replies: Sequence[tuple[int, int]], whole: np.ndarray) -> RenderedChat:
        """Return the tokens of the texts between the borders of replies. `whole` are the tokens of the complete text.

        Raises BadRecord if the tokens are not those of the same text, as with a tokenizer that adds a space to the
        beginning of each text.
        """
        borders = [0, *(border for reply in replies for border in reply), len(text)]
        parts = [self.encode(text[begin:end]) for begin, end in zip(borders, borders[1:], strict=False)]
        ids = [token for part in parts for token in part]
        if self.decode(ids) != self.decode(whole.tolist()):
            raise BadRecord("the tokenizer joins the end of a prompt with the beginning of its reply")
        loss_mask = np.concatenate([np.full(len(part), number % 2 == 1) for number, part in enumerate(parts)])
        return RenderedChat(np.array(ids, dtype=np.int32), loss_mask.astype(np.bool_))

    def tokenize_raw(self, prompt: str, completion: str) -> RenderedChat:
        """Return the tokens of a text and its continuation, between the tokens that begin and end a document.

        The continuation and the end token are learned. Raises BadRecord if a text contains a special token.
        """
        for text in (prompt, completion):
            self._check_text("the text", text)
        body = self.tokenize(prompt + completion, [(len(prompt), len(prompt) + len(completion))])
        ids = np.concatenate([[self._start_id], body.ids, [self.end_id]]).astype(np.int32)
        loss_mask = np.concatenate([[False], body.loss_mask, [True]]).astype(np.bool_)
        return RenderedChat(ids, loss_mask)

    def _check_text(self, name: str, text: str) -> None:
        if match := self._special_pattern.search(text):
            raise BadRecord(f"{name} contains the special token {match[0]!r}; remove it")
        check_unicode(name, text)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, in which special tokens are recognized."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the tokens, including special tokens, so that a verifier sees the complete completion."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def load_chat_tokenizer(folder: Path) -> ChatTokenizer:
    """Load the tokenizer of a Hugging Face folder, with or without a chat template."""
    return ChatTokenizer(folder)


def read_special_tokens(folder: Path) -> SpecialTokenIds:
    """Return the special tokens of a fine-tuned model: of a chat model or, without a chat template, of a base model."""
    has_template = bool(load_tokenizer(folder).chat_template)
    return read_chat_special_tokens(folder) if has_template else read_base_special_tokens(folder)


def _any_of(texts: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=lambda text: (-len(text), text))))


def _texts_in(message: Message) -> list[str]:
    """Return the texts of a message that a template may show."""
    values = [value for key, value in message.items() if key != "role" and value]
    return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
