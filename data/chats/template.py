"""Conversion of chats to token ids with the tokenizer's chat template, and the loss mask of the assistant's tokens.

To find the tokens of a reply, the chat is rendered twice. The first rendering ends where the reply would start, and the
second one ends with the reply. The tokens that only the second rendering has are the reply. This method works for every
chat template whose output for a longer chat starts with the output for the shorter chat. It needs no knowledge of the
special tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.chats.records import Chat, Messages, Preference
from data.tokens.tokenizer import chat_end_id, end_token_ids, load_tokenizer, pad_id


class ChatTokenizer:
    """A Hugging Face tokenizer with a chat template."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer. Raises ValueError if the folder contains no tokenizer or has no chat template."""
        self._tokenizer = load_tokenizer(folder)
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"tokenizer: the tokenizer in {folder} has no chat template; use the tokenizer of a chat model or add "
                "a template"
            )
        self.pad_id = pad_id(self._tokenizer)
        self.end_id = chat_end_id(self._tokenizer)
        """The token that ends an assistant's message."""
        self.stop_ids = tuple(end_token_ids(self._tokenizer))
        """Tokens at which generation stops."""
        self._special_tokens = [str(token) for token in self._tokenizer.added_tokens_decoder.values()]

    def prompt_ids(self, messages: Messages, *, location: str = "chat") -> list[int]:
        """Return the token ids of the messages and of the header of the assistant's next message.

        `location` names the record in error messages.
        """
        return self._render(messages, location, add_generation_prompt=True)

    def chat_ids(self, messages: Messages, *, location: str = "chat") -> list[int]:
        """Return the token ids of the chat. If the last message is the assistant's, the last id is `end_id`.

        `location` names the record in error messages.
        """
        ids = self._render(messages, location, add_generation_prompt=False)
        if messages[-1]["role"] == "assistant" and self.end_id in ids:
            # Some templates add a line break after the end token. The model should not generate this line break.
            return ids[: len(ids) - ids[::-1].index(self.end_id)]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the tokens, including special tokens, so that a verifier sees the complete completion."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _render(self, messages: Messages, location: str, *, add_generation_prompt: bool) -> list[int]:
        for number, message in enumerate(messages):
            found = next((token for token in self._special_tokens if token in message["content"]), None)
            # The tokenizer would turn the text into the special token, so a message could imitate the end of a message.
            if found is not None:
                raise ValueError(f"{location}: messages[{number}] contains the special token {found!r}; remove it")
        try:
            ids: Any = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # A template is a program and can raise any exception.
            raise ValueError(f"{location}: the chat template failed for this chat ({error})") from error
        return [int(token) for token in ids]


def load_chat_tokenizer(folder: Path) -> ChatTokenizer:
    """Load the tokenizer of a Hugging Face folder. Raises ValueError if it has no chat template."""
    return ChatTokenizer(folder)


class RenderedChat(NamedTuple):
    """A chat as token ids."""

    ids: list[int]
    loss_mask: list[bool]
    """For each token, whether it belongs to an assistant's message. The token that ends a message belongs to the
    message, but the message's header does not. Only if the first message of the chat is the assistant's, its header and
    all other tokens before its text are included."""


def render(tokenizer: ChatTokenizer, chat: Chat) -> RenderedChat:
    """Convert a chat to token ids and a loss mask.

    Raises ValueError if the chat cannot be converted. The error names the record.
    """
    messages = chat.messages
    ids = tokenizer.chat_ids(messages, location=chat.location)
    loss_mask = [False] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # Many templates cannot render zero messages. So for a reply that is the first message, `before_reply` is empty.
        before_reply = tokenizer.prompt_ids(messages[:number], location=chat.location) if number else []
        is_last = number == len(messages) - 1
        with_reply = ids if is_last else tokenizer.chat_ids(messages[: number + 1], location=chat.location)
        if with_reply[: len(before_reply)] != before_reply or ids[: len(with_reply)] != with_reply:
            raise ValueError(
                f"{chat.location}: the chat template renders messages[{number}], or the messages before it, "
                "differently when further messages follow, so the tokens of this reply cannot be found; put each reply "
                "into a separate record"
            )
        loss_mask[len(before_reply) : len(with_reply)] = [True] * (len(with_reply) - len(before_reply))
    return RenderedChat(ids, loss_mask)


class PreferenceTokens(NamedTuple):
    """A preference as token ids."""

    chosen: list[int]
    """Token ids of the prompt and the preferred completion, up to the token that ends the completion."""
    rejected: list[int]
    """Token ids of the prompt and the other completion, up to the token that ends the completion."""


def render_preference(tokenizer: ChatTokenizer, preference: Preference) -> PreferenceTokens:
    """Convert a preference to token ids.

    Raises ValueError if the preference cannot be converted. The error names the record.
    """
    chosen, rejected = (
        tokenizer.chat_ids([*preference.prompt, {"role": "assistant", "content": answer}], location=preference.location)
        for answer in (preference.chosen, preference.rejected)
    )
    return PreferenceTokens(chosen, rejected)
