"""Compares an answer with the accepted answers, in one of three normal forms: exact match and word F1.

- `plain` is for answers in any language. Case, white space, full-width forms, quotes around the answer and punctuation
  at its end do not count. Everything else does, so that `-5`, `5`, `1.5` and `15` differ, and `C++` and `C#`.
- `squad` is the normal form of SQuAD (arXiv 1606.05250), for English: without case, ASCII punctuation and articles. It
  is the form of published results, and it does not tell `1.5` from `15`.
- `numeric` compares the values of numbers: `1,500.0` and `1500` are equal.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import regex

from data.words import plain_words, split_words

AnswerForm = Literal["plain", "squad", "numeric"]
"""Name of a normal form."""

_KEPT_VARIANTS = ("<super>", "<sub>", "<fraction>", "<circle>", "<square>", "<noBreak>")
"""Typographic variants of characters that mean something else than the character: `5²` is not `52`, and a space that
does not break may separate thousands."""
_SIGNS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012"), "-")
"""Table for `str.translate` that replaces minus signs and hyphens by the ASCII character."""
_END = regex.compile(r"(?r)[\s\p{Sentence_Terminal}…,;:،؛、]+\Z")
"""White space and punctuation at the end of a text. It is searched from the end (`(?r)`): from the start, each run of
punctuation in the text would be searched once for each of its characters."""
_BRACKETS = {"(": ")", "[": "]", "{": "}", "【": "】", "*": "*", "_": "_", "`": "`"}
"""The brackets, and the marks of Markdown, that can surround an answer."""
_QUOTES = "\"'“”„‟«»‹›‘’‚‛「」『』《》〈〉"
"""The quotes that can surround an answer. Which of them opens and which closes differs between languages."""
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_NUMBER = regex.compile(
    rf"(?V1)(?<![[\p{{L}}\p{{M}}]--[{_UNSPACED}]])(?<!\p{{Nd}}[.,])"  # not the 2 of H2O, nor that of v1.2
    r"(?:(?<![\p{Nd}\p{Pe}.,])[-+])?"
    r"(?:\p{Nd}+(?:[.,/٫٬'’\u00a0\u202f]\p{Nd}+)*|(?<!\p{Nd})\.\p{Nd}+)"
    r"(?:[eE][-+]?\p{Nd}{1,3}(?![\p{L}\p{M}\p{Nd}]))?"
)
"""A number with its sign. A minus sign after a letter, as in `COVID-19`, is a hyphen, except after scripts without
spaces between words."""
_GROUPED = re.compile(r"(?!0)\d{1,3}(?: \d{2,3})* \d{3}")
"""Digits in groups, with spaces between the groups. Groups of two digits are Indian: `1,00,000`. A number of thousands
does not begin with 0, so that `0,125` is an eighth."""
_MAX_NUMBER_CHARACTERS = 1000
"""A longer number has no value, because converting it would take too long."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact_match(prediction: str, answers: Sequence[str], form: AnswerForm) -> float:
    """Return 1.0 if the normal form of the prediction equals that of one of the accepted answers, else 0.0.

    In the form `numeric`, the last numbers of the prediction are compared, as many as the answer has. An answer without
    a number is equal to no prediction.
    """
    if form == "numeric":
        predicted = number_values(prediction)
        expected_values = filter(None, map(number_values, answers))
        return float(any(predicted[-len(expected) :] == expected for expected in expected_values))
    normal_form = _squad_form if form == "squad" else _plain_form
    return float(normal_form(prediction) in map(normal_form, answers))


def word_f1(prediction: str, answers: Sequence[str], form: AnswerForm) -> float:
    """Return the highest F1 that the words of the prediction have with those of one of the accepted answers.

    In the form `numeric`, the values of the numbers are compared instead of words.
    """
    predicted = _words(prediction, form)
    return max(_f1(predicted, _words(answer, form)) for answer in answers)


def number_values(text: str) -> list[Fraction]:
    """Return the values of the numbers in a text, in any script that has decimal digits.

    Separators of thousands are left out. A comma is a decimal separator unless three digits follow it, and also then in
    a number that begins with 0. Dates, versions and the like are several numbers.
    """
    return [value for match in _NUMBER.finditer(_fold(text)) for value in _values(match[0])]


