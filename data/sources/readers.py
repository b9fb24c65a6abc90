"""Readers: from the files of every source to documents.

A reader goes through one file (or a range of it) on any fsspec URL, also `zip://member::file://archive.whl`, and
yields a `Document`, a `Quarantined` or a `SkippedRecord` for every record. A bad record never stops the run and is
never lost. A failing file system does stop it, because that is not the file's fault.
"""

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice
from typing import Any

from cluster.paths import list_files_with_sizes
from data.document import (
    BadRecord,
    Document,
    Quarantined,
    ReadRange,
    SkippedRecord,
    Source,
    column_paths,
    column_value,
    document_from_record,
)
from data.sources.compression import is_compressed, is_damage_error, open_file, supports_ranges, utf16_encoding
from data.sources.csv_rows import csv_records
from data.sources.json_records import json_records, jsonl_records
from data.sources.parquet_rows import parquet_metadata, parquet_records
from data.sources.plain_text import html_records, text_records
from data.sources.records import NotText, Records
from data.sources.warc import warc_records

PROBED_RECORDS = 100  # how many readable records `check_source` looks through for a column
_PROBED_FILES = 3

READERS: dict[str, Callable[[Source, ReadRange], Records]] = {
    "text": text_records,
    "jsonl": jsonl_records,
    "json": json_records,
    "csv": csv_records,
    "parquet": parquet_records,
    "html": html_records,
    "warc": warc_records,
}
"""By the name of a source's format."""

_FORMATS_WITHOUT_COLUMNS = ("text", "html")


def plan_ranges(sources: list[Source], range_bytes: int) -> list[ReadRange]:
    """Every file of every source, big ones cut into ranges of about `range_bytes` where the format allows it."""
    ranges: list[ReadRange] = []
    for index, source in enumerate(sources):
        for url, size in list_files_with_sizes([source.path]):
            ranges += _split_file(index, source, url, size or 0, range_bytes)
    return ranges


