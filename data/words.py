"""What a word is: the one rule by which quality, repetition, deduplication, contamination and fertility count words.

Corpus filters commonly count words with spaCy's English tokenizer, as datatrove does. `split_words` splits texts nearly
as spaCy does, so that published thresholds remain meaningful:

- Punctuation marks are separated from the words around them.
- Contractions become two words (`do n't`), and compounds are split at their hyphens.
- Abbreviations, numbers and web addresses are not split.
- Combining marks, such as the vowel signs of Hindi and the points of Hebrew, and joiners belong to their words.
- Zero width spaces, Ethiopic word spaces (`፡`) and the dots between Tibetan syllables separate words as spaces do.

Some scripts are written without spaces between words (`_UNSPACED`). They are cut by classes of characters, because that
needs no dictionary and gives the same words everywhere. A word is then

- one ideograph or syllable of Chinese, Yi, Tangut, Nushu and Khitan,
- one mora of hiragana (`しょ`), but a whole sequence of katakana, which mostly spells a single loan word,
- one orthographic syllable of the others (Thai, Lao, Khmer, Burmese, Javanese, …): a letter with its marks, the letters
  stacked below it, and the vowels around it. In Burmese, the final consonant of the syllable belongs to it too.

With `words: icu`, the dictionaries of ICU cut Chinese, Japanese, Thai, Lao, Khmer and Burmese into real words instead.

`plain_words` cuts by the same classes, but for comparing texts: without punctuation, case and typographic variants.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from importlib.util import find_spec
from itertools import chain
from typing import Literal, TypeVar

import regex

Value = TypeVar("Value")

_MAX_CACHE_ENTRIES = 1 << 17
"""Maximum number of entries of a `StringCache`."""
_MAX_CACHED_CHARACTERS = 32
"""Results for longer strings are not cached."""
_MAX_WORD_CHARACTERS = 256
"""A longer string is split by a simpler rule, which takes linear time. It is probably data."""

_CLASSES = [
    (letter, regex.compile(f"(?V1){characters}"))
    for letter, characters in {
        "-": r"[\u1039\u17d2\u1a60\u1b44\ua9c0\U00011f42]",  # puts the next letter below the one before
        "a": r"\u103a",  # the sign of a Burmese consonant without a vowel
        "m": r"[\p{M}\u200c\u200dะาำๅະາຳຽ]",  # marks, joiners, and vowels of Thai and Lao after their letter
        "v": r"\p{Logical_Order_Exception}",  # vowels of Thai and Lao before their letter
        "y": r"[ぁぃぅぇぉゃゅょゎーｰ]",  # continues a mora
        "k": r"[\p{Katakana}ﾞﾟ&&\p{L}]",
        "h": r"[\p{Hiragana}&&\p{L}]",
        "i": r"[\p{Han}\p{Bopomofo}\p{Yi}\p{Nushu}\p{Tangut}\p{Khitan_Small_Script}〆〱-〵&&[\p{L}\p{Nl}]]|[၌-၏]",
        "b": r"[\p{Myanmar}&&\p{L}]",
        "l": r"[\p{Thai}\p{Lao}\p{Khmer}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Ahom}\p{Javanese}\p{Balinese}\p{Batak}"
        r"\p{Buginese}\p{Makasar}\p{Kawi}&&\p{L}]",
    }.items()
]
"""The classes of the characters of scripts without spaces. The first that matches counts; "o" are other characters.

The Burmese signs of class "i" are words, although Unicode classes them as punctuation. Digits are other characters, so
that a number is one word.
"""
_MARKS_AFTER = "(?:-[bl]|[-am])*+"
_WORDS_BY_CLASS = re.compile(
    f"k[kym]*+|h[ym]*+|im*+|v*+l{_MARKS_AFTER}|v++|b{_MARKS_AFTER}(?:bm?a{_MARKS_AFTER})*+|o[oam-]*+|[am-]++|.",
    re.DOTALL,
)
"""The words in a string of class letters. A sequence that begins with "o" is text in scripts with spaces.

