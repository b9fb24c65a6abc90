"""Reader of the format `warc` (ISO 28500, version 1.1): the HTML pages among the responses that a crawler received.

A file is a sequence of records. Each record is often a gzip or zstd member of its own.

    WARC/1.1 ⏎ headers ⏎ ⏎ block of Content-Length bytes ⏎ ⏎

After a broken record, reading continues at the next record. After a damaged member of a compressed file, reading
continues at the next member that begins with a record.
"""

import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

import zstandard

from data.document import BadRecord, ReadRange, Source, is_too_long, too_long_error
from data.sources.charset import decode_html
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
from data.sources.records import Buffer, NotADocument, Records

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_MAX_HEADER_BYTES = 1 << 20
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_MAGIC = b"WARC/"
_RECORD_START = re.compile(rb"WARC/\d\.\d\r?\n(?=[A-Za-z])")
_RESPONSE = "response"
_TRUNCATED = "the file ends within the record"
_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"  # begins the skippable zstd frame that contains the dictionary of a .warc.zst
_SEARCH_BYTES = 1 << 20


def warc_records(source: Source, read_range: ReadRange) -> Records:
    """Yield (offset, record) for every WARC record of a file, and for every section that cannot be read.

    The record is a dict of columns for an HTML page, a `BadRecord` for a page that cannot be decoded or a section that
    cannot be read, and a `NotADocument` for any other WARC record. The offset counts decompressed bytes. Bytes that are
    skipped after damage in a compressed file are not counted.
    """
    url = read_range.url
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


def _read_members(url: str, file: IO[bytes], codec: Codec) -> Records:
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


def _read_stream(buffer: Buffer) -> Records:
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


def _read_record(buffer: Buffer) -> dict[str, Any] | BadRecord | NotADocument:
    """Read the record at the start of the buffer and drop it from the buffer.

    If the record is broken, everything up to the next record is dropped.
    """
    if not buffer.fill(len(_MAGIC)) or not buffer.data.startswith(_MAGIC):
        return _skip_broken_record(buffer, "no WARC record begins here")
    blank_line = buffer.find(_BLANK_LINE, 0, _MAX_HEADER_BYTES)
    if blank_line is None:
        return _skip_broken_record(buffer, "the record's header has no end")
    header_end, block_start = blank_line
    head = bytes(buffer.data[:header_end])
    if _RECORD_START.search(head, len(_MAGIC)):
        return _skip_broken_record(buffer, "another record begins within the record's header")
    warc_headers = _parse_headers(head)
    length = warc_headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        return _skip_broken_record(buffer, f"Content-Length {length!r} is not a number")
    block_end = block_start + int(length)
    if is_too_long(int(length)):
        is_complete = buffer.skip(block_end)
        kind = warc_headers.get("warc-type", "")
        if not is_complete:
            return BadRecord(f"malformed WARC: {_TRUNCATED}")
        return too_long_error() if kind == _RESPONSE else NotADocument(kind)
    if not buffer.fill(block_end):
        return _skip_broken_record(buffer, _TRUNCATED)
    buffer.fill(block_end + 4)  # The two line ends after the block. They may be missing at the end of the file.
    if not _is_record_end(bytes(buffer.data[block_end : block_end + 4])):
        return _skip_broken_record(buffer, f"Content-Length {int(length)} does not lead to the record's end")
    block = bytes(buffer.data[block_start:block_end])
    buffer.drop(block_end)
    return _to_record(warc_headers, block)


def _is_record_end(tail: bytes) -> bool:
    """Whether the four bytes after a record's block are two line ends. At the end of a file they may be missing."""
    return len(tail) < 4 and not tail.strip(b"\r\n") or _BLANK_LINE.match(tail) is not None


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


def _parse_headers(head: bytes) -> dict[str, str]:
    """Parse the headers after the first line. Names become lower case, and the values of repeated headers are joined.

    A line that begins with a space or a tab continues the previous header.
    """
    headers: dict[str, str] = {}
    name = ""
    for line in re.split(r"\r?\n", head.decode("utf-8", "replace"))[1:]:
        if line[:1] in (" ", "\t") and name:
            headers[name] += f" {line.strip()}"
            continue
        name, _, value = line.partition(":")
        name = name.strip().lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return headers


