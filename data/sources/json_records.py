"""JSON: one record on each line, or a file that is one array or object of records."""

import json
import re
from collections.abc import Iterator
from typing import Any

from data.document import BadRecord, ReadRange, Source, is_too_long, too_long_error
from data.sources.compression import read_utf8_blocks
from data.sources.records import Buffer, Records, decode_utf8, split_lines

_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # up to the quote that ends it
_IN_RECORD = re.compile(rb'[^"\[\]{}]*+')
_BETWEEN_RECORDS = re.compile(rb'[^"\[\]{},]*+')
_LEADING_BLANKS = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'


def jsonl_records(source: Source, read_range: ReadRange) -> Records:
    """The records of the lines that begin in the range; a line that begins before it belongs to the range before."""
    before = max(read_range.start - 1, 0)
    numbered = split_lines(read_utf8_blocks(read_range.url, before), before, read_range.stop)
    if read_range.start > 0:
        next(numbered, None)
    for offset, line in numbered:
        if isinstance(line, BadRecord):
            yield offset, line
        elif line.strip():
            yield offset, parse_object(line, "a line must hold a JSON object")


def parse_object(raw: bytes, rule: str) -> dict[str, Any] | BadRecord:
    """The JSON object in the bytes, or the reason why there is none."""
    try:
        record = json.loads(decode_utf8(raw))
    except BadRecord as bad:
        return bad
    except RecursionError:
        return BadRecord("malformed JSON: nested too deep")
    except ValueError as error:
        return BadRecord(f"malformed JSON: {error}")
    return record if isinstance(record, dict) else BadRecord(f"{rule}, not {type(record).__name__}")


def json_records(source: Source, read_range: ReadRange) -> Records:
    """The items of an array, or the values of an object with their key as `$key`; the offset is their number."""
    rule = "a record must be a JSON object"
    buffer = Buffer(read_utf8_blocks(read_range.url))
    opening = _drop_first_character(buffer)
    if opening == "[":
        for index, raw in enumerate(_split_items(buffer)):
            yield index, raw if isinstance(raw, BadRecord) else parse_object(raw, rule)
    elif opening == "{":
        for index, raw in enumerate(_split_items(buffer)):
            member = raw if isinstance(raw, BadRecord) else parse_object(b"{%b}" % raw, rule)
            if isinstance(member, dict):
                (key, value), *_ = [*member.items(), ("", None)]
                member = {"$key": key, **value} if isinstance(value, dict) else BadRecord(rule)
            yield index, member
    elif opening:
        yield 0, BadRecord("malformed JSON: a file must hold an array or an object of records")


def _drop_first_character(buffer: Buffer) -> str:
    """Drop a byte order mark, blanks and the first character after them; return that character, "" at the end."""
    while buffer.more():
        end = _match_end(_LEADING_BLANKS, buffer, 0)
        if end < len(buffer.data):
            first = chr(buffer.data[end])
            buffer.drop(end + 1)
            return first
    return ""


def _match_end(pattern: re.Pattern[bytes], buffer: Buffer, position: int) -> int:
    match = pattern.match(buffer.data, position)
    assert match is not None, "patterns here match the empty string"
    return match.end()


def _split_items(buffer: Buffer) -> Iterator[bytes | BadRecord]:
    """The items between the commas of the array or object whose opening bracket was just dropped.

    Only brackets and quotes are looked at, so that one record at a time is held and parsed, and a malformed one costs
    no other as long as its brackets and quotes are balanced.
    """
    position = num_items = 0
    depth, in_string = 1, False
    skipped = 0  # bytes of an item that is too long to be held
    while True:
        pattern = _IN_STRING if in_string else _IN_RECORD if depth > 1 else _BETWEEN_RECORDS
        position = _match_end(pattern, buffer, position)
        if position == len(buffer.data) or (in_string and buffer.data[position] == _BACKSLASH):
            if is_too_long(skipped + position):
                skipped += position
                buffer.drop(position)
                position = 0
            if not buffer.more():
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
            item = bytes(buffer.data[: position - 1]) if not is_too_long(skipped + position) else too_long_error()
            buffer.drop(position)
            if depth or num_items or isinstance(item, BadRecord) or item.strip():  # an empty array has no item
                yield item
            if depth == 0:
                break
            num_items += 1
            position = skipped = 0
    if _has_text_left(buffer):
        yield BadRecord(
            "malformed JSON: more text after the end of the array or object (one record a line is format jsonl)"
        )


def _has_text_left(buffer: Buffer) -> bool:
    """Whether anything but blanks follows."""
    while not buffer.data.strip():
        buffer.drop(len(buffer.data))
        if not buffer.more():
            return False
    return True
