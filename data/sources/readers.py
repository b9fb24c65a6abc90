"""Reads the files of sources into documents, and checks the sources of a config.

`plan_ranges` splits the files into ranges, and `read_records` reads a range. For every record it yields a `Document`, a
`Quarantined` (a record that cannot be read) or a `SkippedRecord` (a record that is not meant to become a document, such
as an image in a WARC file). Files may be at any fsspec URL, including `zip://member::file://archive.whl`. A bad record
never stops the run and is never lost. A failing file system stops the run, because the file itself may be good.
"""

import codecs
import difflib
import json
import logging
import re
from collections import Counter
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
    partition_columns,
    whole_file,
)
from data.sources.charset import count_beyond_ascii, detected_encoding, is_utf8_or_cut
from data.sources.compression import (
    first_block,
    is_compressed,
    is_damage_error,
    open_file,
    read_blocks,
    read_utf8_blocks,
    supports_ranges,
    utf16_encoding,
)
from data.sources.csv_rows import csv_records
from data.sources.encodings import check_encoding, file_encoding
from data.sources.json_records import json_records, jsonl_records
from data.sources.parquet_rows import parquet_metadata, parquet_records, reads_bytes
from data.sources.plain_text import html_records, text_records
from data.sources.records import NotADocument, Records
from data.sources.warc import warc_records

log = logging.getLogger(__name__)

PROBED_RECORDS = 100
"""Number of readable records in which `check_source` looks for the columns that a source names."""
_PROBED_FILES = 3
"""Number of files of a source from which `check_source` reads records."""
_MIN_UTF8_CHARACTERS = 10
"""Number of characters beyond ASCII with which valid UTF-8 is no accident. Short texts in GBK can be valid UTF-8."""

READERS: dict[str, Callable[[Source, ReadRange], Records]] = {
    "text": text_records,
    "jsonl": jsonl_records,
    "json": json_records,
    "csv": csv_records,
    "parquet": parquet_records,
    "html": html_records,
    "warc": warc_records,
}
"""The reader of each format (`Source.format`)."""

_FORMATS_WITHOUT_COLUMNS = {"text": "a text", "html": "an HTML"}
"""The formats whose files have no columns, and how error messages name them."""


def plan_ranges(sources: list[Source], range_bytes: int) -> list[ReadRange]:
    """Return ranges that cover every file of every source.

    A file of at most `range_bytes` is one range. A longer file is split into ranges of about `range_bytes` if its
    format allows that.
    """
    ranges: list[ReadRange] = []
    for source_index, source in enumerate(sources):
        for url, num_bytes in source_files(source):
            ranges += _split_file(source_index, source, url, num_bytes or 0, range_bytes)
    return ranges


def source_files(source: Source) -> list[tuple[str, int | None]]:
    """Return (URL, size in bytes) of the files of a source, in the order of its paths. An unknown size is None.

    Raises ValueError if a path matches no file, or if two paths match the same file.
    """
    files = list_files_with_sizes(source.paths)
    counts = Counter(url for url, _ in files)
    if repeated := next((url for url, count in counts.items() if count > 1), None):
        raise ValueError(
            f"sources.{source.name}.path: two of the paths match {repeated}; change them so that each file is read once"
        )
    return files