def _to_record(warc_headers: dict[str, str], block: bytes) -> dict[str, Any] | BadRecord | NotADocument:
    """Return the columns of an HTML page, or a NotADocument with the record's kind if there is no HTML page.

    Returns a BadRecord for a page that cannot be decoded.
    """
    kind = warc_headers.get("warc-type", "")
    if kind != _RESPONSE:
        return NotADocument(kind)
    end = _BLANK_LINE.search(block)
    if not block.startswith(b"HTTP/") or end is None:
        return NotADocument(f"{kind} without HTTP")
    http_headers = _parse_headers(block[: end.start()])
    content_type, _, parameters = http_headers.get("content-type", "").partition(";")
    content_type = content_type.strip().lower()
    if content_type not in _HTML_TYPES:
        return NotADocument(f"{kind} {content_type}".strip())
    try:
        page = _decode_body(block[end.end() :], http_headers)
    except BadRecord as bad:
        return bad
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", parameters, re.IGNORECASE)
    return {
        "text": decode_html(page, charset[1] if charset else None),
        "url": warc_headers.get("warc-target-uri", "").strip("<>"),  # some programs write WARC/1.0 URLs as <URL>
        "date": warc_headers.get("warc-date"),
        "id": warc_headers.get("warc-record-id"),
        "status": _http_status(block),
        "content_type": content_type,
        "headers": warc_headers,
        "http": http_headers,
    }


def _http_status(block: bytes) -> int | None:
    """Return the status code of an HTTP response, such as 200."""
    status = re.match(rb"HTTP/\S+ +(\d{3})", block)
    return int(status[1]) if status else None


def _decode_body(body: bytes, http_headers: dict[str, str]) -> bytes:
    """Undo HTTP's transfer and content encodings. Raises BadRecord for a body that cannot be decoded.

    Many crawlers store a decoded body with the original headers. So a body that does not look encoded is returned
    unchanged.
    """
    if "chunked" in http_headers.get("transfer-encoding", "").lower():
        body = _join_chunks(body)
    for encoding in reversed(http_headers.get("content-encoding", "").lower().replace(" ", "").split(",")):
        body = _decompress_body(body, encoding)
    return body


def _join_chunks(body: bytes) -> bytes:
    """Join the chunks of a body with the transfer encoding `chunked` (RFC 9112, 7.1).

    A body that does not consist of chunks is returned unchanged.
    """
    parts: list[bytes] = []
    position = 0
    while size := re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n").match(body, position):
        chunk_bytes = int(size[1], 16)
        if chunk_bytes == 0:
            return b"".join(parts)
        parts.append(body[size.end() : size.end() + chunk_bytes])
        position = size.end() + chunk_bytes + 2
    return b"".join(parts) if parts and position >= len(body) else body


def _decompress_body(body: bytes, encoding: str) -> bytes:
    """Undo one content encoding. Raises BadRecord for a damaged body and for an encoding that is not supported."""
    if not body or encoding in ("", "identity", "none"):
        return body
    if encoding in ("gzip", "x-gzip"):
        return _inflate(body, zlib.MAX_WBITS | 16) if body.startswith(CODECS["gz"].magic) else body
    if encoding == "deflate":  # by RFC 9110 this is zlib's format, but some servers send a raw deflate stream
        is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return body if body.lstrip()[:1] == b"<" else _inflate(body, zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    if encoding == "zstd":
        return _join_bounded(_decompress(zstd_decompressor(), body)) if body.startswith(CODECS["zst"].magic) else body
    if body.lstrip()[:1] == b"<":
        return body
    raise BadRecord(f"page with the content encoding {encoding}, which is not supported")


def _inflate(body: bytes, wbits: int) -> bytes:
    """Decompress a deflate stream in the format that zlib's `wbits` names."""
    return _join_bounded(_decompress(zlib.decompressobj(wbits), body))


def _decompress(decompressor: Any, body: bytes) -> Iterator[bytes]:
    """Yield the decompressed body in pieces, because a small body may expand to a huge page.

    Each piece comes from 2 KiB of the body. Raises BadRecord for a damaged or truncated body.
    """
    try:
        for begin in range(0, len(body), 2048):
            if decompressor.eof:
                return
            yield decompressor.decompress(body[begin : begin + 2048])
    except (zlib.error, zstandard.ZstdError) as error:
        raise BadRecord(f"page whose compressed body is damaged: {error}") from error
    if not decompressor.eof:
        raise BadRecord("page whose compressed body is truncated")


def _join_bounded(pieces: Iterator[bytes]) -> bytes:
    """Join the pieces. Raises BadRecord as soon as they are too long together."""
    joined = bytearray()
    for piece in pieces:
        joined += piece
        if is_too_long(len(joined)):
            raise too_long_error()
    return bytes(joined)
