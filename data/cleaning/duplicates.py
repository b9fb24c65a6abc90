"""What counts as a duplicate: the parameters of the two steps that compare documents with each other.

They are done where documents meet, across the whole corpus: `data/corpus/deduplication.py`.
"""

from dataclasses import dataclass

from data.cleaning.step import check_least, check_share

_MAX_VALUES = 1024


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates:
    """Keep one document of those with the same text, whatever source it is in (`data/corpus/deduplication.py`).

    Compares what all steps on one document have left, across the whole corpus, and so stands after them.
    """

    def check(self, where: str) -> None:
        """There is nothing to set."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Keep one document, that of the lowest id, of those that say nearly the same, across the whole corpus.

    A text is read as words: NFKC, case folded, without invisible characters (soft hyphens, joiners), with punctuation,
    symbols and controls as spaces, and with each character of scripts that put no spaces (Chinese, Japanese, Thai, …)
    as a word of its own. Its shingles are its runs of `ngram` words; a text of fewer words is one shingle of them all.
    """

    ngram: int = 5
    """Words in a shingle."""
    threshold: float = 0.7
    """The part of shingles that two documents share (their Jaccard similarity, as the signatures estimate it) from
    which on they are near-duplicates."""
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
