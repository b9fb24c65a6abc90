"""The language certificate of a tokenizer: how well it encodes each language, and the limits that a config sets.

Languages are measured on the documents of the corpus whose metadata name a language, and on texts that the config
names, one file per language, such as the Universal Declaration of Human Rights in some 500 languages.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from data.tokens.measures import TextMeasures


@dataclass(frozen=True, kw_only=True)
class LanguageLimit:
    """What a tokenizer may need at most for some languages."""

    languages: list[str] = field(default_factory=list)
    """Languages that the limit is for: the `language` of documents, or names of files in `texts`, without suffix. If
    empty, the limit is for every language that is measured."""
    max_tokens_per_word: float | None = None
    """Greatest mean number of tokens per word. In scripts without spaces, a word is a character or a syllable."""
    max_byte_fallback: float | None = None
    """Greatest fraction of tokens without a whole character: bytes of a character, or the unknown token."""

    def check(self, name: str) -> None:
        """Raises ValueError for a number out of its range, and for a limit without numbers. `name` is the field."""
        if self.max_tokens_per_word is None and self.max_byte_fallback is None:
            raise ValueError(f"{name}: it limits nothing; set max_tokens_per_word or max_byte_fallback, or remove it")
        if self.max_tokens_per_word is not None and self.max_tokens_per_word <= 0:
            raise ValueError(f"{name}.max_tokens_per_word: {self.max_tokens_per_word} must be above 0")
        if self.max_byte_fallback is not None and not 0 <= self.max_byte_fallback <= 1:
            raise ValueError(f"{name}.max_byte_fallback: {self.max_byte_fallback} must be between 0 and 1")


@dataclass(frozen=True)
class Certificate:
    """The measures of a tokenizer by language: the content of certificate.json."""

    corpus: dict[str, TextMeasures]
    """Measures on the documents of the corpus, by language."""
    texts: dict[str, TextMeasures]
    """Measures on the texts that the config names, by language."""

    def rows(self) -> Iterator[tuple[str, str, TextMeasures]]:
        """Yield (language, `corpus` or `texts`, measures) of every measured language."""
        for origin, measures in (("corpus", self.corpus), ("texts", self.texts)):
            for language, measured in measures.items():
                yield language, origin, measured


def find_breaches(certificate: Certificate, limits: Sequence[LanguageLimit]) -> list[str]:
    """Return a sentence for every language that exceeds a limit, and for every language of a limit without measures."""
    breaches: list[str] = []
    rows = list(certificate.rows())
    measured = {language for language, _, _ in rows}
    for number, limit in enumerate(limits):
        for language in [name for name in limit.languages if name not in measured]:
            breaches.append(f"limits[{number}]: no text in {language} was measured")
        if not rows and not limit.languages:
            breaches.append(f"limits[{number}]: no language was measured")
        for language, origin, measures in rows:
            if limit.languages and language not in limit.languages:
                continue
            values: Mapping[str, tuple[float, float | None]] = {
                "tokens per word": (measures.fertility, limit.max_tokens_per_word),
                "byte fallback": (measures.fallback_share, limit.max_byte_fallback),
            }
            breaches += [
                f"{language} ({origin}): {name} {value:.3f}, at most {most}"
                for name, (value, most) in values.items()
                if most is not None and value > most
            ]
    return breaches