Vowels without a letter after them are one word. If each were a word, the search would read the rest of a long sequence
again for every vowel.
"""
_ICU_RUN = regex.compile(
    r"(?V1)((?:[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ーｰﾞﾟ]&&[\p{L}\p{Nl}]]"
    r"[\p{M}\u200c\u200d]*+)++)"
)
"""Text in the scripts for which ICU has dictionaries."""
_BEYOND_BMP = regex.compile(r"[^\u0000-\uffff]")
_SEPARATOR = regex.compile(r"[\u200b\u0f0b\u0f0c]|(?<!፡)፡(?!፡)")
"""Characters that separate words but are not white space. Two Ethiopic word spaces are a full stop, not separators."""

_ABBREVIATIONS = (
    "Adm Ala Apr Ariz Ark Aug Bros Calif Co Colo Conn Corp Dec Del Dr Feb Fla Ga Gen Gov Ill Inc Ind Jan Jr Jul Jun "
    "Kan Ky La Ltd Mar Mass Md Messrs Mich Minn Miss Mo Mont Mr Mrs Ms Mt Neb Nev Nov Oct Okla Ore Pa Prof Rep Rev "
    "Sen Sep Sept St Tenn Va Wash Wis co vs Ph[.]D [a-z]"
).replace(" ", "|")
_MEASURES = "[ap]m|[kdcmn]?m[²³]?|ha|µm|yd|in|ft|kg|m?g|lb|oz|m/s|km/h|kmh|mph|h?Pa|mbar|[mkgtMKGT][bB]|[TGMK%]"
_APOSTROPHE = "['’]"
_QUOTES = r"""'"”“`‘´’‚„»«"""
_SMILEYS = r"''|\):|:[*\])(]|\[:|<3+(?!\d)"  # These include strings that only look like a smiley.
_MARK = rf"[,:;!?()\[\]{{}}<>_#*&—–{_QUOTES}\p{{So}}\p{{Ps}}\p{{Pe}}]|[\p{{Po}}--\p{{ASCII}}]"
_MARKS = rf"{_SMILEYS}|፡፡|{_MARK}|\.\.+"

# `_UNSPLIT` matches strings that stay one word. `_PREFIX`, `_SUFFIX` and `_INFIX` find punctuation marks at the start
# of a string, at its end and inside it. `_SUFFIX` also finds `'s` and units, such as the `km` of `5km`.
_UNSPLIT = regex.compile(
    rf"(?:{_ABBREVIATIONS})\.|(?:\p{{L}}\.){{2,}}|{_APOSTROPHE}(?:s|S|d|em|ll|re|ve|m)|and/or"
    r"|(?:(?:https?|ftp)://)?(?:[\w-]+\.)+[a-z]{2,}(?::\d+)?(?:[/?]\S*(?<=[^\W_]|[/=]))?/?"
)
_PREFIX = regex.compile(rf"(?V1){_MARKS}|[§%=]|\+(?!\d)|(?:US|C|A)?\p{{Sc}}")
_SUFFIX = regex.compile(
    rf"(?rV1)(?:{_APOSTROPHE}[sS]|{_MARKS}|(?<=\d)(?:\+|\p{{Sc}}|{_MEASURES})"
    r"|(?<=[\d\p{Ll}\p{Lo}\p{M}%²+`´\p{P}])(?<!\.)\.|(?<=\p{Lu}\p{Lu})\.)"
)
_INNER_MARK = r"[\p{Po}--[\u0000-\u05ff\u066a-\u066c\u0970\u2000-\u2e7f\U00010000-\U0010ffff]]"
"""Marks that are split off inside a string too, such as an Arabic comma. Those within numbers and abbreviations are
left out."""
_INFIX = regex.compile(
    rf"(?V1)(\.\.+|…|፡፡|(?<=\d)[+*^-](?=[\d-])|(?<=[\p{{Ll}}{_QUOTES}])\.(?=[\p{{Lu}}{_QUOTES}])"
    r"|(?<=[\p{L}\p{M}]),(?=\p{L})|(?<=[\p{L}\p{M}\d])(?:---?|——?|–|-|~|־)(?=\p{L})"
    rf"|(?<=[\p{{L}}\p{{M}}\d])[:<>=/](?=\p{{L}})|\p{{So}}|{_INNER_MARK})"
)
_CONTRACTION = regex.compile(
    rf"(\w\w+)(n{_APOSTROPHE}t)|(\w+)({_APOSTROPHE}(?:ll|ve|re|m))"
    rf"|((?i:I|you|s?he|it|we|they|who|that|there))({_APOSTROPHE}d)"
    r"|([cC]an)(not)|([gG]on)(na)|([gG]ot)(ta)"
)
_LONG_STRING = regex.compile(r"[\w\u200c\u200d]+|[^\w\s]")
_MAY_BE_UNIT = re.compile("[\u0e00-\u109f\u1780-\u1bff\u2e80-\uabff\uf900-\ufaff\uff66-\uff9f\U00010000-\U0003ffff]")
"""The blocks of scripts without spaces and of Tibetan, and some others."""
_LETTERS_AND_DIGITS = regex.compile(r"[^\W_]+")
"""Includes combining marks, which the module `re` of the standard library would not."""
_ASCII_TABLE = "".join(chr(code) if chr(code).isalnum() else " " for code in range(128))
"""Table for `str.translate` that replaces everything except letters and digits by spaces."""
_IGNORED = regex.compile(r"(?V1)[\p{Cf}\p{Default_Ignorable_Code_Point}՛-՞׳״--\u200b]")
"""Characters that `plain_words` removes: invisible ones except for the zero width space, such as soft hyphens,
joiners and variation selectors, and the marks of Armenian and Hebrew that stand inside words."""


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


