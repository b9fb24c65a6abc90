"""Reads the strings of an evaluation set, from JSONL, JSON, CSV, Parquet or plain text.

The cleaning step `decontaminate` compares documents with these strings.
"""

import csv
import io
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow.parquet as pq

from data.sources.compression import is_compressed, is_damage_error, read_blocks


def read_strings(url: str, columns: Sequence[str]) -> list[str]:
    """Return all strings in the given columns of a file's items, including strings inside lists and mappings.

    An item is a line of a JSONL file, a member of a JSON array, a value of a JSON object, a row of a table, or a
    paragraph of a text file. If `columns` is empty, all columns are read.

    Raises ValueError for a damaged file, for a file of an unknown format, and for a column that no item has.
    """
    path = url.partition("::")[0]  # the path within the archive if the URL names a file in an archive
    suffix = posixpath.splitext(posixpath.splitext(path)[0] if is_compressed(url) else path)[1]
    if suffix not in _READERS:
        kind = suffix or "files without an extension"
        raise ValueError(f"{url}: evaluation sets are read from {', '.join(_READERS)}, not from {kind}")
    try:
        items = list(_READERS[suffix](io.BytesIO(b"".join(read_blocks(url)))))
    except Exception as error:
        if not isinstance(error, ValueError | csv.Error) and not is_damage_error(error):
            raise
        raise ValueError(f"{url}: not readable as {suffix} ({error})") from error
    if not columns:
        return [string for item in items for string in _strings_in(item)]
    records = [item for item in items if isinstance(item, dict)]
    for column in columns:
        if not any(column in record for record in records):
            present = sorted({str(key) for record in records for key in record})
            raise ValueError(f"{url}: no item has the column {column!r} (columns: {', '.join(present) or 'none'})")
    return [string for record in records for column in columns for string in _strings_in(record.get(column))]


def _strings_in(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _strings_in(member)
    elif isinstance(value, list):
        for member in value:
            yield from _strings_in(member)


def _read_jsonl(file: IO[bytes]) -> Iterator[Any]:
    return (json.loads(line) for line in file if line.strip())


def _read_json(file: IO[bytes]) -> Iterator[Any]:
    value = json.load(file)
    if not isinstance(value, dict | list):
        raise ValueError(f"it must be an array or an object of items, not {type(value).__name__}")
    return iter(value.values() if isinstance(value, dict) else value)


def _read_csv(file: IO[bytes]) -> Iterator[Any]:
    return csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))


def _read_parquet(file: IO[bytes]) -> Iterator[Any]:
    return iter(pq.read_table(file).to_pylist(maps_as_pydicts="lossy"))


def _read_paragraphs(file: IO[bytes]) -> Iterator[Any]:
    """Return the paragraphs of a text file. Blank lines separate paragraphs."""
    return iter(re.split(r"\n\s*\n", file.read().decode()))


_READERS: dict[str, Callable[[IO[bytes]], Iterator[Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_paragraphs,
}
"""The function that yields the items of an open file, for each extension of a file name."""
