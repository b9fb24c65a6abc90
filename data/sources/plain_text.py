"""Readers of the formats `text` and `html`.

A text file is one document, or several documents between separators (`Source.split`). An HTML file is one page.
"""

import re
from collections.abc import Iterator

from data.document import BadRecord, ReadRange, Source, is_too_long, too_long_error
from data.sources.charset import decode_html
from data.sources.compression import read_blocks, read_utf8_blocks
from data.sources.encodings import file_encoding
from data.sources.records import Buffer, Records, decode_utf8, join_blocks

MAX_SEPARATOR_BYTES = 64 << 10
"""The greatest length of a separator. It includes the bytes that the regular expression looks at before and after the
separator (lookbehind and lookahead)."""


def text_records(source: Source, read_range: ReadRange) -> Records:
    """Yield the file's text as one record, or a record for each document if the source has a separator."""
    encoding = file_encoding(source)
    content = read_utf8_blocks(read_range.url, encoding=encoding)
    if source.split is None:
        yield 0, _text_record(join_blocks(content), encoding)
        return
    for offset, raw in _split_documents(Buffer(content), re.compile(source.split.encode())):
        yield offset, _text_record(raw, encoding)


def html_records(source: Source, read_range: ReadRange) -> Records:
    """Yield the file's page as one record. Its text is the HTML markup."""
    raw = join_blocks(read_blocks(read_range.url))
    try:
        yield 0, raw if isinstance(raw, BadRecord) else {"text": decode_html(raw, source.encoding)}
    except BadRecord as bad:
        yield 0, bad


def _text_record(raw: bytes | BadRecord, encoding: str) -> dict[str, str] | BadRecord:
    """Return the record with this text, or a BadRecord if the bytes were not valid in the file's encoding."""
    try:
        return raw if isinstance(raw, BadRecord) else {"text": decode_utf8(raw, encoding)}
    except BadRecord as bad:
        return bad


def _split_documents(buffer: Buffer, separator: re.Pattern[bytes]) -> Iterator[tuple[int, bytes | BadRecord]]:
    """Yield (offset, bytes) of every document, that is of every text between separators. Blank texts are left out.

    A file without any separator is one document even if it is blank. The file is split as bytes and decoded later. So
    an undecodable byte affects only one document.
    """
    begin = search = 0  # where the current document begins, and from where its end is searched
    num_separators = 0
    while (span := _next_separator(buffer, separator, begin, search)) is not None:
        num_separators += 1
        document = _document_bytes(buffer, begin, span[0])
        if isinstance(document, BadRecord) or document.strip():
            yield begin, document
        begin = span[1]
        # After an empty match, such as that of a lookahead, searching from `begin` would find the same match again.
        search = begin + (span[0] == span[1])
        buffer.drop(max(0, begin - MAX_SEPARATOR_BYTES - buffer.offset))
    document = _document_bytes(buffer, begin, buffer.offset + len(buffer.data))
    if isinstance(document, BadRecord) or document.strip() or not num_separators:
        yield begin, document


def _document_bytes(buffer: Buffer, begin: int, stop: int) -> bytes | BadRecord:
    """Return the bytes between two positions of the file, or a BadRecord if they are too many."""
    if is_too_long(stop - begin):
        return too_long_error()
    return bytes(buffer.data[begin - buffer.offset : stop - buffer.offset])


def _next_separator(buffer: Buffer, separator: re.Pattern[bytes], begin: int, search: int) -> tuple[int, int] | None:
    """Find the first separator from position `search` of the file on. Returns the positions of its begin and end.

    Returns None if no separator follows. The current document begins at position `begin` of the file. Once this
    document is too long for a record, its bytes are dropped from the buffer while the search continues.
    """
    while search <= buffer.offset + len(buffer.data):
        match = separator.search(buffer.data, search - buffer.offset)
        # Without a match, the search continues MAX_SEPARATOR_BYTES before the end of the data, because a separator that
        # begins there may continue in the next block.
        first, last = match.span() if match else (len(buffer.data) - MAX_SEPARATOR_BYTES, len(buffer.data))
        is_match = match is not None
        del match  # a bytearray cannot be resized while a match object refers to it
        # A match near the end of the data may become longer with the next block. It is final if enough bytes follow or
        # if it already has the greatest length.
        num_following = len(buffer.data) - last
        if is_match and (buffer.at_end or max(num_following, last - first) >= MAX_SEPARATOR_BYTES):
            return buffer.offset + first, buffer.offset + last
        if buffer.at_end:
            return None
        search = max(search, buffer.offset + first)
        if is_too_long(search - begin):
            buffer.drop(max(0, search - MAX_SEPARATOR_BYTES - buffer.offset))
        buffer.read_block()
    return None
