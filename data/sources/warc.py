"""WARC (ISO 28500, version 1.1): the HTML pages among the responses that a crawler received.

    WARC/1.1 ⏎ headers ⏎ ⏎ block of Content-Length bytes ⏎ ⏎ and so on, often each record a gzip or zstd member

A broken record costs as little as possible: reading continues at the next record, in a damaged archive at the next
member that begins with one.
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
from data.sources.records import Buffer, NotText, Records

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_MAX_HEADER_BYTES = 1 << 20
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_MAGIC = b"WARC/"
_RECORD_START = re.compile(rb"WARC/\d\.\d\r?\n(?=[A-Za-z])")
_RESPONSE = "response"
_TRUNCATED = "the file ends within the record"
_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"  # a frame to skip that holds the dictionary of a .warc.zst
_SEARCH_BYTES = 1 << 20


def warc_records(source: Source, read_range: ReadRange) -> Records:
    """A record for each HTML page; every other record is a `NotText` with its type."""
    codec = CODECS.get(file_extension(read_range.url))
    if codec is None:
        yield from _read_stream(Buffer(read_blocks(read_range.url)))
        return
    with open_file(read_range.url) as file:
        if file_extension(read_range.url) == "zst":
            codec = _codec_with_dictionary(file, codec)
        yield from _read_members(read_range.url, file, codec)


def _read_members(url: str, file: IO[bytes], codec: Codec) -> Records:
    """Every record, also those after a damaged member; the damage is one quarantined record."""
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
            yield buffer.offset, BadRecord(f"damaged archive, unreadable up to the next record that is whole: {error}")
        following = _find_next_member(file, codec, members.member + 1) if supports_ranges(url) else None
        if following is None:
            return
        file.seek(following)


def _find_next_member(file: IO[bytes], codec: Codec, start: int) -> int | None:
    """Position of the first member from `start` on whose content begins with a record; None without one."""
    file.seek(start)
    data = b""
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
    file.seek(start)
    try:
        return codec.decompressor().decompress(file.read(512)).startswith(_MAGIC)
    except Exception as error:
        if not is_damage_error(error):
            raise
        return False


def _codec_with_dictionary(file: IO[bytes], codec: Codec) -> Codec:
    """The codec with the dictionary that a .warc.zst may begin with (iipc's specification, Zstandard compression)."""
    head = file.read(8)
    if head[:4] != _DICTIONARY_MAGIC:
        file.seek(0)
        return codec
    content = file.read(int.from_bytes(head[4:], "little"))
    if content.startswith(codec.magic):
        content = codec.decompressor().decompress(content)
    dictionary = zstandard.ZstdCompressionDict(content)
    return codec._replace(decompressor=lambda: zstd_decompressor(dictionary))


def _read_stream(buffer: Buffer) -> Records:
    """Every record of a stream; a broken one is quarantined, and reading continues at the next recognizable one."""
    while _skip_blank_lines(buffer):
        offset = buffer.offset
        yield offset, _read_record(buffer)


def _skip_blank_lines(buffer: Buffer) -> bool:
    """Drop blank lines; whether anything follows them."""
    while True:
        buffer.drop(len(buffer.data) - len(buffer.data.lstrip(b"\r\n")))
        if buffer.data:
            return True
        if not buffer.more():
            return False


def _read_record(buffer: Buffer) -> dict[str, Any] | BadRecord | NotText:
    """Read one record and drop it from the buffer; a broken one is dropped up to the next record."""
    if not buffer.reach(len(_MAGIC)) or not buffer.data.startswith(_MAGIC):
        return _skip_broken_record(buffer, "no WARC record begins here")
    end = buffer.find(_BLANK_LINE, 0, _MAX_HEADER_BYTES)
    if end is None:
        return _skip_broken_record(buffer, "the record's header has no end")
    head = bytes(buffer.data[: end[0]])
    if _RECORD_START.search(head, len(_MAGIC)):
        return _skip_broken_record(buffer, "another record begins within the record's header")
    headers = _parse_headers(head)
    length = headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        return _skip_broken_record(buffer, f"Content-Length {length!r} is no number")
    size = int(length)
    if is_too_long(size):
        is_whole = buffer.skip(end[1] + size)
        kind = headers.get("warc-type", "")
        if not is_whole:
            return BadRecord(f"malformed WARC: {_TRUNCATED}")
        return too_long_error() if kind == _RESPONSE else NotText(kind)
    if not buffer.reach(end[1] + size):
        return _skip_broken_record(buffer, _TRUNCATED)
    buffer.reach(end[1] + size + 4)
    if not _is_record_end(bytes(buffer.data[end[1] + size : end[1] + size + 4])):
        return _skip_broken_record(buffer, f"Content-Length {size} does not lead to the record's end")
    block = bytes(buffer.data[end[1] : end[1] + size])
    buffer.drop(end[1] + size)
    return _to_record(headers, block)


def _is_record_end(tail: bytes) -> bool:
    """Whether a record is followed by two line ends; the last one of a file need not be."""
    return len(tail) < 4 and not tail.strip(b"\r\n") or _BLANK_LINE.match(tail) is not None


def _skip_broken_record(buffer: Buffer, reason: str) -> BadRecord:
    """The reason why a record is broken; the buffer is dropped up to the next record, or to the end."""
    start = 1
    while (span := buffer.find(_RECORD_START, start, _MAX_HEADER_BYTES)) is None:
        buffer.drop(len(buffer.data) if buffer.ended else len(buffer.data) - 16)
        if buffer.ended:
            break
        start = 0
    buffer.drop(span[0] if span else 0)
    return BadRecord(f"malformed WARC: {reason}")


def _parse_headers(head: bytes) -> dict[str, str]:
    """The headers after the first line, names in lower case. A line that begins with a blank continues the last one."""
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


def _to_record(headers: dict[str, str], block: bytes) -> dict[str, Any] | BadRecord | NotText:
    """The columns of a page, or the kind of a record without a page."""
    kind = headers.get("warc-type", "")
    if kind != _RESPONSE:
        return NotText(kind)
    end = _BLANK_LINE.search(block)
    if not block.startswith(b"HTTP/") or end is None:
        return NotText(f"{kind} without HTTP")
    http = _parse_headers(block[: end.start()])
    content_type, _, parameters = http.get("content-type", "").partition(";")
    content_type = content_type.strip().lower()
    if content_type not in _HTML_TYPES:
        return NotText(f"{kind} {content_type}".strip())
    try:
        page = _decode_body(block[end.end() :], http)
    except BadRecord as bad:
        return bad
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", parameters, re.IGNORECASE)
    return {
        "text": decode_html(page, charset[1] if charset else None),
        "url": headers.get("warc-target-uri", "").strip("<>"),  # some writers of WARC/1.0 put them there
        "date": headers.get("warc-date"),
        "id": headers.get("warc-record-id"),
        "status": _http_status(block),
        "content_type": content_type,
        "headers": headers,
        "http": http,
    }


def _http_status(block: bytes) -> int | None:
    status = re.match(rb"HTTP/\S+ +(\d{3})", block)
    return int(status[1]) if status else None


def _decode_body(body: bytes, http: dict[str, str]) -> bytes:
    """The page without HTTP's transfer and content encodings. Raises `BadRecord` for a body that cannot be decoded.

    Many crawlers store the decoded body with the headers of the encoded one, so a body that does not look encoded is
    returned as it is.
    """
    if "chunked" in http.get("transfer-encoding", "").lower():
        body = _join_chunks(body)
    for encoding in reversed(http.get("content-encoding", "").lower().replace(" ", "").split(",")):
        body = _decompress_body(body, encoding)
    return body


def _join_chunks(body: bytes) -> bytes:
    """RFC 9112, 7.1. A body that does not begin with a chunk's size is returned as it is."""
    parts: list[bytes] = []
    position = 0
    while size := re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n").match(body, position):
        length = int(size[1], 16)
        if length == 0:
            return b"".join(parts)
        parts.append(body[size.end() : size.end() + length])
        position = size.end() + length + 2
    return b"".join(parts) if parts and position >= len(body) else body


def _decompress_body(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity", "none"):
        return body
    if encoding in ("gzip", "x-gzip"):
        return _inflate(body, zlib.MAX_WBITS | 16) if body.startswith(CODECS["gz"].magic) else body
    if encoding == "deflate":  # RFC 9110 means zlib's format; some servers send the bare stream
        is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return body if body.lstrip()[:1] == b"<" else _inflate(body, zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    if encoding == "zstd" and body.startswith(CODECS["zst"].magic):
        return _join_bounded(_decompress(zstd_decompressor(), body))
    if body.lstrip()[:1] == b"<":
        return body
    raise BadRecord(f"page packed as {encoding}, which is not read")


def _inflate(body: bytes, wbits: int) -> bytes:
    return _join_bounded(_decompress(zlib.decompressobj(wbits), body))


def _decompress(engine: Any, body: bytes) -> Iterator[bytes]:
    """The body decompressed, 2 KiB of it at once, for a small body may become a giant page."""
    try:
        for begin in range(0, len(body), 2048):
            if engine.eof:
                return
            yield engine.decompress(body[begin : begin + 2048])
    except (zlib.error, zstandard.ZstdError) as error:
        raise BadRecord(f"page whose compression is damaged: {error}") from error
    if not engine.eof:
        raise BadRecord("page whose compression is cut short")


def _join_bounded(parts: Iterator[bytes]) -> bytes:
    held = bytearray()
    for part in parts:
        held += part
        if is_too_long(len(held)):
            raise too_long_error()
    return bytes(held)
