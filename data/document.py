"""Documents, and the readers that bring them in: the first step of the road.

A reader goes through one file (or a range of it) on any fsspec URL, also `zip://member::file://archive.whl`, and
yields a `Document` or a `Quarantined` for every record it meets. A bad record never stops the work and is never lost.

A document's id comes from its source's name and from its content (or from a column that the source names), so that
moving, renaming, splitting or reordering files changes no id, and with it no split and no sample.
"""

import difflib
import gzip
import hashlib
import json
import lzma
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import IO, Any, Literal, NamedTuple, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import infer_compression

from cluster.storage import expand

PROBED_RECORDS = 100  # how many readable records `check_source` looks through for a column
_PROBED_FILES = 3
_CORRUPT = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, zlib.error)
_ZSTD_LIBRARIES = ("compression.zstd", "backports.zstd", "zstandard")  # fsspec imports the first one there is


@dataclass(frozen=True)
class Document:
    id: str
    text: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)


class Quarantined(NamedTuple):
    """A record that could not be read: where it stands and why."""

    source: str
    file: str
    offset: int
    """Byte offset in text and JSONL files, record number in JSON and Parquet files."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Source:
    name: str
    """Short name; counts are kept by it and document ids start with it."""
    path: str = field(metadata={"source": True})
    """File or glob on any fsspec URL, chained ones too: `zip://folder/*.jsonl::file://archive.whl`."""
    format: Literal["text", "jsonl", "json", "parquet"]
    """`json` is one array (or object) of records a file; `jsonl` one record a line; `text` has no columns."""
    text: str = "text"
    """Column of the text. `a.b` goes into a record, `a[].b` through a list, whose strings become lines."""
    id: str | None = None
    """Column that identifies a record; without one the id is a hash of the text. `json` objects offer their `$key`."""
    metadata: list[str] = field(default_factory=list)
    """Columns to keep beside the text."""
    split: str | None = None
    """For `text`: a regular expression between documents (`\\n\\s*\\n`: a blank line); without it a file is one."""
    fraction: float = 1.0
    """Part of the source's documents to take, chosen by a hash of the id."""


class ReadRange(NamedTuple):
    """A piece of one file for one reader: bytes of a JSONL file, row groups of a Parquet file, else the whole."""

    source: int
    """Position in the list of sources."""
    url: str
    start: int
    stop: int
    """-1 stands for the end of the file."""
    num_bytes: int
    """Size on disk, for the packing of ranges into tasks."""


class _Bad(Exception):
    """A record that goes to quarantine; the message is the reason."""


_Records = Iterator[tuple[int, "dict[str, Any] | _Bad"]]


def content_id(source: str, text: str) -> str:
    """Id of a document without an id of its own: its source and 128 bits of its text's hash."""
    return f"{source}/{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def unit_hash(value: str, purpose: str) -> float:
    """A number in [0, 1) that `value` alone decides; different purposes give independent numbers."""
    digest = hashlib.blake2b(value.encode(), digest_size=8, person=purpose.encode()).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def plan_ranges(sources: list[Source], range_bytes: int) -> list[ReadRange]:
    """Every file of every source, big ones cut into ranges of about `range_bytes` where the format allows it."""
    ranges: list[ReadRange] = []
    for index, source in enumerate(sources):
        for url in expand([source.path]):
            ranges.extend(_cut(index, source, url, range_bytes))
    return ranges


