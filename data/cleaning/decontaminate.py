"""Decontamination: documents that hold a piece of an evaluation set are dropped, whatever the set's name.

The rule of GPT-3 (Brown et al. 2020, appendix C) with its 13-grams: texts are compared word by word, without case,
punctuation and line breaks. The comparison is exact. Words are numbered by the evaluation sets alone (any other word
is 0), windows of words are looked up by a polynomial hash, and what is found there is compared number by number.
"""

import csv
import io
import json
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from cluster.fingerprints import fingerprint
from cluster.paths import list_files
from data.cleaning.step import Outcome, check_least
from data.sources.compression import blocks, is_compressed, is_damage


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Drop every document that shares a run of words with an evaluation set."""

    files: list[str] = field(default_factory=list, metadata={"source": True})
    """Files or globs of the sets on any fsspec URL: .jsonl, .json (an array or an object of items), .csv, .parquet, or
    .txt (blank lines between items); also compressed, as in .jsonl.gz."""
    columns: list[str] = field(default_factory=list)
    """Columns whose strings are compared, as in [question, answer]; none takes every string of an item."""
    ngram: int = 13
    """Words that a run must have."""
    min_words: int = 8
    """A string of an item with fewer words than `ngram`, but not fewer than this, is looked for as a whole."""
    fingerprints: list[str] = field(default_factory=list)
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


def decontaminate(texts: list[str], rule: Decontaminate) -> Outcome:
    """Reasons are `decontaminate/SET`, SET being the name of the first file in which a run of the document stands."""
    index = _index(rule)
    numbers, owners = _joined((_words(text) for text in texts), index.vocabulary)
    first_file = np.full(len(texts), len(index.sets), dtype=np.int64)
    for start, file in _runs(numbers, index):
        first_file[owners[start]] = min(first_file[owners[start]], file)
    names = [*(f"decontaminate/{name}" for name in index.sets), None]
    return Outcome(texts, [names[file] for file in first_file])


def check_files(rule: Decontaminate, where: str) -> None:
    """Raise ValueError for files that cannot be read, that lack a column, or in which nothing is long enough."""
    try:
        index = _index(rule)
    except ValueError as error:
        raise ValueError(f"{where}.files: {error}") from error
    for name, number in zip(index.sets, index.num_items, strict=True):
        if number == 0:
            raise ValueError(
                f"{where}.files: no string of {name} has min_words ({rule.min_words}) words, so that nothing would be "
                "looked for; name other columns or lower min_words"
            )


def num_items(rule: Decontaminate) -> int:
    """How many strings of the evaluation sets are looked for."""
    return sum(_index(rule).num_items)


# Words.


_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[^\W_{_IDEOGRAPHS}]+|[{_IDEOGRAPHS}]")
"""Letters and digits; where a script writes no spaces, each ideograph or kana is a word."""


def _words(text: str) -> list[str]:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


def _joined(texts: Iterable[list[str]], vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, owners): the words of all texts in a row with a 0 after each text, and the text of each position."""
    numbers: list[int] = []
    lengths: list[int] = []
    for words in texts:
        numbers.extend(vocabulary.get(word, 0) for word in words)
        numbers.append(0)
        lengths.append(len(words) + 1)
    return np.array(numbers, dtype=np.int64), np.repeat(np.arange(len(lengths)), lengths)


def _windows(numbers: np.ndarray, values: np.ndarray, sizes: Sequence[int]) -> Iterator[tuple[int, Any, Any]]:
    """(size, starts, hashes) of all windows without a 0, for each size in ascending order.

    A window's hash is the polynomial of its words' values modulo 2**64, numpy's own overflow, made from the hash of the
    window one word shorter.
    """
    zeros = np.concatenate(([0], np.cumsum(numbers == 0)))
    of_words = values[numbers]
    hashes = np.zeros(len(numbers) + 1, dtype=np.uint64)
    for size in range(1, min(max(sizes, default=0), len(numbers)) + 1):
        hashes = hashes[:-1] * np.uint64(0x9E3779B97F4A7C15) + of_words[size - 1 :]
        if size in sizes:
            starts = np.flatnonzero(zeros[size:] == zeros[:-size])
            yield size, starts, hashes[starts]


# The index of the sets.


class _Runs(NamedTuple):
    """All runs of one size that stand in the sets."""

    hashes: np.ndarray
    """In ascending order; uint64."""
    starts: np.ndarray
    """Where in the index's `numbers` each one's run starts."""
    leading: np.ndarray
    """For every value of a hash's leading bits, whether any hash begins with it: one look instead of a search."""

    @staticmethod
    def of(hashes: np.ndarray, starts: np.ndarray) -> "_Runs":
        order = np.argsort(hashes, kind="stable")  # of equal runs that of the first set comes first
        leading = np.zeros(1 << (len(hashes).bit_length() + 3), dtype=bool)
        leading[hashes >> _shift(leading)] = True
        return _Runs(hashes[order], starts[order], leading)


def _shift(leading: np.ndarray) -> np.uint64:
    return np.uint64(65 - len(leading).bit_length())


class _Index(NamedTuple):
    sets: list[str]
    num_items: list[int]
    """Strings that are looked for, by set."""
    vocabulary: dict[str, int]
    """Numbers of the sets' words, from 1."""
    values: np.ndarray
    """What a word counts in a hash, by its number; uint64."""
    numbers: np.ndarray
    """All strings that are looked for, word by word, each followed by a 0."""
    files: np.ndarray
    """The number of the set that each position of `numbers` comes from."""
    runs: dict[int, _Runs]
    """By their number of words."""


