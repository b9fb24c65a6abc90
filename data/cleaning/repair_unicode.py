"""The step `repair_unicode`: repair damaged characters, and leave every other character as it is.

Two kinds of damage are repaired by default:

- Mojibake: UTF-8 that was decoded as another encoding, such as `naÃ¯ve` or `РџСЂРёРІРµС‚`. ftfy (Speer 2019) finds it
  and proposes the repair, line by line. A proposal is accepted only with evidence that ftfy does not ask for
  (`_is_credible`), because ftfy also "repairs" `6×³` and a text that quotes mojibake to explain it. The control
  characters U+0080 to U+009F are mojibake too: they become the characters that their bytes are in windows-1252.
- Character references of HTML that were left in plain text, such as `Tom &amp; Jerry&#39;s`. They are decoded once. So
  `&amp;amp;` becomes `&amp;`. A text that shows markup is left alone (`_shows_markup`): it contains tags, speaks of
  HTML or XML, or quotes a reference. A line is decoded only if it reads like escaped text, in which no `<` occurs and
  every `&` begins a reference.

Full-width and half-width forms, ligatures, curly quotes, invisible joiners, byte order marks and the decomposed letters
of Vietnamese or Korean are not damage.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from html.entities import html5
from typing import Literal

import ftfy
from ftfy.badness import is_bad
from ftfy.chardata import CHARMAP_ENCODINGS

from data.cleaning.markup import has_tag
from data.cleaning.step import Outcome


@dataclass(frozen=True, kw_only=True)
class RepairUnicode:
    """Repair mojibake (UTF-8 that was decoded as another encoding), and decode HTML character references that were left
    in plain text. Nothing else is changed unless one of the settings below says so."""

    normalization: Literal["NFC", "NFKC"] | None = None
    """Unicode normalization form of the text. Null changes no character. NFC composes letters and their marks, and also
    changes correct texts, for example in Vietnamese, Hebrew and Tibetan. NFKC also replaces full-width forms, ligatures
    and superscripts by ordinary characters."""
    line_breaks: bool = False
    """Write every line break as `\\n`: CR LF, CR, and the line and paragraph separators of Unicode."""
    control_characters: bool = False
    """Remove control characters, except for line breaks, tabs and form feeds, and the escape sequences of terminals."""

    def check(self, field_path: str) -> None:
        """Raises nothing: every value that the type allows is valid."""


def repair_unicode(texts: list[str], settings: RepairUnicode) -> Outcome:
    """Repair the texts. Drops no text. Counts the documents with each kind of change as `repair_unicode/KIND`."""
    repairs: dict[str, Callable[[str], str]] = {
        "character_references": _decode_references,
        "mojibake": _repair_mojibake,
    }
    if settings.control_characters:
        repairs["control_characters"] = lambda text: _CONTROL.sub("", text)
    if settings.line_breaks:
        repairs["line_breaks"] = lambda text: _LINE_BREAK.sub("\n", text)
    if (form := settings.normalization) is not None:
        repairs["normalization"] = lambda text: unicodedata.normalize(form, text)
    counts = Counter(dict.fromkeys((f"repair_unicode/{kind}" for kind in repairs), 0))
    repaired: list[str] = []
    for text in texts:
        for kind, repair in repairs.items():
            before, text = text, repair(text)
            counts[f"repair_unicode/{kind}"] += text != before
        repaired.append(text)
    return Outcome(repaired, [None] * len(texts), dict(counts))


_LINE_BREAK = re.compile("\r\n?|[\x85\u2028\u2029]")
_CONTROL = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0e-\x1f\x7f]")


# Mojibake.

_FTFY_CONFIG = ftfy.TextFixerConfig(replace_lossy_sequences=False)
_MAX_SEGMENT = 100_000
"""Longer lines are repaired in segments of this length, because ftfy needs a multiple of a line's memory."""
_UNCHANGED = re.compile("([!->@-~]+)")
"""ASCII characters that no repair of mojibake changes. A space is not among them: it may be a no-break space that
another program has replaced."""
_CONTEXT = 6
"""Characters around a suspicious sequence that decide whether it is mojibake."""
_CAPITAL_WORD = re.compile("[A-ZÀ-Þ]{2}[ÂÃ] ")
"""A word in capital letters, such as `IRMÃ`."""
_ALONE = re.compile(r"(?<!\S)[ÂÃ] ")
"""A letter that stands alone is either the rest of mojibake, or just a letter, as in a list of letters."""
_CP1252 = "".join(bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xC0))
_OPENING_QUOTE = r"[\"'`“”„‘’‚«»‹›「『(]"
_CLOSING_QUOTE = r"[\"'`“”„‘’‚«»‹›」』)]"
_QUOTED_CHARACTER = re.compile(
    rf"{_OPENING_QUOTE}[\s\u200b-\u200f]*"
    rf"(?:[ÂÃ]|[Â-ß][\x80-¿{_CP1252}]|[à-ï][\x80-¿{_CP1252}]{{2}}|[ð-ô][\x80-¿{_CP1252}]{{3}})"
    rf"[\s\u200b-\u200f]*{_CLOSING_QUOTE}"
)
"""The mojibake of a single character between quotation marks: the text explains mojibake."""


