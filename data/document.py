"""Documents, the units of text in the whole pipeline, and the sources from which they are read.

A document's id is `SOURCE/KEY`. SOURCE is the name of the source. If the source names an id column, KEY is the value of
this column, and otherwise a hash of the text. So the ids do not change when files are moved, renamed, split or
reordered. Everything that is selected by a hash of the id, such as the held-out documents, then stays the same as well.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote

MAX_RECORD_BYTES = 128 << 20
"""Maximum number of bytes of a record. A longer record is put into quarantine without being read into memory as a
whole. In a Parquet file, only the text of a record has this limit, and the text is read before its length is checked.
"""

MAX_NESTING = 100
"""Maximum depth of nested objects and lists in the columns that a source uses. A record with a deeper value is put into
quarantine, because Python's JSON module fails for very deep values."""


class BadRecord(Exception):
    """Raised or returned for a record that cannot be read and is put into quarantine. The message is the reason."""


@dataclass(frozen=True)
class Document:
    id: str
    text: str
    source: str
    """Name of the source."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Values of the columns in `Source.metadata`, and the entries that cleaning steps add, by name."""
    file: str = field(default="", compare=False)
    """URL of the file that contains the document."""
    offset: int = field(default=0, compare=False)
    """Position of the document's record in the file, as defined by `Quarantined.offset`."""
    content_type: str = field(default="", compare=False)
    """Media type of the text as it was read: `text/html` or `application/xhtml+xml` for the markup of a page,
    `text/plain` for plain text. Empty if neither the format nor the record says it, as in a JSONL file."""


class Quarantined(NamedTuple):
    """An entry of the quarantine, which lists the records that could not be read."""

    source: str
    file: str
    offset: int
    """Position of the record in the file: a byte offset in text, HTML, JSONL, CSV and WARC files, and the number of
    records before it in JSON and Parquet files.

    Bytes are counted in the decompressed content. In a UTF-16 file they are counted as if the file were UTF-8.
    """
    reason: str
    """Why the record could not be read."""


class SkippedRecord(NamedTuple):
    """A record that is not meant to become a document, such as a request or a picture in a WARC file.

    A corpus counts such records separately, and not among the records that it read (`SourceCounts.others`).
    """

    source: str
    file: str
    offset: int
    kind: str
    """Kind of the record, such as `warcinfo` or `request`. A response that is not HTML is, for example,
    `response image/png`."""


if TYPE_CHECKING:
    OneOrMany = str | list[str]
else:
    OneOrMany = Any  # omegaconf knows no union with a list; the metadata of the field has the type


