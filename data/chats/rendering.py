"""Chats and preferences as the tokens that models are trained on.

Each reply is trained as the template would show it at inference: after the rendering of the messages before it. Most
templates only append text for each message, so one rendering of a chat contains all of its replies. Templates of models
that think rewrite earlier messages, for example without their thoughts. Where the rendering of a longer chat does not
begin with that of the shorter one, another sample begins, with the rendering of the longer one as its prompt.
"""

import math
from typing import NamedTuple

from data.chats.layouts import Chat, Preference
from data.chats.messages import Messages
from data.chats.template import ChatTokenizer, RenderedChat


class RenderedSamples(NamedTuple):
    """A chat as samples."""

    samples: list[RenderedChat]
    unread: set[str]
    """Names of the fields of the record that nothing reads."""
    is_cut: bool = False
    """Whether replies were left out, because their prompts alone are longer than a sample can be."""


class _Text(NamedTuple):
    """A rendering, and the ranges of its characters that are learned."""

    text: str
    replies: list[tuple[int, int]]


def render_chat(tokenizer: ChatTokenizer, chat: Chat, *, max_tokens: int | None = None) -> RenderedSamples:
    """Convert a chat to samples. Raises BadRecord if that is not possible.

    Replies whose prompts have more than `max_tokens` tokens are left out. So the time for a chat of very many turns is
    limited.
    """
    if not tokenizer.has_template and chat.raw is not None:
        return RenderedSamples([tokenizer.tokenize_raw(*chat.raw)], set(chat.unread))
    texts, is_cut = _texts(tokenizer, chat, max_tokens)
    samples = [tokenizer.tokenize(text, replies) for text, replies in texts]
    unread = tokenizer.unread_fields(chat.messages, chat.tools) | set(chat.unread)
    return RenderedSamples(samples, unread, is_cut)


def _texts(tokenizer: ChatTokenizer, chat: Chat, max_tokens: int | None) -> tuple[list[_Text], bool]:
    """Return the renderings with the learned replies of a chat, and whether replies with long prompts are left out."""
    messages = tokenizer.adapt(chat.messages, chat.tools)
    texts: list[_Text] = []
    # A longer prompt is tokenized to count its tokens. Tokens of a text have about 4 characters on average.
    checked_characters = 8 * max_tokens if max_tokens is not None else math.inf
    for number, is_learned in enumerate(chat.is_learned):
        if not is_learned:
            continue
        prompt, reply = tokenizer.turn(messages[:number], messages[number], chat.tools)
        if max_tokens is not None and len(prompt) > checked_characters:
            if len(tokenizer.encode(prompt)) > max_tokens:
                return texts, True
            checked_characters = 2 * len(prompt)
        replies = [(len(prompt), len(prompt) + len(reply))]
        if texts and prompt.startswith(texts[-1].text):
            replies = [*texts.pop().replies, *replies]
        texts.append(_Text(prompt + reply, replies))
    return texts, False


class PreferenceTokens(NamedTuple):
    """A preference as token ids."""

    chosen: list[int]
    """Token ids of the prompt and the preferred completion, up to the token that ends the completion."""
    rejected: list[int]
    """Token ids of the prompt and the other completion, up to the token that ends the completion."""


def render_preference(tokenizer: ChatTokenizer, preference: Preference) -> PreferenceTokens:
    """Convert a preference to token ids. Raises BadRecord if that is not possible."""
    if not tokenizer.has_template and preference.raw is not None:
        prompt, chosen, rejected = preference.raw
        return PreferenceTokens(*(tokenizer.tokenize_raw(prompt, text).ids.tolist() for text in (chosen, rejected)))
    return PreferenceTokens(
        *(_completed_ids(tokenizer, preference, completion) for completion in (preference.chosen, preference.rejected))
    )


def _completed_ids(tokenizer: ChatTokenizer, preference: Preference, completion: Messages) -> list[int]:
    """Return the tokens of the prompt with a completion, whose last message is the assistant's."""
    messages = tokenizer.adapt([*preference.prompt, *completion], preference.tools)
    prompt, reply = tokenizer.turn(messages[:-1], messages[-1], preference.tools)
    return tokenizer.tokenize(prompt + reply, [(len(prompt), len(prompt) + len(reply))]).ids.tolist()


def unread_in_preference(tokenizer: ChatTokenizer, preference: Preference) -> set[str]:
    """Return the names of the fields of a preference that nothing reads."""
    messages = [*preference.prompt, *preference.chosen, *preference.rejected]
    return tokenizer.unread_fields(messages, preference.tools) | set(preference.unread)