def _suspicious_sequences() -> re.Pattern[str]:
    """Return a pattern of what the bytes of one UTF-8 character look like in the encodings that ftfy tries.

    A space may stand for the byte A0. The pattern also matches the control characters that only damage brings into a
    text. It finds all mojibake and little else, ten times as fast as ftfy's own test.
    """

    def characters(codes: Iterable[int], encoding: str, *more: str) -> str:
        return f"[{re.escape(bytes(codes).decode(encoding) + ''.join(more))}]"

    starts, sequences = set[str](), dict[str, None]()
    for encoding in CHARMAP_ENCODINGS:
        rest, rest_or_space = (characters(range(0x80, 0xC0), encoding, *more) for more in ((), (" ",)))
        starts |= set(bytes(range(0xC2, 0xF5)).decode(encoding))
        sequences[characters(range(0xC2, 0xE0), encoding) + rest] = None
        sequences[characters((0xC2, 0xC3, 0xC5, 0xCE, 0xD0, 0xD9), encoding) + " "] = None
        three = characters(range(0xE0, 0xF0), encoding)
        sequences[f"{three}(?:{rest}{rest_or_space}|{rest_or_space}{rest})"] = None
        sequences[characters(range(0xF0, 0xF5), encoding) + rest_or_space + rest] = None
    first = re.escape("".join(sorted(starts)))
    return re.compile(f"(?=[{first}\x80-\x9f])(?:[\x80-\x9f]|{'|'.join(sequences)})")


_SUSPICIOUS = _suspicious_sequences()


def _is_suspicious(text: str) -> bool:
    """Return whether ftfy takes a part of the text for mojibake."""
    return any(
        is_bad(text[max(0, found.start() - _CONTEXT) : found.end() + _CONTEXT]) for found in _SUSPICIOUS.finditer(text)
    )


def _repair_mojibake(text: str) -> str:
    """Return the text with the mojibake of each line repaired."""
    if text.isascii() or not _is_suspicious(text):
        return text
    lines = re.split("(?<=\n)", text)
    repaired = [_repair_line(line) for line in lines]
    if repaired != lines:
        # Other lines are certainly damaged, so a capital letter that stands alone is damage too.
        repaired = [_repair_line(line, trust_single_letters=True) for line in lines]
    return "".join(repaired)


def _repair_line(line: str, *, trust_single_letters: bool = False) -> str:
    """Return the line with its mojibake repaired, or the unchanged line if the repair is not credible.

    With `trust_single_letters`, `Â` and `Ã` before a space are enough to be called mojibake.
    """
    if len(line) > _MAX_SEGMENT:
        segments = [line[start : start + _MAX_SEGMENT] for start in range(0, len(line), _MAX_SEGMENT)]
        return "".join(_repair_line(segment, trust_single_letters=trust_single_letters) for segment in segments)
    evidence = line if trust_single_letters else _ALONE.sub(" ", line)
    if line.isascii() or not _is_suspicious(line) or not is_bad(evidence):
        return line
    if _QUOTED_CHARACTER.search(line) or _CAPITAL_WORD.search(line):
        return line
    repaired = ftfy.fix_encoding(line, _FTFY_CONFIG)
    return repaired if _is_credible(line, repaired) else line


def _is_credible(line: str, repaired: str) -> bool:
    """Return whether the characters that a repair makes fit into the line.

    They must be characters of Unicode. A script other than Latin or those of China, Japan and Korea must have at least
    two letters among them, and so must phonetic letters: `6×³` is not the Hebrew `6׳`, and `CAFÉ»1` not `CAFɻ1`. A
    letter must not stand undamaged in the same line, because then the line shows what became of the letter (`é turns
    into Ã©`).
    """
    before, after = _UNCHANGED.split(line), _UNCHANGED.split(repaired)
    if len(before) != len(after):
        return False
    undamaged = {letter for old, new in zip(before, after, strict=True) if old == new for letter in new}
    num_letters = Counter[str]()
    for old, new in zip(before, after, strict=True):
        if old != new:
            for character, count in (Counter(new) - Counter(old)).items():
                is_shown = character.isalpha() and character in undamaged
                if is_shown or unicodedata.category(character) in ("Cn", "Co"):
                    return False
                num_letters[_script(character)] += count if character.isalpha() else 0
    return all(number > 1 for script, number in num_letters.items() if _ALPHABET.fullmatch(script))