@dataclass(frozen=True, kw_only=True)
class Source:
    name: str
    """Short name of the source. Counts are listed by it, and the ids of its documents start with it."""
    path: OneOrMany = field(metadata={"source": True, "type": str | list[str]})
    """The files: a path, a glob or an fsspec URL, or a list of these. URLs can be chained:
    `zip://folder/*.jsonl::file://archive.whl`. Brackets in a name that exists, such as `[2024]/a.jsonl`, are part of
    the name. A folder `NAME=VALUE` in the path gives its files the column NAME, as in tables that Hive or Spark
    write, unless they have such a column themselves."""
    format: Literal["text", "jsonl", "json", "csv", "parquet", "html", "warc"]
    """Format of the files. Files that end with `.gz`, `.bz2`, `.xz`, `.lzma`, `.zst` or `.zip` are decompressed. A zip
    file must contain a single file.

    A `jsonl` file has one record per line. A `json` file is an array or an object of records. A `csv` file begins with
    a row of column names. `text` and `html` files have no columns. The text of an `html` document is the markup of the
    page, from which the step `extract_html` extracts the plain text. A `warc` file contains the responses of a web
    crawl. Its HTML pages become documents, also with their markup as text, and have the columns `url`, `date`, `id` (of
    the WARC record), `status`, `content_type`, `headers.NAME` (headers of the WARC record) and `http.NAME` (HTTP
    headers), with NAME in lower case. A page without a Content-Type is recognized by its first bytes, as in a browser.
    Records of the type `resource` have no `status` and no `http.NAME`. The same holds for those of the type
    `conversion`, which a WET file consists of. Their plain text becomes a document without any extraction. All other
    records are counted by their kind.
    """
    text: str = "text"
    """Column that contains the text. `a.b` is the field `b` of the object `a`. `a[].b` is the field `b` of every object
    of the list `a`, and these strings are joined with line breaks."""
    id: str | None = None
    """Column that identifies a record. Without it, the id is a hash of the text. For a `json` file that is an object of
    records, `$key` is the record's key."""
    metadata: list[str] = field(default_factory=list)
    """Columns to keep as metadata of the documents."""
    split: str | None = None
    """For `text` files, a regular expression that matches the separator between two documents. For example,
    `\\n\\s*\\n` matches a blank line. Without it, a file is one document. A separator can be at most 64 KiB long.
    """
    delimiter: str = ","
    """For `csv` files, the character between two fields. Use `"\\t"` for TSV files."""
    quote: str | None = '"'
    """For `csv` files, the character around fields that contain delimiters or line ends. Null means that the files have
    no quoted fields and every quote is part of the text. By default, a quote that would merge several rows is taken as
    part of the text too, as far as the rows show it."""
    encoding: str | None = None
    """Character encoding of the files, by a label that browsers know, such as `windows-1252`, `shift_jis` or `gbk`. By
    default, `text`, `jsonl`, `json` and `csv` files are UTF-8, or UTF-16 if they begin with a byte order mark. A byte
    order mark always has priority. In a `parquet` file, it is the encoding of columns of bytes, by default UTF-8. For
    `html` files, it has priority over what a page declares. By default, a page is decoded as a browser does it, and its
    encoding is detected if it declares none. The pages of `warc` files say their encoding themselves."""
    error_pages: bool = False
    """For `warc` files, also read the pages of responses with another HTTP status than 200 to 299, such as error pages
    and redirects. By default they are counted by their status and do not become documents."""
    fraction: float = 1.0
    """Share of the source's documents to use. A hash of the id selects them."""

    @property
    def paths(self) -> list[str]:
        """The paths as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)


_HIVE_FOLDER = re.compile(r"([^=/]+)=([^/]*)")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_CONTENT_TYPES = {"text": "text/plain", "html": "text/html"}
"""`Document.content_type` for the formats whose records all have the same. A WARC record says it itself."""


class ReadRange(NamedTuple):
    """A range of a file that one task reads.

    A range consists of bytes in a JSONL file and of row groups in a Parquet file. Files of other formats are one range.
    """

    source: int
    """Index of the file's source in the list of sources."""
    url: str
    start: int
    """Index of the first byte or row group."""
    stop: int
    """Index after the last byte or row group, or -1 for the end of the file. May be beyond the end of the file."""
    num_bytes: int
    """Size of the range on disk, for row groups their share of the file. The sizes of a file's ranges add up to the
    size of the file. Ranges are distributed to tasks by their sizes."""


def whole_file(source: int, url: str, num_bytes: int = 0) -> ReadRange:
    """Return the range that is a whole file of `num_bytes` bytes. The size may be 0 if no task is planned with it."""
    return ReadRange(source, url, start=0, stop=-1, num_bytes=num_bytes)


def is_too_long(num_bytes: int) -> bool:
    """Return whether a record of `num_bytes` bytes is too long to be read."""
    return num_bytes > MAX_RECORD_BYTES


def too_long_error() -> BadRecord:
    """Return the error for a record that is too long."""
    return BadRecord(f"record longer than {MAX_RECORD_BYTES} bytes")


