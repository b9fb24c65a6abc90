"""The demo's gold measure: what RLHF is meant to teach, stated as a program so that it can be counted.

A measure or verifier is any `path/to/file.py:function` with the signature below; the file is part of the identity of
what uses it. It sees the whole record of the prompts file, so a verifier can compare with `record["answer"]`.
"""

import re
from collections.abc import Mapping
from typing import Any

_WORD = re.compile(r"\w+(?:'\w+)?")


def asks_question(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """1.0 when the reply asks a question back, which continues the conversation, else 0.0.

    A question is a sentence of at least three words that ends in a question mark. So neither a lone "?" nor "why?"
    counts, a reply of nothing but questions gains no more than one with a single one, and a longer reply is not
    nearer to it than a shorter one. A copy of the prompt's own question does not count either.
    """
    asked = {_words(question) for question in _questions(prompt)}
    return float(any(_words(question) not in asked for question in _questions(completion)))


def _questions(text: str) -> list[str]:
    """The sentences of at least three words that end in a question mark."""
    sentences = re.findall(r"[^.!?…\n]*\?", text)
    return [sentence for sentence in sentences if len(_words(sentence)) >= 3]


def _words(sentence: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(sentence))
