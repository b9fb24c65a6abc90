"""The step `decontaminate`: drop the documents that contain text of an evaluation set.

As for GPT-3 (Brown et al. 2020, appendix C), a document is contaminated if it shares a 13-gram of words with an
evaluation set. For GPT-3, only a passage around the 13-gram was removed. This step drops the whole document. In scripts
without spaces an n-gram has as many ideographs or syllables as hold about the same amount of text as the words.
`data/cleaning/ngram_index.py` finds the shared n-grams exactly, without false matches.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cluster.fingerprints import fingerprint
from cluster.paths import list_files
from data.cleaning.ngram_index import NgramIndex
from data.cleaning.step import Outcome, check_at_least
from data.cleaning.word_runs import WORD_AMOUNT, UnitsPerWord
from data.sources.evaluation_sets import read_strings
from data.words import plain_words


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Drop every document that shares an n-gram of words with an evaluation set."""

    files: list[str] = field(default_factory=list, metadata={"source": True})
    """Files of the evaluation sets: paths, globs or fsspec URLs. The formats are .jsonl, .json (an array or an object
    of items), .csv, .parquet and .txt (items separated by blank lines). Files may be compressed, as in .jsonl.gz."""
    columns: list[str] = field(default_factory=list)
    """Columns whose strings are compared, as in [question, answer]. An empty list compares all strings of an item."""
    ngram: int = 13
    """Number of consecutive words that a document and a string of an evaluation set must share for a match. Case,
    punctuation, line breaks and other white space are ignored."""
    min_words: int = 8
    """Minimum number of words of a string. Shorter strings are ignored. A string with at least this many words, but
    fewer than `ngram`, matches if a document contains all of it."""
    units_per_word: UnitsPerWord = field(default_factory=UnitsPerWord)
    """How many ideographs or syllables of a script without spaces count as one word. With the defaults, 13 words are as
    much as 23 ideographs or 39 syllables."""
    fingerprints: list[str] = field(default_factory=list, metadata={"internal": True})
    """Expected fingerprint of each file, in the order of `files`. The run sets this field when it starts, and replaces
    the globs of `files` by the matching files."""

    def check(self, field_path: str) -> None:
        if not self.files:
            raise ValueError(f"{field_path}.files: the list is empty; name the files of at least one evaluation set")
        check_at_least(f"{field_path}.min_words", self.min_words, 1)
        if self.ngram < self.min_words:
            raise ValueError(f"{field_path}.ngram: {self.ngram} must be at least min_words ({self.min_words})")
        self.units_per_word.check(f"{field_path}.units_per_word")
        if self.fingerprints and len(self.fingerprints) != len(self.files):
            raise ValueError(
                f"{field_path}.fingerprints: there are {len(self.fingerprints)} for {len(self.files)} files; remove "
                "the field, which the run sets itself"
            )


def with_pinned_files(settings: Decontaminate) -> Decontaminate:
    """Return the settings with the globs replaced by the files that they match now, and with the files' fingerprints.

    All tasks of a run then compare with the same content, and a task that already has the n-gram index in memory need
    not look at the files again. Settings that already have fingerprints are returned unchanged. Raises ValueError for a
    glob that matches no file.
    """
    if settings.fingerprints:
        return settings
    urls = list_files(settings.files)
    return replace(settings, files=urls, fingerprints=[fingerprint(url) for url in urls])


class PinnedFile(NamedTuple):
    """A file of an evaluation set and its expected fingerprint."""

    url: str
    fingerprint: str


class EvaluationSets(NamedTuple):
    """Evaluation sets, one for each file, with an index of the n-grams of their strings."""

    names: list[str]
    """Name of each set, which is a part of the reason to drop a document (`decontaminate/NAME`)."""
    num_strings: list[int]
    """Number of indexed strings of each set."""
    set_of_string: np.ndarray
    """For each indexed string the position in `names` of the set that contains it."""
    index: NgramIndex
    """The n-grams of the strings of all sets."""


def decontaminate(texts: list[str], settings: Decontaminate) -> Outcome:
    """Drop the documents that share an n-gram with an evaluation set, with the reason `decontaminate/SET`.

    SET is the name of the first such set, in the order of the files.
    """
    sets = evaluation_sets(settings)
    no_set = len(sets.names)
    first_set = [no_set] * len(texts)
    for text_index, string_index in sets.index.matches(map(plain_words, texts)):
        first_set[text_index] = min(first_set[text_index], int(sets.set_of_string[string_index]))
    # The item at the index `no_set` is None, so a document without a shared n-gram is kept.
    reasons = [*(f"decontaminate/{name}" for name in sets.names), None]
    return Outcome(texts, [reasons[set_index] for set_index in first_set])


def check_files(settings: Decontaminate, field_path: str) -> None:
    """Raises ValueError if a file is damaged, lacks a configured column, or has no string that is long enough.

    Also raises ValueError for a glob that matches no file. Errors of the file system and of the network are raised
    unchanged.
    """
    try:
        sets = evaluation_sets(settings)
    except ValueError as error:
        raise ValueError(f"{field_path}.files: {error}") from error
    for name, num_strings in zip(sets.names, sets.num_strings, strict=True):
        if num_strings == 0:
            raise ValueError(
                f"{field_path}.files: no string of {name} has min_words ({settings.min_words}) words, so no document "
                "could match it; name other columns or lower min_words"
            )


def evaluation_sets(settings: Decontaminate) -> EvaluationSets:
    """Return the evaluation sets. Each process reads them once.

    Raises ValueError if a file no longer has the fingerprint in the settings.
    """
    settings = with_pinned_files(settings)
    files = tuple(map(PinnedFile, settings.files, settings.fingerprints))
    return _read_sets(files, tuple(settings.columns), settings.ngram, settings.min_words, settings.units_per_word)


@lru_cache(maxsize=4)
def _read_sets(
    files: tuple[PinnedFile, ...], columns: tuple[str, ...], ngram: int, min_words: int, units: UnitsPerWord
) -> EvaluationSets:
    strings: list[list[str]] = []  # each string as the list of its words
    num_strings: list[int] = []
    min_amount = min_words * WORD_AMOUNT
    for file in files:
        words_of_strings = map(plain_words, read_strings(file.url, columns))
        long_enough = [words for words in words_of_strings if units.amount_of_words(words) >= min_amount]
        strings += long_enough
        num_strings.append(len(long_enough))
        # Checked after the file was read, because it may have been replaced during the reading.
        if fingerprint(file.url) != file.fingerprint:
            raise ValueError(f"{file.url} has changed since the run started; start the run again")
    set_of_string = np.repeat(np.arange(len(files)), num_strings)
    names = _set_names([file.url for file in files])
    return EvaluationSets(
        names, num_strings, set_of_string, NgramIndex(strings, ngram=ngram, min_words=min_words, units=units)
    )


def _set_names(urls: list[str]) -> list[str]:
    """Return a name for each file: the file name without suffixes, or `FOLDER-NAME` if several files have this name."""
    paths = [url.partition("::")[0].split("/") for url in urls]
    stems = [path[-1].split(".")[0] or path[-1] for path in paths]
    return [
        f"{path[-2]}-{stem}" if stems.count(stem) > 1 and len(path) > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]
