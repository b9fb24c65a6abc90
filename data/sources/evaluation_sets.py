"""Evaluation sets: the strings of their items, from JSONL, JSON, CSV, Parquet or plain text."""

import csv
import io
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow.parquet as pq

from data.sources.compression import blocks, is_compressed, is_damage


def read_strings(url: str, columns: Sequence[str]) -> list[str]:
    """All strings in these columns of a file's items (in all columns where none is named), also those in lists and
    mappings.

    Raises ValueError for a file of another format, a damaged one, or a column that no item has.
    """
    name = url.partition("::")[0]  # of the file itself, inside an archive where it is in one
    suffix = posixpath.splitext(posixpath.splitext(name)[0] if is_compressed(url) else name)[1]
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
    records = [item for item in items if isinstance(item, dict)]
    for column in columns:
        if not any(column in record for record in records):
            present = sorted({str(key) for record in records for key in record})
            raise ValueError(f"{url}: no item has the column {column!r} (columns: {', '.join(present) or 'none'})")
    return [string for record in records for column in columns for string in _strings(record.get(column))]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _strings(member)
    elif isinstance(value, list):
        for member in value:
            yield from _strings(member)


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