def space_separated_words(text: str) -> list[str]:
    """Return what is between the white space of a text: words with their punctuation marks.

    Text in scripts without spaces is cut as `split_words` does, and the marks between its words are left out.
    """
    if text.isascii():
        return text.split()
    return list(chain.from_iterable(map(_SPACE_SEPARATED_STRINGS.__getitem__, text.split())))


WordRule = Literal["classes", "icu"]
"""How text in scripts without spaces is cut: by classes of characters, or by the dictionaries of ICU."""


def split_words(text: str, rule: WordRule = "classes") -> list[str]:
    """Return the words and punctuation marks of a text in order.

    Together they are the text without white space and without the characters of `_SEPARATOR`.
    """
    strings = _SPLIT_STRINGS if rule == "classes" else _SPLIT_STRINGS_BY_ICU
    return list(chain.from_iterable(map(strings.__getitem__, text.split())))


def check_word_rule(field_path: str, rule: WordRule) -> None:
    """Raises ValueError if the rule needs a package that is not installed."""
    if rule == "icu" and find_spec("icu4py") is None:
        raise ValueError(
            f"{field_path}: icu needs the package icu4py, which is not installed; install it with "
            "`pip install raymill[languages]`, or set classes"
        )


def plain_words(text: str) -> list[str]:
    """Return the words of a text in a form for comparing texts: case folded, in the Unicode form NFKC, without marks.

    A word is a sequence of letters, digits and combining marks, or one unit of a script without spaces (see above).
    Everything else separates words, also apostrophes and hyphens. Invisible characters are removed.
    """
    if text.isascii():
        return text.lower().translate(_ASCII_TABLE).split()
    return list(chain.from_iterable(map(_PLAIN_STRINGS.__getitem__, text.split())))


def unspaced_share(text: str) -> float:
    """Return the share of a text's letters that belong to scripts without spaces between words, 0.0 without letters."""
    letters = "".join(filter(str.isalpha, text))
    return 1 - letters.translate(_CLASS_TABLE).count("o") / len(letters) if letters else 0.0


class Unit(Enum):
    """What a word of `split_words` or `plain_words` is."""

    WORD = "word"
    """A word of a script with spaces, a sequence of katakana, or a punctuation mark."""
    IDEOGRAPH = "ideograph"
    """A sign or a syllable that has a meaning of its own: an ideograph, or a syllable of Yi or Tibetan."""
    SYLLABLE = "syllable"
    """A mora of hiragana, or an orthographic syllable of Thai, Lao, Khmer, Burmese and the like."""


def unit_of(word: str) -> Unit:
    """Return which unit a word of `split_words` or `plain_words` is."""
    first = word[0]
    if "\u0f00" <= first <= "\u0fff":  # Tibetan, whose syllables are separated by dots
        return Unit.IDEOGRAPH
    return _UNIT_OF_CLASS.get(_CLASS_TABLE[ord(first)], Unit.WORD)


