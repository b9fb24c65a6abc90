"""Text files, each one document or several with a separator between them; and HTML files, each one page."""

import re
from collections.abc import Iterator

from data.document import BadRecord, ReadRange, Source, is_too_long, too_long_error
from data.sources.charset import decode_html
from data.sources.compression import read_blocks, read_utf8_blocks
from data.sources.records import Buffer, Records, decode_utf8, join_blocks

MAX_SEPARATOR_BYTES = 64 << 10
"""The most bytes that a separator may span, with all that it looks at before and after itself."""


def text_records(source: Source, read_range: ReadRange) -> Records:
    content = read_utf8_blocks(read_range.url)
    if source.split is None:
        yield 0, _text_record(join_blocks(content))
        return
    for offset, part in _split_documents(Buffer(content), re.compile(source.split.encode())):
        yield offset, _text_record(part)


def html_records(source: Source, read_range: ReadRange) -> Records:
    raw = join_blocks(read_blocks(read_range.url))
    yield 0, raw if isinstance(raw, BadRecord) else {"text": decode_html(raw)}


def _text_record(raw: bytes | BadRecord) -> dict[str, str] | BadRecord:
    try:
        return raw if isinstance(raw, BadRecord) else {"text": decode_utf8(raw)}
    except BadRecord as bad:
        return bad


def _split_documents(buffer: Buffer, separator: re.Pattern[bytes]) -> Iterator[tuple[int, bytes | BadRecord]]:
    """(offset, bytes) of every text between separators; blank ones are left out.

    A file without any separator is one document even when it is blank. Bytes are split, not characters, so that one
    undecodable byte costs one document rather than the file.
    """
    begin = search = 0
    num_separators = 0
    while (span := _next_separator(buffer, separator, begin, search)) is not None:
        num_separators += 1
        part = _document_bytes(buffer, begin, span[0])
        if isinstance(part, BadRecord) or part.strip():
            yield begin, part
        begin = span[1]
        search = begin + (span[0] == span[1])  # the same empty match, of a lookahead, must not match again
        buffer.drop(max(0, begin - MAX_SEPARATOR_BYTES - buffer.offset))
    part = _document_bytes(buffer, begin, buffer.offset + len(buffer.data))
    if isinstance(part, BadRecord) or part.strip() or not num_separators:
        yield begin, part


def _document_bytes(buffer: Buffer, begin: int, stop: int) -> bytes | BadRecord:
    if is_too_long(stop - begin):
        return too_long_error()
    return bytes(buffer.data[begin - buffer.offset : stop - buffer.offset])


def _next_separator(buffer: Buffer, separator: re.Pattern[bytes], begin: int, search: int) -> tuple[int, int] | None:
    """Begin and end, in the file, of the first separator from `search` on; None after the last one.

    The current document begins at `begin`; once it is too long it is no longer held.
    """
    while search <= buffer.offset + len(buffer.data):
        match = separator.search(buffer.data, search - buffer.offset)
        first, last = match.span() if match else (len(buffer.data) - MAX_SEPARATOR_BYTES, len(buffer.data))
        is_match = match is not None
        del match  # the buffer cannot change while a match looks into it
        beyond = len(buffer.data) - last  # with so many bytes after it no longer match is possible
        if is_match and (buffer.ended or max(beyond, last - first) >= MAX_SEPARATOR_BYTES):
            return buffer.offset + first, buffer.offset + last
        if buffer.ended:
            return None
        search = max(search, buffer.offset + first)
        if is_too_long(search - begin):
            buffer.drop(max(0, search - MAX_SEPARATOR_BYTES - buffer.offset))
        buffer.more()
    return None
