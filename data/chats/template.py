"""Chats as token ids, by the chat template of their tokenizer, with a mask of the assistant's tokens to learn.

The mask is found by rendering: the tokens that a chat has after its prefix are the reply. So any tokenizer whose
template only appends works, without knowledge of its special tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.chats.records import Chat, Messages, Preference
from data.tokens.tokenizer import chat_end_id, end_token_ids, pad_id
from data.tokens.tokenizer import load_tokenizer as load_any_tokenizer


class ChatTokenizer:
    """A Hugging Face tokenizer with a chat template."""

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

    def prompt_ids(self, messages: Messages, *, location: str = "chat") -> list[int]:
        """Ids of the chat so far and of the beginning of the assistant's message."""
        return self._ids(messages, location, add_generation_prompt=True)

    def chat_ids(self, messages: Messages, *, location: str = "chat") -> list[int]:
        """Ids of the whole chat; if its last message is the assistant's, up to the token that closes it."""
        ids = self._ids(messages, location, add_generation_prompt=False)
        if messages[-1]["role"] == "assistant" and self.end_id in ids:
            # Some templates put a line break after the end, which a model neither generates nor has to learn.
            return ids[: len(ids) - ids[::-1].index(self.end_id)]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion with its special tokens visible, so that all that was generated is judged."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _ids(self, messages: Messages, location: str, *, add_generation_prompt: bool) -> list[int]:
        for number, message in enumerate(messages):
            mark = next((mark for mark in self._marks if mark in message["content"]), None)
            if mark is not None:  # as text, it would become the token and forge a message
                raise ValueError(f"{location}: messages[{number}] holds the special token {mark!r} as text; remove it")
        try:
            ids: Any = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is its author's program and raises what it likes
            raise ValueError(f"{location}: the chat template refuses this chat ({error})") from error
        return [int(token) for token in ids]


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """The chat tokenizer of a Hugging Face folder. Raises ValueError when it has no chat template."""
    return ChatTokenizer(folder)


class RenderedChat(NamedTuple):
    ids: list[int]
    loss_mask: list[bool]
    """For each token whether it is the assistant's (with the token that closes its message)."""


def render(tokenizer: ChatTokenizer, chat: Chat) -> RenderedChat:
    """Token ids of a chat and the mask of the assistant's. Raises ValueError naming the record."""
    messages = chat.messages
    ids = tokenizer.chat_ids(messages, location=chat.location)
    loss_mask = [False] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.prompt_ids(messages[:number], location=chat.location) if number else []
        last = number == len(messages) - 1
        after = ids if last else tokenizer.chat_ids(messages[: number + 1], location=chat.location)
        if after[: len(before)] != before or ids[: len(after)] != after:
            raise ValueError(
                f"{chat.location}: the chat template renders what precedes messages[{number}] differently once the "
                "reply follows, so the reply's tokens cannot be found; put each reply into a record of its own"
            )
        loss_mask[len(before) : len(after)] = [True] * (len(after) - len(before))
    return RenderedChat(ids, loss_mask)


class PreferenceTokens(NamedTuple):
    chosen: list[int]
    """Prompt and preferred completion, up to the token that closes it."""
    rejected: list[int]


def render_preference(tokenizer: ChatTokenizer, preference: Preference) -> PreferenceTokens:
    """Token ids of both sides of a preference. Raises ValueError naming the record."""
    chosen, rejected = (
        tokenizer.chat_ids([*preference.prompt, {"role": "assistant", "content": answer}], location=preference.location)
        for answer in (preference.chosen, preference.rejected)
    )
    return PreferenceTokens(chosen, rejected)
