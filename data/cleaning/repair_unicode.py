"""Text as its author wrote it: mojibake, HTML entities and control characters undone by ftfy."""

import re
from dataclasses import dataclass
from typing import Literal

import ftfy

from data.cleaning.step import Outcome


@dataclass(frozen=True, kw_only=True)
class RepairUnicode:
    """Undo mojibake and HTML entities, drop control characters, bring line breaks and composition to one form."""

    normalization: Literal["NFC", "NFKC"] = "NFC"
    """Unicode normalization form of the text."""

    def check(self, where: str) -> None:
        """Every value that the type allows is right."""


# Whatever ftfy may change in ASCII text: entities, and control characters other than tab and line feed.
_REPAIRABLE_ASCII = re.compile(r"[&\x00-\x08\x0b-\x1f\x7f]")


def repair_unicode(texts: list[str], rule: RepairUnicode) -> Outcome:
    # Curly quotes stay: they are the author's, not damage.
    settings = ftfy.TextFixerConfig(normalization=rule.normalization, uncurl_quotes=False, explain=False)

    def repair(text: str) -> str:
        # ftfy works line by line, some 10 us each: half of all cleaning time on dialogue, where nothing is broken.
        if text.isascii() and not _REPAIRABLE_ASCII.search(text):
            return text
        return ftfy.fix_text(text, settings)

    repaired = [repair(text) for text in texts]
    changed = sum(before != after for before, after in zip(texts, repaired, strict=True))
    return Outcome(repaired, [None] * len(texts), {"repair_unicode/documents": changed})
