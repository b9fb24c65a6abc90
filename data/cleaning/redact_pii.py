"""The step `redact_pii`: replace personal and confidential data in texts with placeholders.

The data are recognized by their format and, if the format has one, by a checksum. Names, street addresses and birthdays
have no fixed format and are kept.

Every pattern matches in time linear in the length of the text. For this, every repetition is bounded or possessive, so
the work at each start position is bounded, or is not repeated by backtracking.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

from data.cleaning.step import Outcome


@dataclass(frozen=True, kw_only=True)
class RedactPII:
    """Replace personal and confidential data with placeholders. A placeholder can be any text, including an empty one.
    Null keeps the data of this kind."""

    email: str | None = "[EMAIL]"
    """Placeholder of e-mail addresses."""
    phone: str | None = "[PHONE]"
    """Placeholder of telephone numbers: international numbers (`+` and 8 to 15 digits), and numbers in the usual
    formats of North America, Britain and France."""
    ip: str | None = "[IP]"
    """Placeholder of public IP addresses. Private, reserved and documentation addresses identify nobody and are kept.
    Four numbers with dots may also be a version number. They are kept after a word such as "version", and if all four
    are below 10."""
    card: str | None = "[CARD]"
    """Placeholder of payment card numbers (ISO/IEC 7812) with a correct check digit."""
    iban: str | None = "[IBAN]"
    """Placeholder of bank account numbers (IBAN, ISO 13616) with correct check digits."""
    confidential: str | None = "[CONFIDENTIAL]"
    """Placeholder of credentials: keys and tokens with a known prefix (AWS, GitHub, GitLab, Google, Hugging Face, npm,
    OpenAI, PyPI, Slack, Stripe), JSON web tokens, and private keys in PEM format."""

    def check(self, field_path: str) -> None:
        """Raises nothing: every placeholder is allowed."""


class _Detector(NamedTuple):
    """A way to find data of one kind in a text."""

    may_match: Callable[[str], object]
    """Quick test whether the pattern can match in a text. It is false for most texts."""
    pattern: re.Pattern[str]
    match_length: Callable[[re.Match[str]], int]
    """Returns how many characters at the start of a match must be replaced, or 0 if the match is not such data."""


def redact_pii(texts: list[str], settings: RedactPII) -> Outcome:
    """Replace the data of all kinds that have a placeholder. Counts the replacements as `redact_pii/KIND`."""
    placeholders = {field.name: settings.__dict__[field.name] for field in fields(RedactPII)}
    counts = {f"redact_pii/{kind}": 0 for kind, placeholder in placeholders.items() if placeholder is not None}
    redacted = texts
    # The order of `_DETECTORS` matters: a token may contain digits, and a card number may look like a telephone number.
    for kind, detectors in _DETECTORS.items():
        placeholder = placeholders[kind]
        if placeholder is None:
            continue
        for detector in detectors:
            results = [_redact(text, detector, placeholder) for text in redacted]
            redacted = [text for text, _ in results]
            counts[f"redact_pii/{kind}"] += sum(count for _, count in results)
    return Outcome(redacted, [None] * len(texts), counts)


def _redact(text: str, detector: _Detector, placeholder: str) -> tuple[str, int]:
    """Return the text with the found data replaced, and the number of replacements."""
    if not detector.may_match(text):
        return text, 0
    count = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal count
        length = detector.match_length(match)
        count += length > 0
        return placeholder + match[0][length:] if length else match[0]

    return detector.pattern.sub(replacement, text), count


# The functions for `match_length`.


def _full_length(match: re.Match[str]) -> int:
    return len(match[0])


# All words except "version" must not follow a letter or digit, because words such as "server", "driver" and "over"
# often precede addresses. "version" may follow one, as in FileVersion.
_VERSION_BEFORE = re.compile(
    r"(?:(?<![^\W_])(?:v|ver|release|build|section|chapter)|version|§)[\s.:=]*+$", re.IGNORECASE
)


def _public_ipv4_length(match: re.Match[str]) -> int:
    numbers = match[0].split(".")
    start = match.start()
    if all(len(number) == 1 for number in numbers) or _VERSION_BEFORE.search(match.string, max(0, start - 12), start):
        return 0
    return _public_address_length(match)


def _public_address_length(match: re.Match[str]) -> int:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:  # A number is above 255, or the number of groups is wrong.
        return 0
    return len(match[0]) if address.is_global else 0


def _card_length(match: re.Match[str]) -> int:
    """Return the length of a card number if its Luhn sum is a multiple of 10, otherwise 0.

    In the Luhn sum, every second digit from the right is doubled, and 9 is subtracted if the result has two digits.
    """
    digits = [int(character) for character in reversed(match[0]) if character.isdigit()]
    total = sum(digits[::2]) + sum(2 * digit - 9 * (digit > 4) for digit in digits[1::2])
    return len(match[0]) if total % 10 == 0 else 0


def _iban_length(match: re.Match[str]) -> int:
    """Return the length of the longest valid account number at the start of the match, or 0.

    The match can be too long, because words in capital letters after an account number look like more groups of it. To
    check a number (ISO 7064 MOD 97-10), its first four characters are moved to the end and letters become 10 to 35. The
    remainder modulo 97 must be 1.
    """
    ends = [position for position, character in enumerate(match[0]) if character == " "] + [len(match[0])]
    for end in reversed(ends):
        account = match[0][:end].replace(" ", "")
        if len(account) < 15:
            return 0
        if int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97 == 1:
            return end
    return 0


def _contains_any(*strings: str) -> Callable[[str], bool]:
    return lambda text: any(string in text for string in strings)


_CONTAINS_LONG_NUMBER = re.compile(r"[0-9][0-9 ().-]{8}").search

_DETECTORS: dict[str, tuple[_Detector, ...]] = {
    "confidential": (
        _Detector(
            _contains_any("PRIVATE KEY"),
            # The body ends at the next five dashes. If they do not start the END line, the text only mentions a key.
            re.compile(
                r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*+"
                r"-----END [A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----"
            ),
            _full_length,
        ),
        _Detector(
            _contains_any("AKIA", "ASIA"),
            re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
            _full_length,
        ),
        _Detector(
            _contains_any("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-"),
            re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255}|glpat-[\w-]{20,255})\b"),
            _full_length,
        ),
        _Detector(
            _contains_any("hf_", "npm_", "AIza", "pypi-AgE"),
            re.compile(
                r"\b(?:hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|AIza[\w-]{35}|pypi-AgE[\w-]{50,500})(?![\w-])",
                re.ASCII,
            ),
            _full_length,
        ),
        _Detector(
            _contains_any("sk-", "sk_live_", "sk_test_", "rk_live_", "rk_test_"),
            # The key must contain a digit, because names in style sheets such as sk-loading-spinner rarely do.
            re.compile(
                r"(?<![\w-])(?:sk-(?=[A-Za-z_-]{0,100}\d)[\w-]{20,255}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,255})(?![\w-])",
                re.ASCII,
            ),
            _full_length,
        ),
        _Detector(
            _contains_any("xox"),
            re.compile(r"(?<![\w-])xox[abeoprs]-[A-Za-z0-9-]{10,255}(?![\w-])", re.ASCII),
            _full_length,
        ),
        _Detector(
            _contains_any("eyJ"),
            re.compile(r"(?<![\w-])eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]{8,}+", re.ASCII),
            _full_length,
        ),
    ),
    "email": (
        _Detector(
            _contains_any("@"), re.compile(r"[\w%+][\w.%+-]{0,63}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b"), _full_length
        ),
    ),
    "iban": (
        _Detector(
            re.compile(r"[A-Z]{2}[0-9]{2}").search,
            re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.ASCII),
            _iban_length,
        ),
    ),
    "card": (
        _Detector(
            _CONTAINS_LONG_NUMBER,
            # First American Express, then the cards with 16 digits: Visa, Mastercard and Discover.
            re.compile(
                r"(?<![\w.+-])(?:3[47]\d{2}[ -]?\d{6}[ -]?\d{5}"
                r"|(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6(?:011|4[4-9]\d|5\d{2}))(?:[ -]?\d{4}){3})(?![\w-]|\.\d)",
                re.ASCII,
            ),
            _card_length,
        ),
    ),
    "phone": (
        _Detector(
            _contains_any("+"),
            re.compile(r"(?<![\w+./-])\+(?:\d(?: ?\(|\)[ .-]?|[ .-])?+){7,14}\d(?![\w/-]|\.\d)", re.ASCII),
            _full_length,
        ),
        _Detector(
            _CONTAINS_LONG_NUMBER,
            # Digits without separators are kept, because they are more often years, an ISBN or an amount.
            re.compile(
                r"(?<![\w+./-])(?:"
                r"(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"
                r"|\(?0[1-9]\d{1,3}\)? \d{3,4} ?\d{3,4}"
                r"|0[1-9](?:[ .-]\d{2}){4}"
                r")(?![\w/-]|\.\d)",
                re.ASCII,
            ),
            _full_length,
        ),
    ),
    "ip": (
        # First IPv6, because such an address may end in an IPv4 address.
        _Detector(
            _contains_any(":"),
            # Global unicast addresses (2000::/3) in all notations of RFC 4291.
            re.compile(
                r"(?<![\w:.])[23][0-9a-fA-F]{3}(?:"
                r"(?:::?[0-9a-fA-F]{1,4}){0,5}::?\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"
                r"|(?:(?:::?[0-9a-fA-F]{1,4}){1,7}(?:::)?|::)(?!\w|:[\w:]))",
                re.ASCII,
            ),
            _public_address_length,
        ),
        _Detector(
            re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]").search,
            re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.ASCII),
            _public_ipv4_length,
        ),
    ),
}
