"""The parameters of the two steps that compare documents with each other.

`data/corpus/exact_duplicates.py` and `clusters.py` do them, across the whole corpus.
"""

from dataclasses import dataclass

from data.cleaning.step import check_least, check_share

_MAX_VALUES = 1024


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates:
    """Keep one document, that of the lowest id, of those with the same text, whatever sources they are in.

    Compares the texts after all steps on one document, across the whole corpus, and so comes after them.
    """

    def check(self, where: str) -> None:
        """Nothing can be wrong: there are no parameters."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Keep one document, that of the lowest id, of those with nearly the same text, across the whole corpus.

    A text is read as words: NFKC, case folded, without invisible characters (soft hyphens, joiners), with punctuation,
    symbols and controls as spaces, and with each character of scripts without spaces (Chinese, Japanese, Thai, …) as a
    word of its own. Its shingles are its runs of `ngram` words; a text of fewer words is one shingle of them all.
    """

    ngram: int = 5
    """Words in a shingle."""
    threshold: float = 0.7
    """Documents are near-duplicates when they share at least this part of their shingles (their Jaccard similarity, as
    the signatures estimate it)."""
    bands: int = 20
    """Bands of a signature; two documents are compared when they agree in a whole band."""
    rows: int = 6
    """Values in a band. With 20 bands of 6, documents at a similarity of 0.5, 0.7, 0.8 are compared with a
    probability of 0.27, 0.92, 0.998."""

    def check(self, where: str) -> None:
        """Raise ValueError for a parameter out of its range."""
        for name in ("ngram", "bands", "rows"):
            check_least(f"{where}.{name}", self.__dict__[name], 1)
        check_share(f"{where}.threshold", self.threshold)
        if self.threshold == 0:
            raise ValueError(f"{where}.threshold: 0 would make near-duplicates of any two documents; give more than 0")
        if self.bands * self.rows > _MAX_VALUES:
            raise ValueError(
                f"{where}: {self.bands} bands of {self.rows} rows make signatures of {self.bands * self.rows} values; "
                f"at most {_MAX_VALUES} are allowed, so take fewer"
            )