def may_have_units(text: str) -> bool:
    """Quick test whether a text may have an ideograph or a syllable of a script without spaces, or Tibetan."""
    return not text.isascii() and _MAY_BE_UNIT.search(text) is not None


def num_units(words: Iterable[str]) -> int:
    """Return how many of the words are units of scripts without spaces that are smaller than words."""
    return sum(map(_IS_UNIT.__getitem__, words))


class _ClassTable(dict[int, str]):
    """Table for `str.translate` that replaces each character by the letter of its class in `_CLASSES`.

    The entry of a character is computed when the character first occurs.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = next((letter for letter, pattern in _CLASSES if pattern.fullmatch(character)), "o")
        return self[code]


_CLASS_TABLE = _ClassTable()
_UNIT_OF_CLASS = {"i": Unit.IDEOGRAPH, **dict.fromkeys("hlvb", Unit.SYLLABLE)}


def _cut(string: str, split_rest: Callable[[str], Sequence[str]]) -> tuple[str, ...]:
    """Return the words of scripts without spaces, and what `split_rest` makes of the text between them."""
    classes = string.translate(_CLASS_TABLE)
    words: list[str] = []
    for match in _WORDS_BY_CLASS.finditer(classes):
        start, stop = match.span()
        if classes[start] == "o":
            words += split_rest(string[start:stop])
        else:
            words.append(string[start:stop])
    return tuple(words)


def _split_string(string: str) -> tuple[str, ...]:
    """Split a string without white space into words and punctuation marks."""
    if string.isascii():
        return _split_spaced(string)
    if _SEPARATOR.search(string):
        return tuple(chain.from_iterable(map(_SPLIT_STRINGS.__getitem__, filter(None, _SEPARATOR.split(string)))))
    return _cut(string, _split_spaced)


def _split_string_by_icu(string: str) -> tuple[str, ...]:
    """Split a string as `_split_string` does, but with the dictionaries of ICU."""
    if string.isascii():
        return _SPLIT_STRINGS[string]
    words: list[str] = []
    for part in filter(None, _SEPARATOR.split(string)):
        # At odd indices are the matches.
        for index, run in enumerate(_ICU_RUN.split(part)):
            words += _cut_by_icu(run) if index % 2 else _SPLIT_STRINGS[run]
    return tuple(words)


def _cut_by_icu(string: str) -> list[str]:
    from icu4py.breakers import WordBreaker

    # icu4py 1.2 counts a character beyond U+FFFF twice. ICU takes all ideographs that are not in its dictionary alike.
    proxy = _BEYOND_BMP.sub("一", string)
    return [string[start:stop] for start, stop in WordBreaker(proxy, "root").segments() if start < stop]


def _space_separated_string(string: str) -> tuple[str, ...]:
    """Return the words of a string without white space as `space_separated_words` does."""
    if not string.translate(_CLASS_TABLE).strip("oam-"):
        return (string,)
    return _cut(string, lambda rest: [rest] if any(map(str.isalnum, rest)) else [])


def _plain_string(string: str) -> tuple[str, ...]:
    """Return the words of a string without white space as `plain_words` does."""
    # Case folding can undo the normal form, so the text is normalized before and after it.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", string).casefold())
    # Case folding makes "i" of "I", but not of the two other letters i of Turkish: "İ" becomes "i" with a dot above.
    folded = folded.replace("i\u0307", "i").replace("ı", "i")
    return _cut(_IGNORED.sub("", folded), _LETTERS_AND_DIGITS.findall)


def _split_spaced(string: str) -> tuple[str, ...]:
    """Split a string in scripts with spaces between words into words and punctuation marks."""
    if string.isalpha() and string not in _UNMARKED_CONTRACTIONS:
        return (string,)
    if len(string) > _MAX_WORD_CHARACTERS:
        return tuple(_LONG_STRING.findall(string))
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
_SPLIT_STRINGS_BY_ICU = StringCache(_split_string_by_icu)
_IS_UNIT = StringCache(lambda word: unit_of(word) is not Unit.WORD)
_SPACE_SEPARATED_STRINGS = StringCache(_space_separated_string)
_PLAIN_STRINGS = StringCache(_plain_string)
