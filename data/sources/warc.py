"""Reader of the format `warc` (ISO 28500, version 1.1): the HTML pages of a crawl, or the plain texts in a WET file.

A page is a `response` of a web server, or a `resource` that was stored without HTTP headers. A WET file has a record
`conversion` for each page, with the plain text that was extracted from it. Other records are counted by their kind.

A file is a sequence of records. Each record is often a gzip or zstd member of its own.

    WARC/1.1 ⏎ headers ⏎ ⏎ block of Content-Length bytes ⏎ ⏎

After a broken record, reading continues at the next record. After a damaged member of a compressed file, reading
continues at the next member that begins with a record.
"""

import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import zstandard

from data.document import BadRecord, ReadRange, Source, is_too_long, too_long_error
from data.sources.charset import decode_html, decode_plain_text
from data.sources.compression import (
    CODECS,
    Codec,
    DecompressedBlocks,
    file_extension,
    is_damage_error,
    open_file,
    read_blocks,
    supports_ranges,
    zstd_decompressor,
)
from data.sources.http_message import (
    BLANK_LINE,
    HTML,
    PLAIN_TEXT,
    XHTML,
    Response,
    decode_body,
    parse_content_type,
    parse_headers,
    parse_response,
    sniff_page,
)
from data.sources.records import Buffer, NotADocument, Records

_MAX_HEADER_BYTES = 1 << 20
_MAGIC = b"WARC/"
_RECORD_START = re.compile(rb"WARC/\d\.\d\r?\n(?=[A-Za-z])")
_RESPONSE = "response"
_CONVERSION = "conversion"
_KINDS_WITHOUT_HTTP = ("resource", _CONVERSION)
"""The kinds of records whose block is the content itself."""
_TRUNCATED = "the file ends within the record"
_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"  # begins the skippable zstd frame that contains the dictionary of a .warc.zst
_SEARCH_BYTES = 1 << 20


class _WarcRecord(NamedTuple):
    """A record as it is in the file."""

    headers: dict[str, str]
    """Values of the headers by name in lower case."""
    block: bytes


_StoredRecords = Iterator[tuple[int, _WarcRecord | BadRecord | NotADocument]]
"""(offset, record) of every record of a file."""


def warc_records(source: Source, read_range: ReadRange) -> Records:
    """Yield (offset, record) for every WARC record of a file, and for every section that cannot be read.

    The record is a dict of columns for an HTML page or a converted text, a `BadRecord` for a page that cannot be
    decoded or a section that cannot be read, and a `NotADocument` for any other WARC record. The offset counts
    decompressed bytes. Bytes that are skipped after damage in a compressed file are not counted.
    """
    for offset, record in _stored_records(read_range.url):
        yield offset, _to_record(source, *record) if isinstance(record, _WarcRecord) else record


def _stored_records(url: str) -> _StoredRecords:
    """Yield every record of a file, and a BadRecord for every section that cannot be read."""
    codec = CODECS.get(file_extension(url))
    if codec is None:
        yield from _read_stream(Buffer(read_blocks(url)))
        return
    if file_extension(url) == "zst":
        with open_file(url) as file:
            dictionary = _read_dictionary(file, codec)
            if dictionary is not None:
                codec = codec._replace(make_decompressor=lambda: zstd_decompressor(dictionary))
                yield from _read_members(url, file, codec)
                return
    # A .warc.zst without a dictionary is opened again, because the file of a web server without range requests is a
    # stream, which cannot go back to its start.
    with open_file(url) as file:
        yield from _read_members(url, file, codec)


