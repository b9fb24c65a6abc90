"""Personal and confidential data in text, recognized by shape and, where there is one, by checksum; and replaced.

Names, addresses and birthdays have no shape and are kept. Each pattern reads any text in time linear in its length:
repeats are bounded or possessive, and no part of a pattern begins with a character that the part before may hold.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

from data.cleaning.step import Outcome


@dataclass(frozen=True, kw_only=True)
class RedactPII:
    """Replace personal data by placeholders. A placeholder may be any text, also an empty one; null keeps that kind."""

    email: str | None = "[EMAIL]"
    """Placeholder of e-mail addresses."""
    phone: str | None = "[PHONE]"
    """International numbers (+, 8 to 15 digits), and those of North America, Britain and France as they write them."""
    ip: str | None = "[IP]"
    """Public addresses: private, reserved and documentation ranges name nobody. Four numbers between dots may also be
    a version; they stay where they follow the word or are all below 10, and count as an address elsewhere."""
    card: str | None = "[CARD]"
    """Numbers of payment cards (ISO/IEC 7812) whose check digit is right."""
    iban: str | None = "[IBAN]"
    """Bank accounts (ISO 13616) whose check digits are right."""
    confidential: str | None = "[CONFIDENTIAL]"
    """Keys and tokens that are told by their beginning (AWS, GitHub, GitLab, Google, Hugging Face, npm, OpenAI, PyPI,
    Slack, Stripe), JSON web tokens, and private keys in PEM."""

    def check(self, where: str) -> None:
        """Nothing can be wrong: every placeholder is allowed."""


class _Kind(NamedTuple):
    possible: Callable[[str], object]
    """A quick test whether a text may hold any; most texts hold none."""
    pattern: re.Pattern[str]
    length: Callable[[re.Match[str]], int]
    """How many characters of a match are to be replaced; 0 for a false alarm."""


def redact_pii(texts: list[str], rule: RedactPII) -> Outcome:
    """Counts `redact_pii/KIND` for every kind that is on."""
    wanted = {field.name: rule.__dict__[field.name] for field in fields(RedactPII)}
    counts = {f"redact_pii/{name}": 0 for name, placeholder in wanted.items() if placeholder is not None}
    redacted = texts
    for name, kinds in _KINDS.items():  # in this order: a token may hold digits, and a card look like a telephone
        placeholder = wanted[name]
        if placeholder is None:
            continue
        for kind in kinds:
            pairs = [_redact(text, kind, placeholder) for text in redacted]
            redacted = [text for text, _ in pairs]
            counts[f"redact_pii/{name}"] += sum(count for _, count in pairs)
    return Outcome(redacted, [None] * len(texts), counts)


def _redact(text: str, kind: _Kind, placeholder: str) -> tuple[str, int]:
    if not kind.possible(text):
        return text, 0
    count = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal count
        length = kind.length(match)
        count += length > 0
        return placeholder + match[0][length:] if length else match[0]

    return kind.pattern.sub(replaced, text), count


# How much of a match holds.


def _whole(match: re.Match[str]) -> int:
    return len(match[0])


# Whole words (a server, a driver and "over" come before addresses), but for FileVersion and the like.
_VERSION_BEFORE = re.compile(
    r"(?:(?<![^\W_])(?:v|ver|release|build|section|chapter)|version|§)[\s.:=]*$", re.IGNORECASE
)


def _public_ipv4(match: re.Match[str]) -> int:
    numbers = match[0].split(".")
    start = match.start()
    if all(len(number) == 1 for number in numbers) or _VERSION_BEFORE.search(match.string, max(0, start - 12), start):
        return 0
    return _public(match)


def _public(match: re.Match[str]) -> int:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:  # a number above 255, or not eight groups
        return 0
    return len(match[0]) if address.is_global else 0


def _luhn(match: re.Match[str]) -> int:
    """Luhn's sum: of every second digit from the right the double, less 9 where that has two digits."""
    digits = [int(character) for character in reversed(match[0]) if character.isdigit()]
    total = sum(digits[::2]) + sum(2 * digit - 9 * (digit > 4) for digit in digits[1::2])
    return len(match[0]) if total % 10 == 0 else 0