def _split_file(index: int, source: Source, url: str, size: int, range_bytes: int) -> list[ReadRange]:
    if size > range_bytes and source.format == "jsonl" and _can_start_within_file(url):
        return [
            ReadRange(index, url, start, start + range_bytes, min(range_bytes, size - start))
            for start in range(0, size, range_bytes)
        ]
    if size > range_bytes and source.format == "parquet" and (metadata := parquet_metadata(url)):
        groups = metadata.num_row_groups
        step = max(1, groups * range_bytes // size)
        return [ReadRange(index, url, start, start + step, step * size // groups) for start in range(0, groups, step)]
    return [ReadRange(index, url, 0, -1, size)]


def _can_start_within_file(url: str) -> bool:
    """Whether a reader may begin within the file; an offset into a compressed file is no offset into its text."""
    if "::" in url or is_compressed(url) or not supports_ranges(url):
        return False
    with open_file(url) as file:
        return utf16_encoding(file.read(4)) is None


def read_records(source: Source, read_range: ReadRange) -> Iterator[Document | Quarantined | SkippedRecord]:
    """A `Document`, `Quarantined` or `SkippedRecord` for every record of the range, in the file's order."""
    offset = read_range.start
    try:
        for offset, record in READERS[source.format](source, read_range):
            yield _to_result(source, read_range.url, offset, record)
    except Exception as error:
        if not is_damage_error(error):
            raise
        # What follows in a damaged archive cannot be reached.
        yield Quarantined(source.name, read_range.url, offset, f"damaged file, unreadable from here on: {error}")


def read_documents_at(source: Source, url: str, offsets: Collection[int]) -> Iterator[Document]:
    """The documents at these offsets of one file (`Document.offset`), in the file's order."""
    ranges = [ReadRange(0, url, 0, -1, 0)]
    if source.format == "jsonl" and _can_start_within_file(url):
        ranges = [ReadRange(0, url, offset, offset + 1, 0) for offset in sorted(offsets)]
    for read_range in ranges:
        for record in read_records(source, read_range):
            if isinstance(record, Document) and record.offset in offsets:
                yield record


def _to_result(
    source: Source, file: str, offset: int, record: dict[str, Any] | BadRecord | NotText
) -> Document | Quarantined | SkippedRecord:
    if isinstance(record, NotText):
        return SkippedRecord(source.name, file, offset, str(record))
    try:
        if isinstance(record, BadRecord):
            raise record
        return document_from_record(source, record, file, offset)
    except BadRecord as bad:
        return Quarantined(source.name, file, offset, str(bad))


def check_sources(sources: list[Source]) -> None:
    """Raise ValueError for every mistake in the sources that their fields and first records show."""
    if not sources:
        raise ValueError("sources: the list is empty; name at least one source")
    names = [source.name for source in sources]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"sources: name {name!r} may hold only letters, digits, '_', '.' and '-'")
        if names.count(name) > 1:
            raise ValueError(f"sources: the name {name!r} is used twice; give every source its own name")
    for source in sources:
        check_source(source)


def check_source(source: Source) -> None:
    """Raise ValueError when the fields contradict each other, match no file or name a column that no record has."""
    where = f"sources.{source.name}"
    _check_fields(where, source)
    urls = [url for url, _ in list_files_with_sizes([source.path])]
    if source.format in _FORMATS_WITHOUT_COLUMNS:
        return
    if source.format == "parquet":
        _check_schema(where, source, urls[:_PROBED_FILES])
    seen, problem = _probe_records(source, urls[:_PROBED_FILES])
    if not seen:
        raise ValueError(
            f"{where}: no readable {source.format} record at the start of {urls[0]}; is the format right?{problem}"
        )
    for column in column_paths(source):
        may_be_missing = source.format == "warc" and column.startswith(("headers.", "http."))
        if not may_be_missing and all(column_value(record, column) is None for record in seen):
            _raise_missing_column(where, column, seen, os.path.basename(urls[0]))


def _check_fields(where: str, source: Source) -> None:
    """Raise ValueError for a field that the format ignores, or a value out of its range."""
    if not 0 < source.fraction <= 1:
        raise ValueError(f"{where}.fraction: {source.fraction} must be above 0 and at most 1")
    if source.format in _FORMATS_WITHOUT_COLUMNS:
        ignored = {"text": source.text != "text", "id": source.id is not None, "metadata": bool(source.metadata)}
        for name in [name for name, is_set in ignored.items() if is_set]:
            kind = "an HTML" if source.format == "html" else "a text"
            raise ValueError(f"{where}.{name}: {kind} file has no column_paths; remove it or give another format")
    if source.format == "warc" and source.text != "text":
        raise ValueError(f"{where}.text: {source.text!r}: what is read of a WARC file is its pages; remove it")
    if source.split is not None:
        if source.format != "text":
            raise ValueError(f"{where}.split: only for format text, not {source.format}; remove it")
        _check_split(where, source.split)
    if source.format != "csv" and source.delimiter != ",":
        raise ValueError(f"{where}.delimiter: only for format csv, not {source.format}; remove it")
    if len(source.delimiter) != 1 or source.delimiter in '"\r\n':
        raise ValueError(f"{where}.delimiter: {source.delimiter!r} must be one character, no quote and no line end")


def _check_split(where: str, split: str) -> None:
    try:
        empty = re.compile(split.encode()).fullmatch(b"")
    except re.error as error:
        raise ValueError(f"{where}.split: {split!r} is no regular expression ({error})") from error
    if empty:
        raise ValueError(f"{where}.split: {split!r} matches the empty string; it would cut everywhere")


def _check_schema(where: str, source: Source, urls: list[str]) -> None:
    """Raise ValueError when the first Parquet file that can be read lacks a column."""
    for url in urls:
        if metadata := parquet_metadata(url):
            names = metadata.schema.to_arrow_schema().names
            for column in column_paths(source):
                if column not in names and column.partition(".")[0].rstrip("[]") not in names:
                    _raise_missing_column(where, column, [dict.fromkeys(names)], url)
            return


def _probe_records(source: Source, urls: list[str]) -> tuple[list[dict[str, Any]], str]:
    """The first readable records with all their columns, and the reason why the first unreadable one is not."""
    problems: list[str] = []
    readable = chain.from_iterable(_probe_file(source, url, problems) for url in urls)
    records = list(islice(readable, PROBED_RECORDS))
    return records, f" ({problems[0]})" if problems else ""


def _probe_file(source: Source, url: str, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The readable records of a file, up to where it is damaged; a run quarantines the rest, so it is no error here."""
    try:
        for _, record in READERS[source.format](source, ReadRange(0, url, 0, -1, 0)):
            if isinstance(record, dict):
                yield record
            elif isinstance(record, BadRecord):
                problems.append(str(record))
    except Exception as error:
        if not is_damage_error(error):
            raise
        problems.append(f"damaged file: {error}")


def _raise_missing_column(where: str, column: str, records: list[dict[str, Any]], file: str) -> None:
    present = list(dict.fromkeys(name for record in records for name in record))
    near = difflib.get_close_matches(column, present, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{where}: column {column!r} is in none of the first records of {file}{hint} (present: {', '.join(present)})"
    )
