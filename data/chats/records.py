"""Readers of the files with chats, preferences and prompts.

A file is JSONL, with one record on each line, or a JSON array of records. `layouts.py` has the layouts of the records.
A record that cannot be used is a `BadRecord` with the reason. It does not stop a run: it is put into quarantine and
counted (`counts.py`).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from data.chats.layouts import PromptRecord, parse_prompt
from data.document import BadRecord, Source, whole_file
from data.sources.compression import first_block, is_damage_error, read_utf8_blocks
from data.sources.json_records import json_records, parse_object, range_lines

Parsed = TypeVar("Parsed")

_JSON_SOURCE = Source(name="records", path="", format="json")


class NumberedRecord(NamedTuple):
    number: int
    """Number of the line, or of the record in a JSON array. The first one has the number 1."""
    record: dict[str, Any] | BadRecord


class LocatedRecord(NamedTuple):
    location: str
    """File and number of the record (`NumberedRecord.number`), as `file:number`."""
    record: dict[str, Any] | BadRecord


class RangeEnd(NamedTuple):
    """The last item of `read_numbered`."""

    num_lines: int
    """Number of lines of the range, or of records in a JSON array."""


def read_numbered(url: str, start: int = 0, stop: int = -1) -> Iterator[NumberedRecord | RangeEnd]:
    """Yield every record of a file, or of the lines that begin between the bytes `start` and `stop`. -1 is the end.

    Blank lines are skipped. Lines are counted from the start of the range. The last item is a `RangeEnd`. Raises
    ValueError for a file that is damaged.
    """
    number = 0
    try:
        if start == 0 and is_array(url):
            for number, (_, record) in enumerate(json_records(_JSON_SOURCE, whole_file(0, url)), start=1):
                yield NumberedRecord(number, _to_record(record))
        else:
            for number, (_, line) in enumerate(range_lines(url, start, stop), start=1):
                if isinstance(line, BadRecord):
                    yield NumberedRecord(number, line)
                elif line.strip():
                    yield NumberedRecord(number, parse_object(line, "the line must be a JSON object"))
    except Exception as error:
        if not is_damage_error(error):
            raise
        raise ValueError(
            f"{url}: the file cannot be read after line {number} ({error}); if it is damaged, download it again"
        ) from error
    yield RangeEnd(number)


def _to_record(record: Any) -> dict[str, Any] | BadRecord:
    return record if isinstance(record, dict | BadRecord) else BadRecord("a record must be a JSON object")


def is_array(url: str) -> bool:
    """Whether a file is a JSON array of records. Otherwise it is read as JSONL."""
    # Nothing of a file that is damaged here. The error is raised when the lines are read.
    head = first_block(read_utf8_blocks, url).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"[") and not _is_complete_line(head)


def _is_complete_line(head: bytes) -> bool:
    """Whether a bracket begins a line that is complete JSON, and other lines follow it. Then the file is JSONL."""
    line, end, following = head.partition(b"\n")
    if not end or not following.strip():
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def read_located(urls: Iterable[str], *, max_per_file: int | None = None) -> Iterator[LocatedRecord]:
    """Yield every record of the files with its location, or only the first `max_per_file` records of each file.

    The files can be on any file system of fsspec. Raises ValueError if a file is damaged, or if the files contain no
    record at all.
    """
    num_records, read_urls = 0, []
    for url in urls:
        read_urls.append(url)
        for item in islice(read_numbered(url), max_per_file):
            if isinstance(item, NumberedRecord):
                num_records += 1
                yield LocatedRecord(f"{url}:{item.number}", item.record)
    if not num_records:
        raise ValueError(f"{', '.join(read_urls)}: no record found; expected one JSON object per line")


def read_records(urls: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`LocatedRecord.location`, record) for every record of the files.

    Raises ValueError if a record cannot be read, with its location and the reason, and the errors of `read_located`.
    """
    for location, record in read_located(urls):
        if isinstance(record, BadRecord):
            raise ValueError(f"{location}: {record}")
        yield location, record


def parse_or_bad(parse: Callable[[dict[str, Any]], Parsed], record: dict[str, Any] | BadRecord) -> Parsed | BadRecord:
    """Return what `parse` returns for a record. Returns a BadRecord instead of raising it."""
    if isinstance(record, BadRecord):
        return record
    try:
        return parse(record)
    except BadRecord as bad:
        return bad


def read_prompts(urls: Iterable[str]) -> Iterator[PromptRecord]:
    """Yield every prompt of the files.

    Raises ValueError for a malformed prompt and for one whose last message is neither the user's nor the result of
    a tool. The message names the file, the line and the problem. Also raises the errors of `read_located`.
    """
    for location, record in read_records(urls):
        try:
            yield parse_prompt(location, record)
        except BadRecord as bad:
            raise ValueError(f"{location}: {bad}") from bad