def _cut(index: int, source: Source, url: str, range_bytes: int) -> list[ReadRange]:
    fs, path = fsspec.core.url_to_fs(url)
    size = int(fs.info(path)["size"])
    # An offset into a compressed file says nothing of the text in it.
    if source.format == "jsonl" and "::" not in url and infer_compression(url) is None:
        starts = list(range(0, max(size, 1), range_bytes))
        return [ReadRange(index, url, start, start + range_bytes, min(range_bytes, size)) for start in starts]
    if source.format == "parquet" and size > range_bytes:
        metadata = _parquet_metadata(url)
        if metadata is None:
            return [ReadRange(index, url, 0, -1, size)]
        groups = metadata.num_row_groups
        step = max(1, groups * range_bytes // size)
        return [ReadRange(index, url, start, start + step, step * size // groups) for start in range(0, groups, step)]
    return [ReadRange(index, url, 0, -1, size)]


def _parquet_metadata(url: str) -> pq.FileMetaData | None:
    """None for a damaged file, which its reader will tell of."""
    try:
        with _opened(url) as file:
            return pq.ParquetFile(file).metadata
    except (pa.ArrowException, OSError, *_CORRUPT) as error:
        _unreadable(error, "file")
        return None


def read(source: Source, piece: ReadRange) -> Iterator[Document | Quarantined]:
    """A `Document` or a `Quarantined` for every record of the piece, in the file's order."""
    offset = piece.start
    try:
        for offset, record in _RECORDS[source.format](source, piece):
            try:
                if isinstance(record, _Bad):
                    raise record
                yield to_document(source, record)
            except _Bad as bad:
                yield Quarantined(source.name, piece.url, offset, str(bad))
    except Exception as error:
        if not is_damage(error):
            raise
        # What follows in a damaged archive cannot be reached.
        yield Quarantined(source.name, piece.url, offset, f"damaged file, unreadable from here on: {error}")


def is_damage(error: Exception) -> bool:
    """Whether a file's content is to blame, as decompressors tell it, and not the file system or the network."""
    if isinstance(error, _CORRUPT):
        return True
    if type(error) is OSError:
        return error.args == ("Invalid data stream",)  # all that bz2 says
    return isinstance(error, tuple(sys.modules[name].ZstdError for name in _ZSTD_LIBRARIES if name in sys.modules))


def to_document(source: Source, record: dict[str, Any]) -> Document:
    """The document that a record holds. Raises `_Bad` with the reason when a value is missing or of a wrong type."""
    text = _string(source.text, _unicode(source.text, pick(record, source.text)))
    own = content_id(source.name, text) if source.id is None else _named_id(source, record)
    metadata = {column: _unicode(column, pick(record, column)) for column in source.metadata}
    return Document(own, text, source.name, metadata)


def _unicode(column: str, value: Any) -> Any:
    """The value. Raises `_Bad` when a lone surrogate stands anywhere in it, for no file could hold it."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError as error:
        raise _Bad(f"{column}: lone surrogate, no valid Unicode") from error
    return value


def _named_id(source: Source, record: dict[str, Any]) -> str:
    assert source.id is not None
    value = _unicode(source.id, pick(record, source.id))
    if value is None or value == "":
        raise _Bad(f"{source.id}: missing value")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise _Bad(f"{source.id}: an id must be a string or an integer, not {type(value).__name__}")
    return f"{source.name}/{value}"


def pick(record: Any, column: str) -> Any:
    """The value at a column path: `title`, `meta.url`, `messages[].text` (a flat list); None where there is none.

    A column whose very name holds dots or brackets is found before the name is read as a path.
    """
    if isinstance(record, dict) and column in record:
        return record[column]
    head, _, rest = column.partition(".")
    name = head.rstrip("[]")
    value = record.get(name) if isinstance(record, dict) else None
    depth = head.count("[]")
    if not depth:
        return pick(value, rest) if rest and value is not None else value if not rest else None
    values: list[Any] = [value]
    for _ in range(depth):
        if not all(isinstance(items, list) for items in values):
            return None
        values = list(chain.from_iterable(values))
    return [pick(item, rest) for item in values] if rest else values


def _string(column: str, value: Any) -> str:
    if value is None:
        raise _Bad(f"{column}: missing value")
    if isinstance(value, list):
        wrong = next((item for item in value if not isinstance(item, str)), None)
        if wrong is not None or any(item is None for item in value):
            raise _Bad(f"{column}: every item must be a string, found {type(wrong).__name__}")
        return "\n".join(value)
    if not isinstance(value, str):
        raise _Bad(f"{column}: must be a string, not {type(value).__name__}")
    return value


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    with fsspec.open(url, "rb", compression="infer") as file:
        yield cast(IO[bytes], file)


def _text_records(source: Source, piece: ReadRange) -> _Records:
    with _opened(piece.url) as file:
        whole = file.read()
    # Split bytes, not characters, so that one undecodable byte costs one document rather than the file.
    separators = [] if source.split is None else list(re.finditer(source.split.encode(), whole))
    starts = [0, *(match.end() for match in separators)]
    stops = [*(match.start() for match in separators), len(whole)]
    for start, stop in zip(starts, stops, strict=True):
        part = whole[start:stop]
        if separators and not part.strip():
            continue  # what lies between two separators in a row is no document
        try:
            yield start, {"text": part.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            yield start, _Bad(f"not UTF-8: {error.reason} at byte {start + error.start}")


def _jsonl_records(source: Source, piece: ReadRange) -> _Records:
    with _opened(piece.url) as file:
        offset = piece.start
        if offset:
            # A line belongs to the range that holds its first byte; the byte before tells whether one starts here.
            file.seek(offset - 1)
            offset += len(file.readline()) - 1
        while piece.stop < 0 or offset < piece.stop:
            line = file.readline()
            if not line:
                return
            if line.strip():
                yield offset, _parse_line(line)
            offset += len(line)


def _parse_line(line: bytes) -> "dict[str, Any] | _Bad":
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return _Bad(f"not UTF-8: {error.reason} at byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return _Bad(f"malformed JSON: {error}")
    if not isinstance(record, dict):
        return _Bad(f"a line must hold a JSON object, not {type(record).__name__}")
    return record


def _json_records(source: Source, piece: ReadRange) -> _Records:
    with _opened(piece.url) as file:
        raw = file.read()
    try:
        whole = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        yield 0, _Bad(f"unreadable JSON file: {error}")
        return
    if isinstance(whole, dict):
        records = [{"$key": key, **value} if isinstance(value, dict) else value for key, value in whole.items()]
    else:
        records = whole if isinstance(whole, list) else [whole]
    for index, record in enumerate(records):
        yield index, record if isinstance(record, dict) else _Bad("a record must be a JSON object")


def _parquet_records(source: Source, piece: ReadRange) -> _Records:
    wanted = {column.partition(".")[0].rstrip("[]") for column in _columns(source)} | set(_columns(source))
    with _opened(piece.url) as opened:
        try:
            file = pq.ParquetFile(opened)
        except (pa.ArrowException, OSError) as error:
            yield 0, _unreadable(error, "file")
            return
        present = [name for name in file.schema_arrow.names if name in wanted]
        stop = file.num_row_groups if piece.stop < 0 else min(piece.stop, file.num_row_groups)
        sizes = [file.metadata.row_group(group).num_rows for group in range(stop)]
        for group in range(piece.start, stop):
            index = sum(sizes[:group])
            try:
                for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=present):
                    for record in batch.to_pylist():
                        yield index, record
                        index += 1
            except (pa.ArrowException, OSError) as error:
                yield index, _unreadable(error, f"from this row to the end of row group {group}")


def _unreadable(error: Exception, what: str) -> _Bad:
    """What is damaged in a Parquet file goes to quarantine; a file system that failed is no matter of the file."""
    if not is_damage(error) and isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
        raise error
    return _Bad(f"unreadable Parquet, {what}: {error}")


_RECORDS = {
    "text": _text_records,
    "jsonl": _jsonl_records,
    "json": _json_records,
    "parquet": _parquet_records,
}


def _columns(source: Source) -> list[str]:
    return [source.text, *([source.id] if source.id else []), *source.metadata]


def check_sources(sources: list[Source]) -> None:
    """Raise ValueError for whatever is wrong with the sources that a look at the first records can tell."""
    if not sources:
        raise ValueError("sources: the list is empty; name at least one source")
    names = [source.name for source in sources]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"sources: name {name!r} may hold only letters, digits, '_', '.' and '-'")
        if names.count(name) > 1:
            raise ValueError(f"sources: the name {name!r} stands twice; give every source its own name")
    for source in sources:
        check_source(source)


def check_source(source: Source) -> None:
    """Raise ValueError when the source's fields contradict each other, match no file or name a column nobody has."""
    where = f"sources.{source.name}"
    if not 0 < source.fraction <= 1:
        raise ValueError(f"{where}.fraction: {source.fraction} must be above 0 and at most 1")
    if source.format == "text":
        _check_text_source(where, source)
    elif source.split is not None:
        raise ValueError(f"{where}.split: only for format text, not {source.format}; remove it")
    urls = expand([source.path])
    if source.format == "text":
        return
    seen = _first_records(source, urls)
    if not seen:
        raise ValueError(f"{where}: no readable {source.format} record at the start of {urls[0]}; is the format right?")
    for column in _columns(source):
        if all(pick(record, column) is None for record in seen):
            _raise_missing_column(where, column, seen, os.path.basename(urls[0]))


def _check_text_source(where: str, source: Source) -> None:
    ignored = {"text": source.text != "text", "id": source.id is not None, "metadata": bool(source.metadata)}
    for name in [name for name, given in ignored.items() if given]:
        raise ValueError(f"{where}.{name}: a text file has no columns; remove it or give another format")
    if source.split is None:
        return
    try:
        empty = re.compile(source.split.encode()).fullmatch(b"")
    except re.error as error:
        raise ValueError(f"{where}.split: {source.split!r} is no regular expression ({error})") from error
    if empty:
        raise ValueError(f"{where}.split: {source.split!r} matches the empty string; it would cut everywhere")


def _first_records(source: Source, urls: list[str]) -> list[dict[str, Any]]:
    """The first readable records, all columns of them (a Parquet file's schema stands in for its rows)."""
    first = urls[:_PROBED_FILES]
    if source.format == "parquet":
        _check_schema(source, first)
    return list(islice(chain.from_iterable(_readable_records(source, url) for url in first), PROBED_RECORDS))


def _check_schema(source: Source, urls: list[str]) -> None:
    """Raise ValueError when the first Parquet file that can be read lacks a column."""
    for url in urls:
        if metadata := _parquet_metadata(url):
            names = metadata.schema.to_arrow_schema().names
            for column in _columns(source):
                if column not in names and column.partition(".")[0].rstrip("[]") not in names:
                    _raise_missing_column(f"sources.{source.name}", column, [dict.fromkeys(names)], url)
            return


def _readable_records(source: Source, url: str) -> Iterator[dict[str, Any]]:
    """What can be read of a file, up to where it is damaged: a run sets the rest aside, so it is no mistake here."""
    try:
        for _, record in _RECORDS[source.format](source, ReadRange(0, url, 0, -1, 0)):
            if isinstance(record, dict):
                yield record
    except Exception as error:
        if not is_damage(error):
            raise


def _raise_missing_column(where: str, column: str, records: list[dict[str, Any]], file: str) -> None:
    present = list(dict.fromkeys(name for record in records for name in record))
    near = difflib.get_close_matches(column, present, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{where}: column {column!r} is in none of the first records of {file}{hint} (present: {', '.join(present)})"
    )
