"""Decontamination: documents that hold text of an evaluation set are dropped.

The rule of GPT-3 (Brown et al. 2020, appendix C), with 13-grams of words. The comparison is exact (`ngram_index.py`).
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cluster.fingerprints import fingerprint
from cluster.paths import list_files
from data.cleaning.ngram_index import NgramIndex, words
from data.cleaning.step import Outcome, check_least
from data.sources.evaluation_sets import read_strings


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Drop every document that shares an n-gram of words with an evaluation set."""

    files: list[str] = field(default_factory=list, metadata={"source": True})
    """Files or globs of the sets on any fsspec URL: .jsonl, .json (an array or an object of items), .csv, .parquet, or
    .txt (blank lines between items); also compressed, as in .jsonl.gz."""
    columns: list[str] = field(default_factory=list)
    """Columns whose strings are compared, as in [question, answer]; none takes every string of an item."""
    ngram: int = 13
    """Words that a run must have."""
    min_words: int = 8
    """A string of an item with fewer words than `ngram`, but not fewer than this, is looked for as a whole."""
    fingerprints: list[str] = field(default_factory=list, metadata={"internal": True})
    """What each file has to be, in the order of `files`, which are then no globs. A run sets it (`pinned`)."""

    def check(self, where: str) -> None:
        if not self.files:
            raise ValueError(f"{where}.files: name the files of at least one evaluation set")
        check_least(f"{where}.min_words", self.min_words, 1)
        check_least(f"{where}.ngram", self.ngram, self.min_words)
        if self.fingerprints and len(self.fingerprints) != len(self.files):
            raise ValueError(
                f"{where}.fingerprints: {len(self.fingerprints)} for {len(self.files)} files; give none or one for each"
            )


def pinned(rule: Decontaminate) -> Decontaminate:
    """The rule with the files that it matches now and their fingerprints, so that it means the same in every task and
    looks at the files only where an index is built. Raises ValueError for a pattern that matches nothing."""
    if rule.fingerprints:
        return rule
    urls = list_files(rule.files)
    return replace(rule, files=urls, fingerprints=[fingerprint(url) for url in urls])


class PinnedFile(NamedTuple):
    url: str
    fingerprint: str


class EvaluationSets(NamedTuple):
    """The strings of some evaluation sets that documents are compared with."""

    names: list[str]
    num_strings: list[int]
    """Of each set."""
    set_of_string: np.ndarray
    """Position of the set that each string is from."""
    index: NgramIndex
    """Of all strings."""


def decontaminate(texts: list[str], rule: Decontaminate) -> Outcome:
    """Reasons are `decontaminate/SET`; SET names the first of the rule's files that shares an n-gram."""
    sets = evaluation_sets(rule)
    first_set = [len(sets.names)] * len(texts)
    for text, string in sets.index.matches(words(text) for text in texts):
        first_set[text] = min(first_set[text], int(sets.set_of_string[string]))
    reasons = [*(f"decontaminate/{name}" for name in sets.names), None]
    return Outcome(texts, [reasons[number] for number in first_set])


def check_files(rule: Decontaminate, where: str) -> None:
    """Raise ValueError for files that cannot be read, that lack a column, or in which no string is long enough."""
    try:
        sets = evaluation_sets(rule)
    except ValueError as error:
        raise ValueError(f"{where}.files: {error}") from error
    for name, num_strings in zip(sets.names, sets.num_strings, strict=True):
        if num_strings == 0:
            raise ValueError(
                f"{where}.files: no string of {name} has min_words ({rule.min_words}) words, so that nothing would be "
                "looked for; name other columns or lower min_words"
            )


def evaluation_sets(rule: Decontaminate) -> EvaluationSets:
    """The sets of a rule, read once in a process. Raises ValueError for a file that has changed since it was pinned."""
    rule = pinned(rule)
    files = tuple(map(PinnedFile, rule.files, rule.fingerprints))
    return _read_sets(files, tuple(rule.columns), rule.ngram, rule.min_words)


@lru_cache(maxsize=4)
def _read_sets(files: tuple[PinnedFile, ...], columns: tuple[str, ...], ngram: int, min_words: int) -> EvaluationSets:
    strings: list[list[str]] = []
    num_strings: list[int] = []
    for file in files:
        long_enough = [string for string in map(words, read_strings(file.url, columns)) if len(string) >= min_words]
        strings += long_enough
        num_strings.append(len(long_enough))
        if fingerprint(file.url) != file.fingerprint:  # after reading, so that what was read is what was pinned
            raise ValueError(f"{file.url} has changed since the run began; start the run anew")
    set_of_string = np.repeat(np.arange(len(files)), num_strings)
    names = _set_names([file.url for file in files])
    return EvaluationSets(names, num_strings, set_of_string, NgramIndex(strings, ngram))


def _set_names(urls: list[str]) -> list[str]:
    """The files' names without folders and suffixes; where two are the same, with the folder before them."""
    paths = [url.partition("::")[0].split("/") for url in urls]
    stems = [path[-1].split(".")[0] or path[-1] for path in paths]
    return [
        f"{path[-2]}-{stem}" if stems.count(stem) > 1 and len(path) > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]
