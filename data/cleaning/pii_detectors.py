"""The formats of personal and confidential data, for the step `redact_pii`.

The patterns look at a form of the text that `fold_text` returns: every digit and full-width letter is the ASCII
character that it stands for, at the same position. So one pattern finds `203.0.114.7` in full-width, Arabic, Persian,
Devanagari or Thai digits.

All data but some e-mail addresses consist of ASCII characters, so they end where another script begins. A boundary in a
pattern therefore asks for ASCII letters and digits only: in `密钥AKIA…是` the key is delimited by the Chinese
characters. `\\b` and `\\w` would count these as word characters.

A pattern that begins with a set of characters, and looks back only after the first of them, is searched much faster.

Every pattern matches in time linear in the length of the text. For this, every repetition is bounded or possessive, so
the work at each start position is bounded, or is not repeated by backtracking.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import regex

Match = re.Match[str] | regex.Match[str]


class Span(NamedTuple):
    """The data of a match: the characters from `start` to before `stop`."""

    start: int
    stop: int


class Detector(NamedTuple):
    """A way to find data of one kind in a text that `fold_text` has returned."""

    may_match: Callable[[str], object]
    """Quick test whether the pattern can match in a text. It is false for most texts."""
    pattern: re.Pattern[str] | regex.Pattern[str]
    find_data: Callable[[Match], Span | None]
    """Returns what must be replaced, or None if the match is not such data."""

    def find_spans(self, text: str) -> Iterator[Span]:
        """Yield the spans of the data in a text, in order."""
        if self.may_match(text):
            stop = 0
            for match in self.pattern.finditer(text):
                span = self.find_data(match)
                if span is not None and span.start >= stop:
                    stop = span.stop
                    yield span


# Folding.


def _folded_characters() -> Iterator[tuple[str, str]]:
    """Yield (character, the ASCII character that it stands for in personal data) for the Basic Multilingual Plane.

    These are the decimal digits of all scripts, the full-width and small forms of the ASCII characters that personal
    data have, and spaces and hyphens that separate groups of digits. Full-width colons, commas and parentheses are not
    among them: they are the punctuation of Chinese and Japanese sentences, and no part of the data beside them.
    """
    for code in range(0x80, 0x10000):
        character = chr(code)
        digit = unicodedata.decimal(character, None)
        tag, _, form = unicodedata.decomposition(character).partition(" ")
        if digit is not None:
            yield character, str(digit)
        elif character in "\u2009\u2010\u2011\u2212":  # thin space, hyphens, minus sign
            yield character, " " if character == "\u2009" else "-"
        elif tag in ("<wide>", "<small>", "<noBreak>"):
            ascii_character = chr(int(form, 16))
            if ascii_character.isascii() and (ascii_character.isalnum() or ascii_character in "@.+-_% "):
                yield character, ascii_character


_FOLDED = dict(_folded_characters())
_FOLDABLE = re.compile(f"[{''.join(map(re.escape, _FOLDED))}]")
_FOLDED_CODES = np.arange(0x110000, dtype=np.uint32)
_FOLDED_CODES[list(map(ord, _FOLDED))] = list(map(ord, _FOLDED.values()))
"""The code of each character's folded form, by the character's code."""


def fold_text(text: str) -> str:
    """Return the text with ASCII characters in place of other digits, full-width letters and the like.

    The characters of the two texts are at the same positions.
    """
    if text.isascii() or not _FOLDABLE.search(text):
        return text
    # A lookup in an array takes a tenth of the time of `str.translate`.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return _FOLDED_CODES[codes].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


# The functions for `find_data`.


def _whole_match(match: Match) -> Span:
    return Span(*match.span())


# The words of other languages for a version need no boundary. All English words except "version" must not follow a
# letter or digit, because words such as "server", "driver" and "over" often precede addresses. "version" may follow
# one, as in FileVersion.
_VERSION_BEFORE = re.compile(
    r"(?:(?<![^\W_])(?:v|ver|release|build|section|chapter|vers[iíãj]\w{1,5}|verz\w{1,3}|wersj\w{1,2})|version|§"
    r"|版本?|バージョン|버전|верси[яиюей]{1,2}|έκδοση|نسخة|إصدار|نسخه|संस्करण|เวอร์ชัน|รุ่น)[\s.:：=]*+$",
    re.IGNORECASE,
)


_MIN_PUBLIC_NUMBER = 20
"""Four numbers that are all below this are a version or the number of a section, such as `11.1.7.2`. Of random
addresses, one in 27,000 has only such numbers."""


def _public_ipv4(match: Match) -> Span | None:
    numbers = match[0].split(".")
    start = match.start()
    if max(map(int, numbers)) < _MIN_PUBLIC_NUMBER or _VERSION_BEFORE.search(match.string, max(0, start - 12), start):
        return None
    return _public_address(match)


def _public_address(match: Match) -> Span | None:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:  # A number is above 255, or the number of groups is wrong.
        return None
    return _whole_match(match) if address.is_global else None


def _card(match: Match) -> Span | None:
    """Return the span of a card number if its Luhn sum is a multiple of 10, otherwise None.

    In the Luhn sum, every second digit from the right is doubled, and 9 is subtracted if the result has two digits.
    """
    digits = [int(character) for character in reversed(match[0]) if character.isdigit()]
    total = sum(digits[::2]) + sum(2 * digit - 9 * (digit > 4) for digit in digits[1::2])
    return _whole_match(match) if total % 10 == 0 else None


def _iban(match: Match) -> Span | None:
    """Return the span of the longest valid account number at the start of the match, or None.

    The match can be too long, because words in capital letters after an account number look like more groups of it. To
    check a number (ISO 7064 MOD 97-10), its first four characters are moved to the end and letters become 10 to 35. The
    remainder modulo 97 must be 1.
    """
    ends = [position for position, character in enumerate(match[0]) if character == " "] + [len(match[0])]
    for end in reversed(ends):
        account = match[0][:end].replace(" ", "")
        if len(account) < 15:
            return None
        if int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97 == 1:
            return Span(match.start(), match.start() + end)
    return None


_PHONE_BEFORE = re.compile(
    r"(?:手机|手機|电话|電話|热线|熱線|致电|致電|拨打|撥打|短信|微信|联系|聯繫|联络|聯絡|tel|phone|mobile|cell|call)"
    r"[^\W\d]{0,3}[\s.:：=]*+$",
    re.IGNORECASE,
)


def _labelled_phone(match: Match) -> Span | None:
    """Return the span if a word such as `手机` is before the number, otherwise None."""
    start = match.start()
    return _whole_match(match) if _PHONE_BEFORE.search(match.string, max(0, start - 12), start) else None


# E-mail addresses (RFC 5321, with the internationalized ones of RFC 6531).

_MAX_LOCAL_PART = 64
_LATIN = r"\p{Latin}\u0300-\u036f"
_OTHER = rf"[\p{{L}}\p{{M}}--[{_LATIN}]]"
"""A letter or mark of another script than Latin."""
_UNSPACED = r"\p{Han}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\u3000-\u312f\uff66-\uff9f"
"""The scripts without spaces between words: there a word before an address is not told from a part of the address."""
_SPACED = rf"[\p{{L}}\p{{M}}--[{_LATIN}{_UNSPACED}]]"
_TOP_LEVEL_DOMAINS = (
    "中国 中國 香港 台湾 台灣 臺灣 澳门 澳門 新加坡 公司 网络 網絡 网址 网站 在线 商城 商店 集团 中文网 公益 政务 "
    "我爱你 みんな コム クラウド ストア 한국 닷컴 닷넷 삼성 ไทย คอม ລາວ 广告 例子 測試 测试 テスト 테스트"
)
"""Top-level domains of the root zone, and those of examples in standards, in scripts whose words are joined. An address
with such a domain ends here, even if a letter follows."""

# A label of a domain is in one script, because `a@b.com或www.c.com` has two domains. The last label is in the script of
# the label before it, or it is ASCII.
_AT_DOMAIN = regex.compile(
    rf"(?V1)@(?:(?:[{_LATIN}0-9_-]{{1,63}}+|{_OTHER}[{_OTHER}0-9-]{{0,62}}+)\.){{1,8}}(?:"
    rf"xn--[a-zA-Z0-9-]{{2,59}}|[a-zA-Z]{{2,24}}+(?![{_LATIN}0-9_])"
    rf"|(?<={_OTHER}\.)(?:{'|'.join(_TOP_LEVEL_DOMAINS.split())}|[{_SPACED}--\p{{Hangul}}]{{2,24}}+(?!{_SPACED})))"
)

# The local part, read from its end to its beginning.
_LATIN_LOCAL_PART = regex.compile(rf"(?V1)(?!\p{{M}})[{_LATIN}0-9_%+.-]+")
_SPACED_LOCAL_PART = regex.compile(rf"(?V1){_SPACED}[{_SPACED}0-9_%+.-]*")
_OTHER_LOCAL_PART = regex.compile(rf"(?V1)[0-9_%+.-]*+{_OTHER}[{_OTHER}0-9_%+.-]*")

_IMAGE_SCALE = re.compile(r"@[1-9]x\.(?:png|jpe?g|gif|webp|avif|svg)", re.IGNORECASE)
"""The end of the file name of an image for screens with a high resolution, such as `icon@2x.png`."""


def _email(match: Match) -> Span | None:
    """Return the span of the address with the domain of the match, or None if it is no address.

    The local part begins where the script changes: an ASCII address directly after a Chinese or Russian word begins
    with its first ASCII character. In an address with an ASCII domain, letters of a script without spaces are never a
    part of it. In one with a domain of another script they are, up to a space or a punctuation mark.
    """
    if _IMAGE_SCALE.fullmatch(match[0]):
        return None
    at = match.start()
    before = match.string[max(0, at - _MAX_LOCAL_PART) : at][::-1]
    patterns = (_LATIN_LOCAL_PART, _SPACED_LOCAL_PART) if match[0].isascii() else (_OTHER_LOCAL_PART, _LATIN_LOCAL_PART)
    for pattern in patterns:
        if found := pattern.match(before):
            length = len(found[0].rstrip(".-"))
            return Span(at - length, match.end()) if length else None
    return None


def _contains_any(*strings: str) -> Callable[[str], bool]:
    return lambda text: any(string in text for string in strings)


_CONTAINS_LONG_NUMBER = re.compile(r"[0-9][0-9 ()（）.-]{8}").search

DETECTORS: dict[str, tuple[Detector, ...]] = {
    "confidential": (
        Detector(
            _contains_any("PRIVATE KEY"),
            # The body ends at the next five dashes. If they do not start the END line, the text only mentions a key.
            re.compile(
                r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*+"
                r"-----END [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----"
            ),
            _whole_match,
        ),
        Detector(
            _contains_any("AKIA", "ASIA"),
            re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", re.ASCII),
            _whole_match,
        ),
        Detector(
            _contains_any("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-"),
            re.compile(
                r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255}|glpat-[\w-]{20,255})\b", re.ASCII
            ),
            _whole_match,
        ),
        Detector(
            _contains_any("hf_", "npm_", "AIza", "pypi-AgE"),
            re.compile(
                r"\b(?:hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|AIza[\w-]{35}|pypi-AgE[\w-]{50,500})(?![\w-])",
                re.ASCII,
            ),
            _whole_match,
        ),
        Detector(
            _contains_any("sk-", "sk_live_", "sk_test_", "rk_live_", "rk_test_"),
            # The key must contain a digit and 12 letters or digits in a row. Names in style sheets (sk-loading-spinner)
            # and of algorithms (sk-ssh-ed25519-cert-v01) rarely do.
            re.compile(
                r"(?<![\w-])(?:sk-(?=[A-Za-z_-]{0,100}\d)(?=[\w-]{0,60}[A-Za-z0-9]{12})[\w-]{20,255}"
                r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,255})(?![\w-])",
                re.ASCII,
            ),
            _whole_match,
        ),
        Detector(
            _contains_any("xox"),
            re.compile(r"(?<![\w-])xox[abeoprs]-[A-Za-z0-9-]{10,255}(?![\w-])", re.ASCII),
            _whole_match,
        ),
        Detector(
            _contains_any("eyJ"),
            re.compile(r"(?<![\w-])eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]{8,}+", re.ASCII),
            _whole_match,
        ),
    ),
    "email": (Detector(_contains_any("@"), _AT_DOMAIN, _email),),
    "iban": (
        Detector(
            re.compile(r"[A-Z]{2}[0-9]{2}").search,
            re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.ASCII),
            _iban,
        ),
    ),
    "card": (
        Detector(
            _CONTAINS_LONG_NUMBER,
            # First American Express, then the cards with 16 digits: Visa, Mastercard and Discover.
            re.compile(
                r"(?<![\w.+-])(?:3[47]\d{2}[ -]?\d{6}[ -]?\d{5}"
                r"|(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6(?:011|4[4-9]\d|5\d{2}))(?:[ -]?\d{4}){3})(?![\w-]|\.\d)",
                re.ASCII,
            ),
            _card,
        ),
    ),
    "phone": (
        Detector(
            _contains_any("+"),
            re.compile(r"\+(?<![\w+./-].)(?=[1-9])(?:\d(?: ?\(|\)[ .-]?|[ .-])?+){7,14}\d(?![\w/-]|\.\d)", re.ASCII),
            _whole_match,
        ),
        Detector(
            _CONTAINS_LONG_NUMBER,
            # Digits without separators are kept, because they are more often years, an ISBN or an amount.
            re.compile(
                r"(?<![\w+./-])(?:"
                r"(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"
                r"|\(?0[1-9]\d{1,3}\)? \d{3,4} ?\d{3,4}"
                r"|(?<![0-9A-F]{2}\s)0[1-9](?:[ .-]\d{2}){4}(?!\s[0-9A-F]{2}\b)"
                r"|(?:[(（]0[1-9]\d{0,2}[)）] ?|0[1-9]\d{0,2}-)\d{3,4}-\d{4}"
                r"|(?:[(（]0[1-9]\d{1,2}[)）] ?|0[1-9]\d{1,2}-)\d{7,8}"
                r"|1[3-9]\d[ -]\d{4}[ -]\d{4}"
                r")(?![\w/-]|[.:]\d)",
                re.ASCII,
            ),
            _whole_match,
        ),
        Detector(
            re.compile(r"1[3-9][0-9]{9}").search,
            re.compile(r"1(?<![\w+./-].)[3-9]\d{9}(?![\w/-]|\.\d)", re.ASCII),
            _labelled_phone,
        ),
    ),
    "ip": (
        # First IPv6, because such an address may end in an IPv4 address.
        Detector(
            _contains_any(":"),
            # Global unicast addresses (2000::/3) in all notations of RFC 4291.
            re.compile(
                r"[23](?<![\w:.].)[0-9a-fA-F]{3}(?:"
                r"(?:::?[0-9a-fA-F]{1,4}){0,5}::?\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"
                r"|(?:(?:::?[0-9a-fA-F]{1,4}){1,7}(?:::)?|::)(?!\w|:[\w:]))",
                re.ASCII,
            ),
            _public_address,
        ),
        Detector(
            re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]").search,
            re.compile(r"\d(?<![\w.-].)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.ASCII),
            _public_ipv4,
        ),
    ),
}
"""The detectors of each kind, in the order in which they run. A token may contain digits, and a card number may look
like a telephone number, so the kinds that are easily mistaken come last."""
