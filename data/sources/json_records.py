"""Readers of the formats `jsonl` and `json`.

A `jsonl` file has one record on each line. A `json` file is one array of records, or one object whose values are
records.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from data.document import BadRecord, ReadRange, Source, is_too_long, too_long_error
from data.sources.compression import read_utf8_blocks
from data.sources.encodings import file_encoding
from data.sources.records import Buffer, Records, decode_utf8, split_lines

# What `_split_items` passes over at once: everything up to the next byte that can begin or end a string or an item, or
# that is a bracket.
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # up to the quote that ends the string
_IN_RECORD = re.compile(rb'[^"\[\]{}]*+')
_BETWEEN_RECORDS = re.compile(rb'[^"\[\]{},]*+')
_LEADING_BLANKS = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'


def jsonl_records(source: Source, read_range: ReadRange) -> Records:
    """Yield a record for each line that begins in the range, at the line's byte offset. Blank lines are skipped."""
    encoding = file_encoding(source)
    for offset, line in range_lines(read_range.url, read_range.start, read_range.stop, encoding=encoding):
        if isinstance(line, BadRecord):
            yield offset, line
        elif line.strip():
            yield offset, parse_object(line, "a line must be a JSON object", encoding)


def range_lines(url: str, start: int, stop: int, *, encoding: str = "utf-8") -> Iterator[tuple[int, bytes | BadRecord]]:
    """Yield (position in the file, line) of every line that begins between the bytes `start` and `stop`; -1 is the end.

    A BadRecord takes the place of a line that is too long.
    """
    # Reading begins one byte early, and the line there is left to the previous range. If that byte is a line end, it is
    # the whole line, so that a line that begins exactly at the start of the range is not lost.
    read_from = max(start - 1, 0)
    lines = split_lines(read_utf8_blocks(url, read_from, encoding=encoding), read_from, stop)
    if start > 0:
        next(lines, None)
    yield from lines


def parse_object(raw: bytes, rule: str, encoding: str = "utf-8") -> dict[str, Any] | BadRecord:
    """Parse bytes that must be a JSON object. Returns a BadRecord with the reason if they are not.

    `rule` is the message for JSON that is not an object. `encoding` is that of the file.
    """
    try:
        record = json.loads(decode_utf8(raw, encoding))
    except BadRecord as bad:
        return bad
    except RecursionError:
        return BadRecord("malformed JSON: nested too deep for Python's parser")
    except ValueError as error:
        return BadRecord(f"malformed JSON: {error}")
    return record if isinstance(record, dict) else BadRecord(f"{rule}, not {type(record).__name__}")


def json_records(source: Source, read_range: ReadRange) -> Records:
    """Yield a record for each item of the file's array or for each value of its object.

    The offset is the number of records before it in the file. A record from an object has its key in the column `$key`.
    """
    rule = "a record must be a JSON object"
    encoding = file_encoding(source)
    buffer = Buffer(read_utf8_blocks(read_range.url, encoding=encoding))
    first_character = _drop_first_character(buffer)
    if first_character == "[":
        for index, raw in enumerate(_split_items(buffer)):
            yield index, raw if isinstance(raw, BadRecord) else parse_object(raw, rule, encoding)
    elif first_character == "{":
        for index, raw in enumerate(_split_items(buffer)):
            record = raw if isinstance(raw, BadRecord) else parse_object(b"{%b}" % raw, rule, encoding)
            if isinstance(record, dict):
                (key, value), *_ = [*record.items(), ("", None)]  # the last pair is for an item without a key
                record = {"$key": key, **value} if isinstance(value, dict) else BadRecord(rule)
            yield index, record
    elif first_character:
        yield 0, BadRecord("malformed JSON: a file must be an array or an object of records")


def _drop_first_character(buffer: Buffer) -> str:
    """Drop a byte order mark, white space and the next character. Returns that character, or "" in a blank file."""
    while buffer.read_block():
        end = _match_end(_LEADING_BLANKS, buffer, 0)
        if end < len(buffer.data):
            first = chr(buffer.data[end])
            buffer.drop(end + 1)
            return first
    return ""


def _match_end(pattern: re.Pattern[bytes], buffer: Buffer, position: int) -> int:
    """Return where the match that begins at `position` ends. The pattern must also match the empty string."""
    match = pattern.match(buffer.data, position)
    assert match is not None, "the patterns of this file match the empty string"
    return match.end()


def _split_items(buffer: Buffer) -> Iterator[bytes | BadRecord]:
    """Yield the bytes between the commas of the array or object whose opening bracket was just dropped.

    Only brackets, quotes and commas are looked at, and the caller parses each item by itself. So only one item is in
    memory at a time. A malformed item does not affect the items after it, as long as its brackets and quotes are
    balanced.
    """
    position = num_items = 0
    depth, in_string = 1, False
    num_skipped = 0  # bytes of the current item that were dropped because it is too long
    while True:
        pattern = _IN_STRING if in_string else _IN_RECORD if depth > 1 else _BETWEEN_RECORDS
        position = _match_end(pattern, buffer, position)
        if position == len(buffer.data) or (in_string and buffer.data[position] == _BACKSLASH):
            if is_too_long(num_skipped + position):
                num_skipped += position
                buffer.drop(position)
                position = 0
            if not buffer.read_block():
                yield BadRecord("malformed JSON: the file ends before its array or object does")
                return
            continue
        byte = buffer.data[position]
        if byte == _QUOTE:
            in_string = not in_string
        elif byte in b"[{":
            depth += 1
        elif byte in b"]}":
            depth -= 1
        position += 1
        if depth == 0 or (depth == 1 and not in_string and byte == _COMMA):
            item = bytes(buffer.data[: position - 1]) if not is_too_long(num_skipped + position) else too_long_error()
            buffer.drop(position)
            if depth or num_items or isinstance(item, BadRecord) or item.strip():  # an empty array has no item
                yield item
            if depth == 0:
                break
            num_items += 1
            position = num_skipped = 0
    if _has_text_left(buffer):
        yield BadRecord(
            "malformed JSON: more text after the end of the array or object "
            "(if the file has one record on each line, its format is jsonl)"
        )


def _has_text_left(buffer: Buffer) -> bool:
    """Whether anything except white space follows in the stream."""
    while not buffer.data.strip():
        buffer.drop(len(buffer.data))
        if not buffer.read_block():
            return False
    return True
