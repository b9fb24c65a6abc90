"""The step `redact_pii`: replace personal and confidential data in texts with placeholders.

The data are recognized by their format (`data/cleaning/pii_detectors.py`) and, if the format has one, by a checksum.
Names, street addresses and birthdays have no fixed format and are kept.
"""

from dataclasses import dataclass, fields

from data.cleaning.pii_detectors import DETECTORS, Detector, fold_text
from data.cleaning.step import Outcome


@dataclass(frozen=True, kw_only=True)
class RedactPII:
    """Replace personal and confidential data with placeholders. A placeholder can be any text, including an empty one.
    Null keeps the data of this kind. The data may be directly beside letters of any script, and their digits may be
    full-width digits or those of another script."""

    email: str | None = "[EMAIL]"
    """Placeholder of e-mail addresses. An ASCII address begins and ends where another script begins. The beginning of
    an address in Chinese, Thai or similar letters cannot be told from the words before it: it is replaced back to a
    space or a punctuation mark if its domain is in such letters too, and otherwise kept."""
    phone: str | None = "[PHONE]"
    """Placeholder of telephone numbers: international numbers (`+` and 8 to 15 digits), numbers in the usual formats of
    North America, Britain, France and East Asia, and 11 digits of a Chinese mobile number after a word such as `手机`
    or `Tel`."""
    ip: str | None = "[IP]"
    """Placeholder of public IP addresses. Private, reserved and documentation addresses identify nobody and are kept.
    Four numbers with dots may also be a version or the number of a section. They are kept after a word such as
    "version", and if all four are below 20."""
    card: str | None = "[CARD]"
    """Placeholder of payment card numbers (ISO/IEC 7812) with a correct check digit."""
    iban: str | None = "[IBAN]"
    """Placeholder of bank account numbers (IBAN, ISO 13616) with correct check digits."""
    confidential: str | None = "[CONFIDENTIAL]"
    """Placeholder of credentials: keys and tokens with a known prefix (AWS, GitHub, GitLab, Google, Hugging Face, npm,
    OpenAI, PyPI, Slack, Stripe), JSON web tokens, and private keys in PEM format."""

    def check(self, field_path: str) -> None:
        """Raises nothing: every placeholder is allowed."""


def redact_pii(texts: list[str], settings: RedactPII) -> Outcome:
    """Replace the data of all kinds that have a placeholder. Counts the replacements as `redact_pii/KIND`."""
    placeholders = {field.name: settings.__dict__[field.name] for field in fields(RedactPII)}
    kinds = [(kind, placeholder) for kind in DETECTORS if (placeholder := placeholders[kind]) is not None]
    counts = {f"redact_pii/{kind}": 0 for kind in placeholders if placeholders[kind] is not None}
    redacted: list[str] = []
    for text in texts:
        folded = fold_text(text)
        for kind, placeholder in kinds:
            for detector in DETECTORS[kind]:
                result, count = _redact(text, folded, detector, placeholder)
                if count:
                    text, folded = result, fold_text(result)
                    counts[f"redact_pii/{kind}"] += count
        redacted.append(text)
    return Outcome(redacted, [None] * len(texts), counts)


def _redact(text: str, folded: str, detector: Detector, placeholder: str) -> tuple[str, int]:
    """Return the text with the found data replaced, and the number of replacements.

    `folded` is the folded form of the text, in which the detector looks.
    """
    parts: list[str] = []
    end, count = 0, 0
    for span in detector.find_spans(folded):
        parts += (text[end : span.start], placeholder)
        end = span.stop
        count += 1
    return "".join([*parts, text[end:]]) if count else text, count