def _iban(match: re.Match[str]) -> int:
    """ISO 7064 mod 97-10: first four characters last, letters as 10 to 35, remainder 1. Words in capitals that follow
    an account look like more of its groups, so the longest beginning that is right counts."""
    ends = [at for at, character in enumerate(match[0]) if character == " "] + [len(match[0])]
    for end in reversed(ends):
        account = match[0][:end].replace(" ", "")
        if len(account) < 15:
            return 0
        if int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97 == 1:
            return end
    return 0


def _has(*marks: str) -> Callable[[str], bool]:
    return lambda text: any(mark in text for mark in marks)


_DIGITS = re.compile(r"[0-9][0-9 ().-]{8}").search

_KINDS: dict[str, tuple[_Kind, ...]] = {
    "confidential": (
        _Kind(
            _has("PRIVATE KEY"),
            # Without its end it is a mention: the body reaches to the next row of dashes and no further.
            re.compile(
                r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*+"
                r"-----END [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----"
            ),
            _whole,
        ),
        _Kind(
            _has("AKIA", "ASIA"),
            re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
            _whole,
        ),
        _Kind(
            _has("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-"),
            re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255}|glpat-[\w-]{20,255})\b"),
            _whole,
        ),
        _Kind(
            _has("hf_", "npm_", "AIza", "pypi-AgE"),
            re.compile(
                r"\b(?:hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|AIza[\w-]{35}|pypi-AgE[\w-]{50,500})(?![\w-])",
                re.ASCII,
            ),
            _whole,
        ),
        _Kind(
            _has("sk-", "sk_live_", "sk_test_", "rk_live_", "rk_test_"),
            # With a digit, which a name in a style sheet (sk-loading-spinner) seldom has.
            re.compile(
                r"(?<![\w-])(?:sk-(?=[A-Za-z_-]{0,100}\d)[\w-]{20,255}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,255})(?![\w-])",
                re.ASCII,
            ),
            _whole,
        ),
        _Kind(_has("xox"), re.compile(r"(?<![\w-])xox[abeoprs]-[A-Za-z0-9-]{10,255}(?![\w-])", re.ASCII), _whole),
        _Kind(
            _has("eyJ"),
            re.compile(r"(?<![\w-])eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]{8,}+", re.ASCII),
            _whole,
        ),
    ),
    "email": (_Kind(_has("@"), re.compile(r"[\w%+][\w.%+-]{0,63}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b"), _whole),),
    "iban": (
        _Kind(
            re.compile(r"[A-Z]{2}[0-9]{2}").search,
            re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.ASCII),
            _iban,
        ),
    ),
    "card": (
        _Kind(
            _DIGITS,
            # American Express, then Visa, Mastercard and Discover with their sixteen digits.
            re.compile(
                r"(?<![\w.+-])(?:3[47]\d{2}[ -]?\d{6}[ -]?\d{5}"
                r"|(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6(?:011|4[4-9]\d|5\d{2}))(?:[ -]?\d{4}){3})(?![\w-]|\.\d)",
                re.ASCII,
            ),
            _luhn,
        ),
    ),
    "phone": (
        _Kind(
            _has("+"),
            re.compile(r"(?<![\w+./-])\+(?:\d(?: ?\(|\)[ .-]?|[ .-])?+){7,14}\d(?![\w/-]|\.\d)", re.ASCII),
            _whole,
        ),
        _Kind(
            _DIGITS,
            # A bare run of digits is left alone: it is more often a year range, an ISBN or an amount.
            re.compile(
                r"(?<![\w+./-])(?:"
                r"(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"
                r"|\(?0[1-9]\d{1,3}\)? \d{3,4} ?\d{3,4}"
                r"|0[1-9](?:[ .-]\d{2}){4}"
                r")(?![\w/-]|\.\d)",
                re.ASCII,
            ),
            _whole,
        ),
    ),
    "ip": (
        _Kind(
            re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]").search,
            re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.ASCII),
            _public_ipv4,
        ),
        _Kind(
            _has(":"),
            # Global unicast addresses (2000::/3) in any of the ways that RFC 4291 allows to write them.
            re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}(?:::?[0-9a-fA-F]{1,4}){1,7}(?:::)?(?!\w|:[\w:])", re.ASCII),
            _public,
        ),
    ),
}