def _runs(numbers: np.ndarray, index: _Index) -> Iterator[tuple[int, int]]:
    """(start, set) of every window of the numbers that stands in a set."""
    for size, starts, hashes in _windows(numbers, index.values, list(index.runs)):
        runs = index.runs[size]
        likely = runs.leading[hashes >> _shift(runs.leading)]
        starts, hashes = starts[likely], hashes[likely]
        low, high = (np.searchsorted(runs.hashes, hashes, side=side) for side in ("left", "right"))
        for found in np.flatnonzero(low < high):
            start = starts[found]
            window = numbers[start : start + size]
            for place in runs.starts[low[found] : high[found]]:  # the first is right, unless hashes collide
                if np.array_equal(index.numbers[place : place + size], window):
                    yield int(start), int(index.files[place])
                    break


def _index(rule: Decontaminate) -> _Index:
    rule = pinned(rule)
    files = tuple(zip(rule.files, rule.fingerprints, strict=True))
    return _build(files, tuple(rule.columns), rule.ngram, rule.min_words)


@lru_cache(maxsize=4)
def _build(files: tuple[tuple[str, str], ...], columns: tuple[str, ...], ngram: int, min_words: int) -> _Index:
    """The index of (URL, fingerprint) pairs. Raises ValueError for a file that has become another."""
    urls = [url for url, _ in files]
    strings: list[list[str]] = []
    num_items: list[int] = []
    for url, expected in files:
        long_enough = [words for words in map(_words, _strings_of(url, columns)) if len(words) >= min_words]
        strings += long_enough
        num_items.append(len(long_enough))
        if fingerprint(url) != expected:  # looked at after reading, so that what was read is what was meant
            raise ValueError(f"{url} has changed since the run began; start the run anew")
    vocabulary: dict[str, int] = {}
    for words in strings:
        for word in words:
            vocabulary.setdefault(word, len(vocabulary) + 1)
    values = np.array([0, *map(_value, vocabulary)], dtype=np.uint64)
    numbers, owners = _joined(strings, vocabulary)
    lengths = np.array([len(words) for words in strings], dtype=np.int64)
    runs: dict[int, _Runs] = {}
    for size, starts, hashes in _windows(numbers, values, sorted({min(int(length), ngram) for length in lengths})):
        if size < ngram:  # only whole strings, not pieces of longer ones
            whole = lengths[owners[starts]] == size
            starts, hashes = starts[whole], hashes[whole]
        runs[size] = _Runs.of(hashes, starts)
    of_strings = np.repeat(np.arange(len(urls)), num_items)
    return _Index(_set_names(urls), num_items, vocabulary, values, numbers, of_strings[owners], runs)


def _value(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


def _set_names(urls: list[str]) -> list[str]:
    """The files' names without folders and suffixes; where two are the same, with the folder before them."""
    paths = [_member(url).split("/") for url in urls]
    stems = [path[-1].split(".")[0] or path[-1] for path in paths]
    return [
        f"{path[-2]}-{stem}" if stems.count(stem) > 1 and len(path) > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]


# The files of the sets.


def _strings_of(url: str, columns: tuple[str, ...]) -> list[str]:
    """All strings in the columns of a file's items, those in lists and mappings below them too.

    Raises ValueError for a file of another kind, a damaged one, or a column that no item has.
    """
    name = posixpath.splitext(_member(url))[0] if is_compressed(url) else _member(url)
    suffix = posixpath.splitext(name)[1]
    if suffix not in _READERS:
        raise ValueError(
            f"{url}: evaluation sets are read from {', '.join(_READERS)}, not from {suffix or 'such files'}"
        )
    try:
        items = list(_READERS[suffix](io.BytesIO(b"".join(blocks(url)))))
    except Exception as error:
        if not isinstance(error, ValueError | csv.Error) and not is_damage(error):
            raise
        raise ValueError(f"{url}: not readable as {suffix} ({error})") from error
    if not columns:
        return [string for item in items for string in _strings(item)]
    items = [item for item in items if isinstance(item, dict)]
    for column in columns:
        if not any(column in item for item in items):
            found = sorted({str(key) for item in items for key in item})
            raise ValueError(f"{url}: no item has the column {column!r} (columns: {', '.join(found) or 'none'})")
    return [string for item in items for column in columns if column in item for string in _strings(item[column])]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _member(url: str) -> str:
    """The file's own path, inside an archive where it is in one."""
    return url.partition("::")[0]


def _jsonl(file: IO[bytes]) -> Iterator[Any]:
    return (json.loads(line) for line in file if line.strip())


def _json(file: IO[bytes]) -> Iterator[Any]:
    value = json.load(file)
    return iter(value.values() if isinstance(value, dict) else value)


def _csv(file: IO[bytes]) -> Iterator[Any]:
    return csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))


def _parquet(file: IO[bytes]) -> Iterator[Any]:
    return iter(pq.read_table(file).to_pylist())


def _text(file: IO[bytes]) -> Iterator[Any]:
    return iter(re.split(r"\n\s*\n", file.read().decode()))


_READERS: dict[str, Callable[[IO[bytes]], Iterator[Any]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _text,
}
