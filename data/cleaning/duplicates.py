"""The settings of `exact_duplicates` and `near_duplicates`, the two steps that compare documents with each other.

`data/corpus/exact_duplicates.py` and `data/corpus/clusters.py` run these steps on the whole corpus.
"""

from dataclasses import dataclass, field

from data.cleaning.step import check_at_least, check_share
from data.cleaning.word_runs import UnitsPerWord

_MAX_SIGNATURE_VALUES = 1024


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates:
    """Of the documents with the same text, keep only the one with the lowest id, even if they are from several sources.

    Two forms of the same characters in Unicode (NFC) are the same text. The step compares the texts of the whole
    corpus, after the steps that look at one document at a time. So it must be listed after those steps.
    """

    ignore_case: bool = True
    """Whether texts that differ only in upper and lower case are the same text."""
    ignore_whitespace: bool = True
    """Whether texts that differ only in the number and kind of spaces, tabs and line breaks between words, or around
    the text, are the same text. Set this to false to keep programs that differ in their indentation. The step
    `near_duplicates` ignores case and white space always."""

    def check(self, field_path: str) -> None:
        """Raises nothing: every setting is allowed."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Of the documents of the whole corpus with nearly the same text, keep only the one with the lowest id.

    Near-duplicates of near-duplicates count too: if A is a near-duplicate of B, and B of C, only one of the three is
    kept. The texts are compared by their shingles, which are the sequences of `ngram` consecutive words. A text with
    fewer words is a single shingle. Case, punctuation, symbols, invisible characters such as soft hyphens, and the
    Unicode form (NFKC) are ignored.
    """

    ngram: int = 5
    """Number of words in a shingle."""
    units_per_word: UnitsPerWord = field(default_factory=UnitsPerWord)
    """How many ideographs or syllables of a script without spaces count as one word. With the defaults, 5 words are as
    much as 9 ideographs or 15 syllables."""
    threshold: float = 0.7
    """Two documents are near-duplicates if the Jaccard similarity of their sets of shingles is at least this. The
    similarity is estimated from the documents' MinHash signatures."""
    bands: int = 20
    """Number of bands of a signature. Two documents are compared if all values of at least one band are equal."""
    rows: int = 6
    """Number of values in a band. With 20 bands of 6 values, two documents with a similarity of 0.5, 0.7 or 0.8 are
    compared with a probability of 0.27, 0.92 or 0.998."""

    def check(self, field_path: str) -> None:
        """Raises ValueError for a value out of its range."""
        for name in ("ngram", "bands", "rows"):
            check_at_least(f"{field_path}.{name}", self.__dict__[name], 1)
        self.units_per_word.check(f"{field_path}.units_per_word")
        check_share(f"{field_path}.threshold", self.threshold)
        if self.threshold == 0:
            raise ValueError(
                f"{field_path}.threshold: with 0, all compared documents would be near-duplicates; set more than 0"
            )
        if self.bands * self.rows > _MAX_SIGNATURE_VALUES:
            raise ValueError(
                f"{field_path}: {self.bands} bands of {self.rows} rows make signatures of {self.bands * self.rows} "
                f"values, but at most {_MAX_SIGNATURE_VALUES} are allowed; lower bands or rows"
            )