_ALPHABET = re.compile(
    "ARABIC|ARMENIAN|BENGALI|CYRILLIC|DEVANAGARI|GEORGIAN|GREEK|GUJARATI|GURMUKHI|HEBREW|KANNADA|KHMER|LAO|MALAYALAM|"
    "MYANMAR|NKO|ORIYA|PHONETIC|SINHALA|SYRIAC|TAMIL|TELUGU|THAANA|THAI|TIBETAN"
)
"""Scripts in which a word has more than one letter, as in the names of characters in Unicode."""


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    """Return the first word of the character's name in Unicode, which is its script if it is a letter.

    The letters of the International Phonetic Alphabet, which are Latin, are a script of their own here.
    """
    if "\u0250" <= character <= "\u02af":
        return "PHONETIC"
    return unicodedata.name(character, "").partition(" ")[0]


# Character references of HTML.

_REFERENCE = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,24});")
_COMMON_NAME = re.compile(
    "amp|lt|gt|quot|apos|nbsp|iexcl|cent|pound|curren|yen|brvbar|sect|uml|copy|ordf|laquo|shy|reg|"
    "macr|deg|plusmn|sup1|sup2|sup3|acute|micro|para|middot|cedil|ordm|raquo|frac14|frac12|frac34|"
    "iquest|times|divide|szlig|fnof|circ|tilde|ensp|emsp|thinsp|zwnj|zwj|lrm|rlm|ndash|mdash|lsquo|"
    "rsquo|sbquo|ldquo|rdquo|bdquo|dagger|Dagger|bull|hellip|permil|prime|Prime|lsaquo|rsaquo|oline|"
    "frasl|euro|trade|rarr|larr|uarr|darr|harr|rArr|lArr|hArr|minus|infin|ne|le|ge|OElig|oelig|"
    "Scaron|scaron|Yuml"
)
"""References that programs leave in texts, besides the accented letters of Latin-1 and the numeric references. Other
names, such as `sum` and `int`, are more often the names of variables: `&sum;` in C."""
_ACCENTED_NAME = re.compile(
    r"[A-Za-z](?:grave|acute|circ|tilde|uml|ring|cedil|slash|caron)|(?:AE|ae)lig|ETH|eth|THORN|thorn"
)
_RAW_TAG = re.compile(r"<[A-Za-z/!?]")
_MARKUP_WORD = re.compile(
    r"(?<![A-Za-z])(?:[xds]?html|xml|sgml|xslt|docbook|wiki(?:text|markup))(?![a-z])", re.IGNORECASE
)
_EXPLAINING_WORD = re.compile(
    r"(?<![A-Za-z])(?:entit(?:y|ies)|ampersands?|escap(?:e[sd]?|ing)|unescap\w+|character references?|less[- ]than|"
    r"greater[- ]than|angle brackets?|markup|tags?)(?![A-Za-z])",
    re.IGNORECASE,
)
_QUOTED_REFERENCE = re.compile(rf"{_OPENING_QUOTE}\s*{_REFERENCE.pattern}\s*{_CLOSING_QUOTE}")
_ASSIGNED = re.compile(r"(?:[=({\[,]|\breturn)\s*&[A-Za-z]\w*;\s*$", re.MULTILINE)
"""A reference at the end of a statement, such as `p = &copy;`, is the address of a variable."""


def _decode_references(text: str) -> str:
    """Return the text with the character references of the lines that read like escaped text decoded, once."""
    if "&" not in text or not _REFERENCE.search(text) or _shows_markup(text):
        return text
    decoded = "\n".join(_decode_line(line) for line in text.split("\n"))
    # A text with escaped tags is the source of a page. Decoded, it would be neither that nor plain text.
    return text if has_tag(decoded) else decoded


def _decode_line(line: str) -> str:
    if "&" not in line or "<" in line:
        return line
    references = _REFERENCE.findall(line)
    if len(references) < line.count("&") or not all(map(_is_common, references)) or _ASSIGNED.search(line):
        return line
    return _REFERENCE.sub(lambda match: html.unescape(match[0]), line)


def _is_common(reference: str) -> bool:
    """Return whether programs leave this reference in texts, and whether it stands for a character of text."""
    name = reference[1:-1]
    if name.startswith("#"):
        character = html.unescape(reference)
        return len(character) == 1 and (
            character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cn", "Cs")
        )
    return (
        _COMMON_NAME.fullmatch(name) is not None or _ACCENTED_NAME.fullmatch(name) is not None and f"{name};" in html5
    )


def _shows_markup(text: str) -> bool:
    """Return whether the text contains markup or explains it, so that its references are meant as they are."""
    if _RAW_TAG.search(text) or _MARKUP_WORD.search(text) or _QUOTED_REFERENCE.search(text):
        return True
    return any(_EXPLAINING_WORD.search(line) for line in text.split("\n") if _REFERENCE.search(line))
