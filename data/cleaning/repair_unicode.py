"""The step `repair_unicode`: repair damaged characters in texts with ftfy.

Examples are mojibake (UTF-8 that was decoded as another encoding), HTML entities and control characters.
"""

import re
from dataclasses import dataclass
from typing import Literal

import ftfy

from data.cleaning.step import Outcome


@dataclass(frozen=True, kw_only=True)
class RepairUnicode:
    """Repair mojibake, remove control characters, and normalize line breaks and Unicode composition. The step also
    replaces full-width letters and Latin ligatures by ordinary letters, and decodes HTML entities in the lines before
    the first line with `<`."""

    normalization: Literal["NFC", "NFKC"] = "NFC"
    """Unicode normalization form of the text."""

    def check(self, field_path: str) -> None:
        """Raises nothing: every value that the type allows is valid."""


# What ftfy can change in ASCII text: HTML entities, and control characters other than tab and line feed.
_REPAIRABLE_ASCII = re.compile(r"[&\x00-\x08\x0b-\x1f\x7f]")


def repair_unicode(texts: list[str], settings: RepairUnicode) -> Outcome:
    """Repair the texts. Drops no text. Counts the changed documents as `repair_unicode/documents`."""
    # Curly quotes are kept, because they are not damage.
    ftfy_config = ftfy.TextFixerConfig(normalization=settings.normalization, uncurl_quotes=False, explain=False)

    def repair(text: str) -> str:
        # ftfy would not change such a text, but would take about 10 us for each line. For dialogues without damage,
        # this was half of the cleaning time.
        if text.isascii() and not _REPAIRABLE_ASCII.search(text):
            return text
        return ftfy.fix_text(text, ftfy_config)

    repaired = [repair(text) for text in texts]
    changed = sum(before != after for before, after in zip(texts, repaired, strict=True))
    return Outcome(repaired, [None] * len(texts), {"repair_unicode/documents": changed})