def _read_members(url: str, file: IO[bytes], codec: Codec) -> _StoredRecords:
    """Yield every record of a compressed file. Each damaged section of the file is one BadRecord.

    Reading continues after the damage, unless the server of the file does not support range requests.
    """
    offset = 0
    while True:
        members = DecompressedBlocks(file, codec)
        buffer = Buffer(members, offset)
        try:
            yield from _read_stream(buffer)
            return
        except Exception as error:
            if not is_damage_error(error):
                raise
            offset = buffer.offset + len(buffer.data)
            yield buffer.offset, BadRecord(f"damaged archive, unreadable up to the next complete record: {error}")
        next_member = _find_next_member(file, codec, members.member_start + 1) if supports_ranges(url) else None
        if next_member is None:
            return
        file.seek(next_member)


def _find_next_member(file: IO[bytes], codec: Codec, start: int) -> int | None:
    """Return the position of the first member from `start` on whose content begins with a record; None without one."""
    file.seek(start)
    data = b""  # the bytes of the file that begin at position `start`; `start` moves along with them
    while block := file.read(_SEARCH_BYTES):
        data += block
        begin = 0
        while (begin := data.find(codec.magic, begin)) >= 0:
            if _member_begins_with_record(file, codec, start + begin):
                return start + begin
            begin += 1
        start += len(data) - len(codec.magic)
        data = data[-len(codec.magic) :]
        file.seek(start + len(data))
    return None


def _member_begins_with_record(file: IO[bytes], codec: Codec, start: int) -> bool:
    """Whether a member begins at position `start` of the file and its content begins with a WARC record."""
    file.seek(start)
    try:
        # Reads until the first block of decompressed bytes is complete, instead of a fixed number of input bytes,
        # because bzip2 and Zstandard return nothing before the end of a compressed block, which may be long.
        return next(iter(DecompressedBlocks(file, codec)), b"").startswith(_MAGIC)
    except Exception as error:
        if not is_damage_error(error):
            raise
        return False


def _read_dictionary(file: IO[bytes], codec: Codec) -> zstandard.ZstdCompressionDict | None:
    """Return the zstd dictionary at the start of a .warc.zst file, or None if the file does not begin with one.

    After a dictionary, the file is at the position of its first member. The IIPC (International Internet Preservation
    Consortium) has specified the dictionary.
    """
    head = file.read(8)
    if head[:4] != _DICTIONARY_MAGIC:
        return None
    content = file.read(int.from_bytes(head[4:], "little"))
    if content.startswith(codec.magic):
        content = codec.make_decompressor().decompress(content)
    return zstandard.ZstdCompressionDict(content)


def _read_stream(buffer: Buffer) -> _StoredRecords:
    """Yield every record of a decompressed stream. Each broken section of the stream is one BadRecord."""
    while _skip_blank_lines(buffer):
        offset = buffer.offset
        yield offset, _read_record(buffer)


def _skip_blank_lines(buffer: Buffer) -> bool:
    """Drop blank lines. Returns False if the stream ends after them."""
    while True:
        buffer.drop(len(buffer.data) - len(buffer.data.lstrip(b"\r\n")))
        if buffer.data:
            return True
        if not buffer.read_block():
            return False


def _read_record(buffer: Buffer) -> _WarcRecord | BadRecord | NotADocument:
    """Read the record at the start of the buffer and drop it from the buffer.

    If the record is broken, everything up to the next record is dropped.
    """
    if not buffer.fill(len(_MAGIC)) or not buffer.data.startswith(_MAGIC):
        return _skip_broken_record(buffer, "no WARC record begins here")
    blank_line = buffer.find(BLANK_LINE, 0, _MAX_HEADER_BYTES)
    if blank_line is None:
        return _skip_broken_record(buffer, "the record's header has no end")
    header_end, block_start = blank_line
    head = bytes(buffer.data[:header_end])
    if _RECORD_START.search(head, len(_MAGIC)):
        return _skip_broken_record(buffer, "another record begins within the record's header")
    warc_headers = parse_headers(head)
    length = warc_headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        return _skip_broken_record(buffer, f"Content-Length {length!r} is not a number")
    block_end = block_start + int(length)
    if is_too_long(int(length)):
        is_complete = buffer.skip(block_end)
        kind = warc_headers.get("warc-type", "")
        if not is_complete:
            return BadRecord(f"malformed WARC: {_TRUNCATED}")
        media_type = parse_content_type(warc_headers.get("content-type", ""))
        is_document = kind == _RESPONSE or (kind in _KINDS_WITHOUT_HTTP and media_type.name in _document_types(kind))
        return too_long_error() if is_document else NotADocument(kind)
    if not buffer.fill(block_end):
        return _skip_broken_record(buffer, _TRUNCATED)
    buffer.fill(block_end + 4)  # The two line ends after the block. They may be missing at the end of the file.
    if not _is_record_end(bytes(buffer.data[block_end : block_end + 4])):
        return _skip_broken_record(buffer, f"Content-Length {int(length)} does not lead to the record's end")
    block = bytes(buffer.data[block_start:block_end])
    buffer.drop(block_end)
    return _WarcRecord(warc_headers, block)


