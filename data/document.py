"""Documents, which all of the pipeline works on, and the sources that they are read from.

A document's id comes from its source's name and from its content (or from a column that the source names), so that
moving, renaming, splitting or reordering files changes no id, and with it no split and no sample.
"""

import hashlib
import json
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

MAX_RECORD_BYTES = 128 << 20
"""A longer record is quarantined, and skipped without being held in memory."""

MAX_NESTING = 100
"""How deep objects and lists in metadata may be nested; Python's JSON fails at some depth of its own."""


class BadRecord(Exception):
    """A record that goes to quarantine; the message is the reason."""


@dataclass(frozen=True)
class Document:
    id: str
    text: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)
    file: str = field(default="", compare=False)
    """URL of the file it came from."""
    offset: int = field(default=0, compare=False)
    """Position in the file, counted as in `Quarantined`."""


class Quarantined(NamedTuple):
    """A record that could not be read: its position and the reason."""

    source: str
    file: str
    offset: int
    """Byte offset in text, HTML, JSONL, CSV and WARC files, record number in JSON and Parquet files.

    Bytes are those of the decompressed content; of a UTF-16 file, those it would have in UTF-8.
    """
    reason: str


class SkippedRecord(NamedTuple):
    """A record that should hold no document, such as a WARC file's requests and pictures; the account leaves it out."""

    source: str
    file: str
    offset: int
    kind: str
    """`warcinfo`, `request`, …; for a response without HTML `response image/png`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    name: str
    """Short name; counts are kept by it and document ids start with it."""
    path: str = field(metadata={"source": True})
    """File or glob on any fsspec URL, chained ones too: `zip://folder/*.jsonl::file://archive.whl`."""
    format: Literal["text", "jsonl", "json", "csv", "parquet", "html", "warc"]
    """What the files hold; a last `.gz`, `.bz2`, `.xz`, `.lzma`, `.zst` or `.zip` (of one file) is looked through.

    `jsonl` is one record a line; `json` one array (or object) of records a file; `csv` begins with a row of column
    names; `text` and `html` have no columns; a document of `html` is the page's markup, for `extract_html` to read.
    `warc` gives the HTML pages among a crawl's answers, likewise as markup, with the columns `url`, `date`, `id` (of
    the WARC record), `status`, `content_type`, `headers.NAME` (of the record) and `http.NAME`, names in small letters.
    """
    text: str = "text"
    """Column of the text. `a.b` goes into a record, `a[].b` through a list, whose strings become lines."""
    id: str | None = None
    """Column that identifies a record; without one the id is a hash of the text. `json` objects offer their `$key`."""
    metadata: list[str] = field(default_factory=list)
    """Columns to keep beside the text."""
    split: str | None = None
    """For `text`: a regular expression between documents (`\\n\\s*\\n`: a blank line); without it a file is one.

    A separator may be 64 KiB long.
    """
    delimiter: str = ","
    """For `csv`: the character between two fields (`"\\t"` for TSV)."""
    fraction: float = 1.0
    """Part of the source's documents to take, chosen by a hash of the id."""


class ReadRange(NamedTuple):
    """A range of one file: bytes of a JSONL file, row groups of a Parquet file, of any other format the whole file."""

    source: int
    """Position in the list of sources."""
    url: str
    start: int
    """First byte or row group."""
    stop: int
    """The byte or row group after the last; -1 is the end of the file."""
    num_bytes: int
    """Size on disk, by which ranges are put into tasks."""


def is_too_long(size: int) -> bool:
    """Whether a record of so many bytes is quarantined."""
    return size > MAX_RECORD_BYTES


def too_long_error() -> BadRecord:
    """The reason why it is."""
    return BadRecord(f"record longer than {MAX_RECORD_BYTES} bytes")


def content_id(source: str, text: str) -> str:
    """Id of a document without an id of its own: its source and 128 bits of its text's hash."""
    return f"{source}/{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def unit_hash(value: str, purpose: str) -> float:
    """A pseudo-random number in [0, 1), a function of `value`; different purposes give independent numbers."""
    digest = hashlib.blake2b(value.encode(), digest_size=8, person=purpose.encode()).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def column_paths(source: Source) -> list[str]:
    """The columns that a source names."""
    return [source.text, *([source.id] if source.id else []), *source.metadata]


def document_from_record(source: Source, record: dict[str, Any], file: str = "", offset: int = 0) -> Document:
    """The document in a record. Raises `BadRecord` with the reason when a value is missing or of a wrong type."""
    text = _string(source.text, _unicode(source.text, column_value(record, source.text)))
    if is_too_long(len(text)):
        raise too_long_error()
    document_id = content_id(source.name, text) if source.id is None else _named_id(source, record)
    metadata = {column: _unicode(column, column_value(record, column)) for column in source.metadata}
    return Document(document_id, text, source.name, metadata, file, offset)


def _unicode(column: str, value: Any) -> Any:
    """The value. Raises `BadRecord` when it holds a lone surrogate or is nested too deep: no file could hold it."""
    if _too_deep(value):
        raise BadRecord(f"{column}: nested deeper than {MAX_NESTING}")
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"{column}: lone surrogate, no valid Unicode") from error
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_NESTING + 1):
        holders = [item for item in level if isinstance(item, dict | list)]
        if not holders:
            return False
        level = [child for item in holders for child in (item.values() if isinstance(item, dict) else item)]
    return True


def _named_id(source: Source, record: dict[str, Any]) -> str:
    assert source.id is not None
    value = _unicode(source.id, column_value(record, source.id))
    if value is None or value == "":
        raise BadRecord(f"{source.id}: missing value")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise BadRecord(f"{source.id}: an id must be a string or an integer, not {type(value).__name__}")
    return f"{source.name}/{value}"


def column_value(record: Any, column: str) -> Any:
    """The value at a column path such as `title`, `meta.url` or `messages[].text` (a flat list); None without one.

    A column of exactly this name comes first; then dots and brackets in the name are read as a path.
    """
    if isinstance(record, dict) and column in record:
        return record[column]
    head, _, rest = column.partition(".")
    name = head.rstrip("[]")
    value = record.get(name) if isinstance(record, dict) else None
    depth = head.count("[]")
    if not depth:
        return column_value(value, rest) if rest and value is not None else value if not rest else None
    values: list[Any] = [value]
    for _ in range(depth):
        if not all(isinstance(items, list) for items in values):
            return None
        values = list(chain.from_iterable(values))
    return [column_value(item, rest) for item in values] if rest else values


def _string(column: str, value: Any) -> str:
    if value is None:
        raise BadRecord(f"{column}: missing value")
    if isinstance(value, list):
        wrong = next((item for item in value if not isinstance(item, str)), None)
        if wrong is not None or any(item is None for item in value):
            raise BadRecord(f"{column}: every item must be a string, found {type(wrong).__name__}")
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadRecord(f"{column}: must be a string, not {type(value).__name__}")
    return value