def content_id(source: str, text: str) -> str:
    """Return the id of a document whose source has no id column: the source's name and a 128-bit hash of the text."""
    return f"{source}/{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def unit_hash(value: str, purpose: str) -> float:
    """Return a pseudo-random number in [0, 1) that depends only on the value and the purpose.

    The numbers of one value for different purposes are independent.
    """
    digest = hashlib.blake2b(value.encode(), digest_size=8, person=purpose.encode()).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def partition_columns(source: Source, url: str) -> dict[str, str | None]:
    """Return the columns that the folders `NAME=VALUE` in a file's path give it, if the source names them."""
    folders = [folder for part in url.split("::")[::-1] for folder in part.split("/")[:-1]]
    columns = {match[1]: unquote(match[2]) for folder in folders if (match := _HIVE_FOLDER.fullmatch(folder))}
    named = set(column_paths(source))
    return {name: None if value == _HIVE_NULL else value for name, value in columns.items() if name in named}


def column_paths(source: Source) -> list[str]:
    """Return the paths of all columns that the source's settings name: the text, the id and the metadata."""
    return [source.text, *([source.id] if source.id else []), *source.metadata]


def document_from_record(source: Source, record: dict[str, Any], file: str = "", offset: int = 0) -> Document:
    """Return the document in a record.

    Raises BadRecord if the text or the id is missing or has a wrong type, if the text is too long, or if a value cannot
    be stored. A missing value of a metadata column becomes None.
    """
    text = _to_string(source.text, _checked_value(source.text, column_value(record, source.text)))
    # The number of characters is at most the number of bytes, and is known without encoding the text.
    if is_too_long(len(text)):
        raise too_long_error()
    document_id = content_id(source.name, text) if source.id is None else _id_from_column(source, record)
    metadata = {column: _checked_value(column, column_value(record, column)) for column in source.metadata}
    content_type = record["content_type"] if source.format == "warc" else _CONTENT_TYPES.get(source.format, "")
    return Document(document_id, text, source.name, metadata, file, offset, content_type)


def _checked_value(column: str, value: Any) -> Any:
    """Return the value. Raises BadRecord if it cannot be stored: if it is nested too deep or is not valid Unicode."""
    if _is_too_deep(value):
        raise BadRecord(f"{column}: nested deeper than {MAX_NESTING}")
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"{column}: lone surrogate, no valid Unicode") from error
    return value


def _is_too_deep(value: Any) -> bool:
    items_at_depth = [value]
    for _ in range(MAX_NESTING + 1):
        containers = [item for item in items_at_depth if isinstance(item, dict | list)]
        if not containers:
            return False
        items_at_depth = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return True


def _id_from_column(source: Source, record: dict[str, Any]) -> str:
    assert source.id is not None
    value = _checked_value(source.id, column_value(record, source.id))
    if value is None or value == "":
        raise BadRecord(f"{source.id}: missing value")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise BadRecord(f"{source.id}: an id must be a string or an integer, not {type(value).__name__}")
    return f"{source.name}/{value}"


def column_value(record: Any, column: str) -> Any:
    """Return the value at a column path such as `title`, `meta.url` or `messages[].text`, or None if there is no value.

    For a path with brackets, the result is a list. It is None if a value before brackets is not a list. If the record
    has a column whose name is the complete path, including dots and brackets, the value of this column is returned.
    """
    if isinstance(record, dict) and column in record:
        return record[column]
    first, _, remaining_path = column.partition(".")
    name = first.rstrip("[]")
    value = record.get(name) if isinstance(record, dict) else None
    num_brackets = first.count("[]")
    if not num_brackets:
        return value if not remaining_path or value is None else column_value(value, remaining_path)
    values: list[Any] = [value]
    for _ in range(num_brackets):
        if not all(isinstance(items, list) for items in values):
            return None
        values = list(chain.from_iterable(values))
    return [column_value(item, remaining_path) for item in values] if remaining_path else values


def _to_string(column: str, value: Any) -> str:
    """Return the value if it is a string, or the strings of a list joined with line breaks.

    Raises BadRecord for other values.
    """
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