def _is_record_end(tail: bytes) -> bool:
    """Whether the four bytes after a record's block are two line ends. At the end of a file they may be missing."""
    return len(tail) < 4 and not tail.strip(b"\r\n") or BLANK_LINE.match(tail) is not None


def _skip_broken_record(buffer: Buffer, reason: str) -> BadRecord:
    """Drop everything up to the next record or the end of the stream. Returns the BadRecord for the dropped part."""
    start = 1  # not 0, because the broken record itself may begin like a record
    while (span := buffer.find(_RECORD_START, start, _MAX_HEADER_BYTES)) is None:
        # The last 16 bytes stay, because the next record may begin within them.
        buffer.drop(len(buffer.data) if buffer.at_end else len(buffer.data) - 16)
        if buffer.at_end:
            break
        start = 0
    buffer.drop(span[0] if span else 0)
    return BadRecord(f"malformed WARC: {reason}")


def _to_record(source: Source, warc_headers: dict[str, str], block: bytes) -> dict[str, Any] | BadRecord | NotADocument:
    """Return the columns of a page or a plain text, or a NotADocument with the record's kind if it is none.

    Returns a BadRecord for a page that cannot be decoded.
    """
    kind = warc_headers.get("warc-type", "")
    if kind not in (_RESPONSE, *_KINDS_WITHOUT_HTTP):
        return NotADocument(kind or "record without WARC-Type")
    if kind == _RESPONSE:
        response = parse_response(block)
        if response is None:
            return NotADocument(f"{kind} without HTTP")
        if response.status is not None and not 200 <= response.status < 300 and not source.error_pages:
            return NotADocument(f"{kind} with status {response.status}")
        media_type = parse_content_type(response.headers.get("content-type", ""))
    else:
        response = Response(None, {}, block)
        media_type = parse_content_type(warc_headers.get("content-type", ""))
    if media_type.name not in ("", *_document_types(kind)):
        return NotADocument(f"{kind} {media_type.name}")
    try:
        body = decode_body(response)
        content_type = media_type.name or sniff_page(body)
        if not content_type:
            return NotADocument(f"{kind} without Content-Type")
        decode = decode_plain_text if content_type == PLAIN_TEXT else decode_html
        text = decode(body, media_type.charset)
    except BadRecord as bad:
        return bad
    return {
        "text": text,
        "url": warc_headers.get("warc-target-uri", "").strip("<>"),  # some programs write WARC/1.0 URLs as <URL>
        "date": warc_headers.get("warc-date"),
        "id": warc_headers.get("warc-record-id"),
        "status": response.status,
        "content_type": content_type,
        "headers": warc_headers,
        "http": response.headers,
    }


def _document_types(kind: str) -> tuple[str, ...]:
    """Return the media types of the records of this kind that become documents."""
    return (HTML, XHTML, PLAIN_TEXT) if kind == _CONVERSION else (HTML, XHTML)