def _split_file(source_index: int, source: Source, url: str, num_bytes: int, range_bytes: int) -> list[ReadRange]:
    """Return the ranges of one file of `num_bytes`. If the size is not known, `num_bytes` is 0."""
    if num_bytes > range_bytes and source.format == "jsonl" and _can_start_within_file(source, url):
        return [
            ReadRange(source_index, url, start, start + range_bytes, min(range_bytes, num_bytes - start))
            for start in range(0, num_bytes, range_bytes)
        ]
    if num_bytes > range_bytes and source.format == "parquet" and (metadata := parquet_metadata(url)):
        num_groups = metadata.num_row_groups
        # `step` is the number of row groups in a range.
        step = max(1, num_groups * range_bytes // num_bytes)
        return [
            # The sizes add up to `num_bytes`, so the size of a corpus does not depend on `range_bytes`.
            ReadRange(source_index, url, start, stop, num_bytes * stop // num_groups - num_bytes * start // num_groups)
            for start in range(0, num_groups, step)
            for stop in [min(start + step, num_groups)]
        ]
    return [whole_file(source_index, url, num_bytes)]


def _can_start_within_file(source: Source, url: str) -> bool:
    """Whether a reader can start at any byte of the file.

    It cannot if the file is compressed, in an archive, not in UTF-8, or on a server without range requests.
    """
    if "::" in url or is_compressed(url) or file_encoding(source) != "utf-8" or not supports_ranges(url):
        return False
    with open_file(url) as file:
        return utf16_encoding(file.read(4)) is None


def read_records(source: Source, read_range: ReadRange) -> Iterator[Document | Quarantined | SkippedRecord]:
    """Yield a `Document`, `Quarantined` or `SkippedRecord` for every record of the range, in the file's order."""
    last_offset: int | None = None
    partition = partition_columns(source, read_range.url)
    try:
        for last_offset, record in READERS[source.format](source, read_range):
            if partition and isinstance(record, dict):
                record = partition | record
            yield _to_result(source, read_range.url, last_offset, record)
    except Exception as error:
        if not is_damage_error(error):
            raise
        # Nothing after the damage can be decompressed, so one quarantined record stands for the rest of the file.
        scope = "from here on" if last_offset is None else "after the record at this offset"
        offset = read_range.start if last_offset is None else last_offset
        yield Quarantined(source.name, read_range.url, offset, f"damaged file, unreadable {scope}: {error}")


def read_documents_at(source: Source, url: str, offsets: Collection[int]) -> Iterator[Document]:
    """Yield the documents at the given offsets of one file (`Document.offset`), in the file's order."""
    ranges = [whole_file(0, url)]
    if source.format == "jsonl" and _can_start_within_file(source, url):
        # A range yields the records that start in it, so a range of one byte yields the record at this offset.
        ranges = [ReadRange(0, url, start=offset, stop=offset + 1, num_bytes=0) for offset in sorted(offsets)]
    for read_range in ranges:
        for record in read_records(source, read_range):
            if isinstance(record, Document) and record.offset in offsets:
                yield record


def _to_result(
    source: Source, file: str, offset: int, record: dict[str, Any] | BadRecord | NotADocument
) -> Document | Quarantined | SkippedRecord:
    """Return what `read_records` yields for a record that a reader has yielded."""
    if isinstance(record, NotADocument):
        return SkippedRecord(source.name, file, offset, str(record))
    try:
        if isinstance(record, BadRecord):
            raise record
        return document_from_record(source, record, file, offset)
    except BadRecord as bad:
        return Quarantined(source.name, file, offset, str(bad))


def check_sources(sources: list[Source]) -> None:
    """Raises ValueError for a mistake that can be found from the fields of the sources and their first records."""
    if not sources:
        raise ValueError("sources: the list is empty; it needs at least one source")
    names = [source.name for source in sources]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"sources: the name {name!r} may contain only letters, digits, '_', '.' and '-'")
        if names.count(name) > 1:
            raise ValueError(
                f"sources: the name {name!r} is used twice; names must be unique, so rename one of the two sources"
            )
    for source in sources:
        check_source(source)


def check_paths(sources: list[Source]) -> None:
    """Raises ValueError if the path of a source is neither a text nor a list of different texts."""
    for source in sources:
        if not source.paths or not all(isinstance(path, str) and path for path in source.paths):
            raise ValueError(f"sources.{source.name}.path: {source.path!r} must be a path or a list of paths")
        if len(set(source.paths)) < len(source.paths):
            raise ValueError(f"sources.{source.name}.path: {source.path!r} names a path twice; remove one of them")


def check_source(source: Source) -> None:
    """Raises ValueError if fields contradict each other, if no file matches the path, or if a named column is missing.

    Columns are looked up in the first records of the first files.
    """
    location = f"sources.{source.name}"
    _check_fields(location, source)
    urls = [url for url, _ in source_files(source)]
    _check_not_utf8(location, source, urls[0])
    if source.format in _FORMATS_WITHOUT_COLUMNS:
        for column in source.metadata:
            if lacking := next((url for url in urls if column not in partition_columns(source, url)), None):
                kind = _FORMATS_WITHOUT_COLUMNS[source.format]
                raise ValueError(
                    f"{location}.metadata: {kind} file has no columns but those of folders NAME=VALUE in its path, and "
                    f"{lacking} is in no folder {column}=…; remove the field or set another format"
                )
        if source.format == "text" and (label := _likely_encoding(source, urls[0])):
            log.warning("%s: %s is not in UTF-8; set encoding: %s if that is right", location, urls[0], label)
        return
    if source.format == "parquet":
        _check_schema(location, source, urls[:_PROBED_FILES])
    records, first_error = _probe_records(source, urls[:_PROBED_FILES])
    if not records:
        reason = f" ({first_error})" if first_error else ""
        if label := _likely_encoding(source, urls[0]):
            reason += f"; the file is not in UTF-8; set encoding: {label} if that is right"
        raise ValueError(
            f"{location}: no readable {source.format} record at the start of {urls[0]}; is the format right?{reason}"
        )
    _check_unique_ids(location, source, records)
    for column in column_paths(source):
        # A header that none of the first records has may still occur in later records.
        may_be_missing = source.format == "warc" and column.startswith(("headers.", "http."))
        if not may_be_missing and all(column_value(record, column) is None for record in records):
            _raise_missing_column(location, column, records, "in none of the first records of this source")


def _check_fields(location: str, source: Source) -> None:
    """Raises ValueError for a field that the source's format would ignore, or for a value out of its range."""
    if not 0 < source.fraction <= 1:
        raise ValueError(f"{location}.fraction: {source.fraction} must be above 0 and at most 1")
    if source.format in _FORMATS_WITHOUT_COLUMNS:
        ignored = {"text": source.text != "text", "id": source.id is not None}
        for name in [name for name, is_set in ignored.items() if is_set]:
            kind = _FORMATS_WITHOUT_COLUMNS[source.format]
            raise ValueError(f"{location}.{name}: {kind} file has no columns; remove the field or set another format")
    if source.format == "warc" and source.text != "text":
        raise ValueError(
            f"{location}.text: {source.text!r} cannot be chosen, because the text of a WARC record is always its HTML "
            "page; remove the field"
        )
    if source.encoding is not None:
        check_encoding(f"{location}.encoding", source.encoding)
        if source.format == "warc":
            raise ValueError(f"{location}.encoding: the pages of a WARC file say their encoding themselves; remove it")
    for name, format, is_set in (
        ("error_pages", "warc", source.error_pages),
        ("split", "text", source.split is not None),
        ("delimiter", "csv", source.delimiter != ","),
        ("quote", "csv", source.quote != '"'),
    ):
        if is_set and source.format != format:
            raise ValueError(
                f"{location}.{name}: this field is only for format {format}, not {source.format}; remove it"
            )
    if source.split is not None:
        _check_split(location, source.split)
    if source.quote is not None and (len(source.quote) != 1 or source.quote in f"{source.delimiter} \r\n"):
        raise ValueError(
            f"{location}.quote: {source.quote!r} must be one character other than the delimiter, a space and a line "
            "end, or null for files without quoted fields"
        )
    if len(source.delimiter) != 1 or source.delimiter in '"\r\n':
        raise ValueError(
            f"{location}.delimiter: {source.delimiter!r} must be one character that is neither a quote nor a line end"
        )


def _check_split(location: str, split: str) -> None:
    """Raises ValueError if `split` is not a regular expression, or if it matches everywhere."""
    try:
        matches_empty = re.compile(split.encode()).fullmatch(b"") is not None
    except re.error as error:
        raise ValueError(f"{location}.split: {split!r} is not a valid regular expression ({error})") from error
    if matches_empty:
        raise ValueError(
            f"{location}.split: {split!r} matches the empty string, so it would split the text at every character; "
            "use an expression that matches only separators, such as \\n\\s*\\n"
        )


def _check_schema(location: str, source: Source, urls: list[str]) -> None:
    """Raises ValueError if the first readable Parquet file lacks a column that the source names."""
    for url in urls:
        if metadata := parquet_metadata(url):
            schema = metadata.schema.to_arrow_schema()
            names = schema.names
            if source.encoding is not None and not reads_bytes(source, schema):
                raise ValueError(
                    f"{location}.encoding: this field is for columns of bytes, but the columns that the source names "
                    f"are strings in {url}, which are always UTF-8 in Parquet; remove it"
                )
            present = {*names, *partition_columns(source, url)}
            for column in column_paths(source):
                if column not in present and column.partition(".")[0].rstrip("[]") not in present:
                    _raise_missing_column(location, column, [dict.fromkeys(names)], f"not in the schema of {url}")
            return


def _check_unique_ids(location: str, source: Source, records: list[dict[str, Any]]) -> None:
    """Raises ValueError if three of the first records have one id and different texts. Warns of two.

    The steps might drop all of them but one. But an id column that repeats so often in the first records is a mistake.
    The run checks the ids of all documents that it keeps (`data.corpus.unique_ids`).
    """
    if source.id is None:
        return
    texts: dict[str, set[str]] = {}
    for record in records:
        id, text = column_value(record, source.id), column_value(record, source.text)
        if isinstance(id, str | int) and id != "":
            texts.setdefault(str(id), set()).add(json.dumps(text, default=str))
    id = max(texts, key=lambda id: len(texts[id]), default="")
    if len(texts.get(id, ())) < 2:
        return
    message = (
        f"{location}.id: the column {source.id!r} does not identify a document: the first records have "
        f"{len(texts[id])} different texts with the id {id!r}; name a column with unique values, or remove the field, "
        "so that ids are hashes of the texts"
    )
    if len(texts[id]) > 2:
        raise ValueError(message)
    log.warning("%s; if the corpus keeps both, the run ends with an error", message)


def _check_not_utf8(location: str, source: Source, url: str) -> None:
    """Raises ValueError if the file is UTF-8 although the source names another encoding.

    Every byte means something in most encodings, so the texts would become mojibake without an error.
    """
    if source.encoding is None or source.format in ("parquet", "warc") or file_encoding(source) == "utf-8":
        return
    head = first_block(read_blocks, url)
    num_others = count_beyond_ascii(head.decode(errors="ignore"))
    if num_others >= _MIN_UTF8_CHARACTERS and is_utf8_or_cut(head) and not head.startswith(codecs.BOM_UTF8):
        raise ValueError(
            f"{location}.encoding: {source.encoding}, but {url} is UTF-8: its first {num_others:,} characters beyond "
            "ASCII are valid in it; remove the field, or put files of different encodings into different sources"
        )


def _likely_encoding(source: Source, url: str) -> str | None:
    """Return the encoding that a file of lines or plain text seems to have, judged by its first block.

    Returns None if that block is UTF-8, if the source names an encoding, and for other formats.
    """
    if source.encoding is not None or source.format not in ("text", "jsonl", "json", "csv"):
        return None
    head = first_block(read_utf8_blocks, url)
    return None if is_utf8_or_cut(head) else detected_encoding(head)


def _probe_records(source: Source, urls: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the first readable records, and the reason why the first unreadable record could not be read.

    The reason is an empty string if all records were readable.
    """
    errors: list[str] = []
    readable_records = chain.from_iterable(_probe_file(source, url, errors) for url in urls)
    records = list(islice(readable_records, PROBED_RECORDS))
    return records, errors[0] if errors else ""


def _probe_file(source: Source, url: str, errors: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the readable records of a file. Appends the reasons of unreadable records to `errors`.

    Stops at damage without raising an error, because a run sends the rest of a damaged file to quarantine.
    """
    partition = partition_columns(source, url)
    try:
        for _, record in READERS[source.format](source, whole_file(0, url)):
            if isinstance(record, dict):
                yield partition | record
            elif isinstance(record, BadRecord):
                errors.append(str(record))
    except Exception as error:
        if not is_damage_error(error):
            raise
        errors.append(f"damaged file: {error}")


def _raise_missing_column(location: str, column: str, records: list[dict[str, Any]], where: str) -> None:
    """Raises ValueError that suggests the most similar column that the records have.

    `where` says where the column is missing, such as `not in the schema of a.parquet`.
    """
    present = list(dict.fromkeys(name for record in records for name in record))
    similar = difflib.get_close_matches(column, present, n=1)
    hint = f"; did you mean {similar[0]!r}?" if similar else ""
    raise ValueError(f"{location}: column {column!r} is {where}{hint} (present: {', '.join(present)})")
