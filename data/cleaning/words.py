"""How the quality steps and the repetition step split a text into words and punctuation marks.

Corpus filters commonly count words with spaCy's English tokenizer, as datatrove does. This module splits texts nearly
as spaCy does, so that published thresholds remain meaningful:

- Punctuation marks are separated from the words around them.
- Contractions become two words (`do n't`), and compounds are split at their hyphens.
- Abbreviations, numbers and web addresses are not split.
- In a script without white space between words, a sequence of characters between punctuation marks is one word.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

import regex

Value = TypeVar("Value")

_MAX_CACHE_ENTRIES = 1 << 17
"""Maximum number of entries of a `StringCache`."""
_MAX_CACHED_CHARACTERS = 32
"""Results for longer strings are not cached."""
_MAX_WORD_CHARACTERS = 256
"""A longer string is split by a simpler rule, which takes linear time. It is probably data, or text in a script without
white space between words."""

_ABBREVIATIONS = (
    "Adm Ala Apr Ariz Ark Aug Bros Calif Co Colo Conn Corp Dec Del Dr Feb Fla Ga Gen Gov Ill Inc Ind Jan Jr Jul Jun "
    "Kan Ky La Ltd Mar Mass Md Messrs Mich Minn Miss Mo Mont Mr Mrs Ms Mt Neb Nev Nov Oct Okla Ore Pa Prof Rep Rev "
    "Sen Sep Sept St Tenn Va Wash Wis co vs Ph[.]D [a-z]"
).replace(" ", "|")
_UNITS = "[ap]m|[kdcmn]?m[²³]?|ha|µm|yd|in|ft|kg|m?g|lb|oz|m/s|km/h|kmh|mph|h?Pa|mbar|[mkgtMKGT][bB]|[TGMK%]"
_APOSTROPHE = "['’]"
_QUOTES = r"""'"”“`‘´’‚„»«"""
_SMILEYS = r"''|\):|:[*\])(]|\[:|<3+(?!\d)"  # These include strings that only look like a smiley.
_MARK = rf"[,:;!?()\[\]{{}}<>_#*&—–{_QUOTES}\p{{So}}\p{{Ps}}\p{{Pe}}]|[\p{{Po}}--\p{{ASCII}}]"
_MARKS = rf"{_SMILEYS}|{_MARK}|\.\.+"

# `_UNSPLIT` matches strings that stay one word. `_PREFIX`, `_SUFFIX` and `_INFIX` find punctuation marks at the start
# of a string, at its end and inside it. `_SUFFIX` also finds `'s` and units, such as the `km` of `5km`.
_UNSPLIT = regex.compile(
    rf"(?:{_ABBREVIATIONS})\.|(?:\p{{L}}\.){{2,}}|{_APOSTROPHE}(?:s|S|d|em|ll|re|ve|m)|and/or"
    r"|(?:(?:https?|ftp)://)?(?:[\w-]+\.)+[a-z]{2,}(?::\d+)?(?:[/?]\S*(?<=[^\W_]|[/=]))?/?"
)
_PREFIX = regex.compile(rf"(?V1){_MARKS}|[§%=]|\+(?!\d)|(?:US|C|A)?\p{{Sc}}")
_SUFFIX = regex.compile(
    rf"(?rV1)(?:{_APOSTROPHE}[sS]|{_MARKS}|(?<=\d)(?:\+|\p{{Sc}}|{_UNITS})"
    r"|(?<=[\d\p{Ll}\p{Lo}%²+`´\p{P}])(?<!\.)\.|(?<=\p{Lu}\p{Lu})\.)"
)
_INFIX = regex.compile(
    rf"(\.\.+|…|(?<=\d)[+*^-](?=[\d-])|(?<=[\p{{Ll}}{_QUOTES}])\.(?=[\p{{Lu}}{_QUOTES}])|(?<=\p{{L}}),(?=\p{{L}})"
    r"|(?<=[\p{L}\d])(?:---?|——?|–|-|~)(?=\p{L})|(?<=[\p{L}\d])[:<>=/](?=\p{L})|\p{So})"
)
_CONTRACTION = regex.compile(
    rf"(\w\w+)(n{_APOSTROPHE}t)|(\w+)({_APOSTROPHE}(?:ll|ve|re|m))"
    rf"|((?i:I|you|s?he|it|we|they|who|that|there))({_APOSTROPHE}d)"
    r"|([cC]an)(not)|([gG]on)(na)|([gG]ot)(ta)"
)
_PLAIN = regex.compile(r"\w+|[^\w\s]")


class StringCache(dict[str, Value]):
    """A cache of the results of `function` for short strings. When the cache is full, all entries are removed.

    The cache saves most calls, because most strings of a text have occurred before.
    """

    def __init__(self, function: Callable[[str], Value]) -> None:
        self.function = function

    def __missing__(self, string: str) -> Value:
        value = self.function(string)
        if len(string) <= _MAX_CACHED_CHARACTERS:
            if len(self) >= _MAX_CACHE_ENTRIES:
                self.clear()
            self[string] = value
        return value


def split_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text in order. Together they are the text without its white space."""
    return list(chain.from_iterable(map(_SPLIT_STRINGS.__getitem__, text.split())))


def _split_string(string: str) -> tuple[str, ...]:
    """Split a string without white space into words and punctuation marks."""
    if string.isalpha() and string not in _UNMARKED_CONTRACTIONS:
        return (string,)
    if len(string) > _MAX_WORD_CHARACTERS:
        return tuple(_PLAIN.findall(string))
    start, stop = 0, len(string)
    before: list[str] = []
    after: list[str] = []
    while start < stop and not _UNSPLIT.fullmatch(string, start, stop):
        first, last = _PREFIX.match(string, start, stop), _SUFFIX.match(string, start, stop)
        if last and (first is None or _UNSPLIT.fullmatch(string, start, last.start())):
            after.append(last[0])
            stop = last.start()
        elif first:
            before.append(first[0])
            start = first.end()
        else:
            break
    return *before, *_split_core(string[start:stop]), *reversed(after)


def _split_core(core: str) -> Sequence[str]:
    """Split a string from which the punctuation marks at both ends have been removed."""
    if not core or core.isalpha() and core not in _UNMARKED_CONTRACTIONS or _UNSPLIT.fullmatch(core):
        return [core] if core else []
    if contraction := _CONTRACTION.fullmatch(core):
        return [part for part in contraction.groups() if part]
    return [part for part in _INFIX.split(core) if part]


_UNMARKED_CONTRACTIONS = frozenset(("cannot", "Cannot", "gonna", "Gonna", "gotta", "Gotta"))
"""Contractions without an apostrophe, which become two words, such as `can not`."""


_SPLIT_STRINGS = StringCache(_split_string)
