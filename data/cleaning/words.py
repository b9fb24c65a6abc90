"""Words, as the quality and repetition steps split a text into them.

It follows the English tokenizer that corpus filters commonly count by (spaCy's, behind datatrove's filters), so that
published bounds keep their meaning: words and the marks around them apart, contractions in two (`do n't`), compounds at
their hyphens, abbreviations, numbers and addresses whole. A script without white space between its words gives one word
a run of characters.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

import regex

Value = TypeVar("Value")

_MOST_REMEMBERED = 1 << 17
_LONGEST_REMEMBERED = 32
_LONGEST_WORD = 256
"""More characters than this without white space are data; they are split by a simpler rule, in linear time."""

_ABBREVIATIONS = (
    "Adm Ala Apr Ariz Ark Aug Bros Calif Co Colo Conn Corp Dec Del Dr Feb Fla Ga Gen Gov Ill Inc Ind Jan Jr Jul Jun "
    "Kan Ky La Ltd Mar Mass Md Messrs Mich Minn Miss Mo Mont Mr Mrs Ms Mt Neb Nev Nov Oct Okla Ore Pa Prof Rep Rev "
    "Sen Sep Sept St Tenn Va Wash Wis co vs Ph[.]D [a-z]"
).replace(" ", "|")
_UNITS = "[ap]m|[kdcmn]?m[²³]?|ha|µm|yd|in|ft|kg|m?g|lb|oz|m/s|km/h|kmh|mph|h?Pa|mbar|[mkgtMKGT][bB]|[TGMK%]"
_APOSTROPHE = "['’]"
_QUOTES = r"""'"”“`‘´’‚„»«"""
_SMILEYS = r"''|\):|:[*\])(]|\[:|<3+(?!\d)"  # and what only looks like one
_MARK = rf"[,:;!?()\[\]{{}}<>_#*&—–{_QUOTES}\p{{So}}\p{{Ps}}\p{{Pe}}]|[\p{{Po}}--\p{{ASCII}}]"
_MARKS = rf"{_SMILEYS}|{_MARK}|\.\.+"

_WHOLE = regex.compile(
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


class Remembered(dict[str, Value]):
    """A bounded cache of `function` for short strings: most of a text repeats strings that occurred before."""

    def __init__(self, function: Callable[[str], Value]) -> None:
        self.function = function

    def __missing__(self, string: str) -> Value:
        value = self.function(string)
        if len(string) <= _LONGEST_REMEMBERED:
            if len(self) >= _MOST_REMEMBERED:
                self.clear()
            self[string] = value
        return value


def split_words(text: str) -> list[str]:
    """The words and marks of a text, in order; joined, they are the text without its white space."""
    return list(chain.from_iterable(map(_WORDS_OF.__getitem__, text.split())))


def _split_string(string: str) -> tuple[str, ...]:
    """Marks before, what they enclose, marks after."""
    if string.isalpha() and string not in _FUSED:
        return (string,)
    if len(string) > _LONGEST_WORD:
        return tuple(_PLAIN.findall(string))
    start, stop = 0, len(string)
    before: list[str] = []
    after: list[str] = []
    while start < stop and not _WHOLE.fullmatch(string, start, stop):
        first, last = _PREFIX.match(string, start, stop), _SUFFIX.match(string, start, stop)
        if last and (first is None or _WHOLE.fullmatch(string, start, last.start())):
            after.append(last[0])
            stop = last.start()
        elif first:
            before.append(first[0])
            start = first.end()
        else:
            break
    return *before, *_inner(string[start:stop]), *reversed(after)


def _inner(core: str) -> Sequence[str]:
    if not core or core.isalpha() and core not in _FUSED or _WHOLE.fullmatch(core):
        return [core] if core else []
    if contraction := _CONTRACTION.fullmatch(core):
        return [part for part in contraction.groups() if part]
    return [part for part in _INFIX.split(core) if part]


_FUSED = frozenset(("cannot", "Cannot", "gonna", "Gonna", "gotta", "Gotta"))


_WORDS_OF = Remembered(_split_string)