def _f1(predicted: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    num_shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * num_shared / (len(predicted) + len(expected))


def _words(text: str, form: AnswerForm) -> Sequence[Hashable]:
    """Return what F1 compares: the words of the normal form, or the values of its numbers."""
    if form == "numeric":
        return number_values(text)
    return _squad_words(text) if form == "squad" else _plain_form_words(text)


# The form `plain`.


def _plain_form(text: str) -> str:
    folded = " ".join(_fold(text).split())
    stripped = _END.sub("", folded)
    while len(stripped) > 1 and _are_around(stripped[0], stripped[-1]):
        stripped = _END.sub("", stripped[1:-1].strip())
    return stripped or folded


def _are_around(first: str, last: str) -> bool:
    """Return whether the first and the last character of a text surround it."""
    return _BRACKETS.get(first) == last or (first in _QUOTES and last in _QUOTES)


def _plain_form_words(text: str) -> list[str]:
    """Return the words and numbers of the plain form. If it has neither, return its punctuation marks."""
    form = _plain_form(text)
    words: list[str] = []
    start = 0
    for match in _NUMBER.finditer(form):
        words += plain_words(form[start : match.start()])
        words.append(match[0])
        start = match.end()
    words += plain_words(form[start:])
    return words or split_words(form)


def _fold(text: str) -> str:
    """Return a text without case and typographic variants, with ASCII digits and minus signs."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(map(_without_variant, text))).translate(_SIGNS)
    return unicodedata.normalize("NFC", text.casefold())


@lru_cache(maxsize=1 << 14)
def _without_variant(character: str) -> str:
    """Return the character of which this one is a variant, such as `a` for the full-width `ａ`, and digits in ASCII."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    decomposition = unicodedata.decomposition(character)
    is_variant = decomposition.startswith("<") and not decomposition.startswith(_KEPT_VARIANTS)
    return unicodedata.normalize("NFKC", character) if is_variant else character


# The form `squad`.


def _squad_form(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _squad_words(text: str) -> list[str]:
    """Return the words of the form `squad`, as SQuAD cuts them. Words of other scripts than Latin are cut by script."""
    words: list[str] = []
    for word in _squad_form(text).split():
        words += [word] if _is_latin(word) else plain_words(word) or [word]
    return words


def _is_latin(word: str) -> bool:
    return word.isascii() or not regex.search(r"(?V1)[\p{L}--\p{Latin}]", word)


# The form `numeric`.


def _values(number: str) -> list[Fraction]:
    """Return the value of a match of `_NUMBER`. It has several if it is a date, a version or a list."""
    if len(number) > _MAX_NUMBER_CHARACTERS:
        return []
    body, _, exponent = number.lstrip("+-").partition("e")
    digits, separators = re.split(r"\D", body), re.findall(r"\D", body)
    if separators == ["/"] and int(digits[1]):
        value = Fraction(int(digits[0]), int(digits[1]))
    elif (decimal := _decimal(digits, separators)) is not None:
        value = Fraction(decimal)
    else:
        return [Fraction(part) for part in digits]
    return [(-value if number.startswith("-") else value) * Fraction(10) ** int(exponent or 0)]


def _decimal(digits: Sequence[str], separators: Sequence[str]) -> str | None:
    """Return a number in Python's notation, from its digits and the separators between them, or None if it is none."""
    if not separators:
        return digits[0]
    *groups, last = separators
    if not groups and last in ".٫":
        return f"{digits[0]}.{digits[1]}"
    if len(set(separators)) == 1 and last not in "/٫" and _GROUPED.fullmatch(" ".join(digits)):
        return "".join(digits)
    if not groups and last == ",":
        return f"{digits[0]}.{digits[1]}"
    if len(set(groups)) == 1 and last in ".,٫" and last != groups[0] and _GROUPED.fullmatch(" ".join(digits[:-1])):
        return f"{''.join(digits[:-1])}.{digits[-1]}"
    return None
