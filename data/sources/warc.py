"""WARC (ISO 28500, version 1.1): the HTML pages among the answers that a crawler got.

    WARC/1.1 ⏎ headers ⏎ ⏎ block of Content-Length bytes ⏎ ⏎ and so on, often each record a gzip or zstd member

What is broken costs as little as can be: reading goes on at the next record, and in a damaged archive at the next
member that begins with one.
"""

import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

import zstandard

from data.document import Bad, ReadRange, Source, is_too_long, too_long
from data.sources.charset import decode_html
from data.sources.compression import (
    CODECS,
    Codec,
    Decompressed,
    blocks,
    extension,
    gives_ranges,
    is_damage,
    opened,
    zstd_decompressor,
)
from data.sources.records import NotText, Records, Window

_HTML = ("text/html", "application/xhtml+xml")
_MAX_HEADER_BYTES = 1 << 20
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_MAGIC = b"WARC/"
_NEXT_RECORD = re.compile(rb"WARC/\d\.\d\r?\n(?=[A-Za-z])")
_RESPONSE = "response"
_CUT_SHORT = "the file ends within the record"
_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"  # a frame to skip that holds the dictionary of a .warc.zst
_SEARCH_BYTES = 1 << 20


def warc_records(source: Source, piece: ReadRange) -> Records:
    """A record for each HTML page; every other record is a `NotText` of its type."""
    codec = CODECS.get(extension(piece.url))
    if codec is None:
        yield from _records(Window(blocks(piece.url)))
        return
    with opened(piece.url) as file:
        if extension(piece.url) == "zst":
            codec = _with_dictionary(file, codec)
        yield from _records_of_members(piece.url, file, codec)


def _records_of_members(url: str, file: IO[bytes], codec: Codec) -> Records:
    """Every record, also those behind a damaged member, which costs one quarantined record."""
    offset = 0
    while True:
        members = Decompressed(file, codec)
        window = Window(members, offset)
        try:
            yield from _records(window)
            return
        except Exception as error:
            if not is_damage(error):
                raise
            offset = window.offset + len(window.data)
            yield window.offset, Bad(f"damaged archive, unreadable up to the next record that is whole: {error}")
        following = _next_member(file, codec, members.member + 1) if gives_ranges(url) else None
        if following is None:
            return
        file.seek(following)


def _next_member(file: IO[bytes], codec: Codec, start: int) -> int | None:
    """Where the first member from `start` on begins whose content begins with a record; None where there is none."""
    file.seek(start)
    data = b""
    while more := file.read(_SEARCH_BYTES):
        data += more
        begin = 0
        while (begin := data.find(codec.magic, begin)) >= 0:
            if _begins_with_record(file, codec, start + begin):
                return start + begin
            begin += 1
        start += len(data) - len(codec.magic)
        data = data[-len(codec.magic) :]
        file.seek(start + len(data))
    return None


def _begins_with_record(file: IO[bytes], codec: Codec, start: int) -> bool:
    file.seek(start)
    try:
        return codec.decompressor().decompress(file.read(512)).startswith(_MAGIC)
    except Exception as error:
        if not is_damage(error):
            raise
        return False


def _with_dictionary(file: IO[bytes], codec: Codec) -> Codec:
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


def _records(window: Window) -> Records:
    """Every record of a stream; a broken one is quarantined, and reading goes on at the next that can be told."""
    while _skip_blank_lines(window):
        offset = window.offset
        yield offset, _read_record(window)


def _skip_blank_lines(window: Window) -> bool:
    """Whether anything follows."""
    while True:
        window.drop(len(window.data) - len(window.data.lstrip(b"\r\n")))
        if window.data:
            return True
        if not window.more():
            return False


def _read_record(window: Window) -> dict[str, Any] | Bad | NotText:
    """Take one record away from the window, or a broken one up to the next."""
    if not window.reach(len(_MAGIC)) or not window.data.startswith(_MAGIC):
        return _broken(window, "no WARC record begins here")
    end = window.find(_BLANK_LINE, 0, _MAX_HEADER_BYTES)
    if end is None:
        return _broken(window, "the record's header has no end")
    head = bytes(window.data[: end[0]])
    if _NEXT_RECORD.search(head, len(_MAGIC)):
        return _broken(window, "another record begins within the record's header")
    headers = _headers(head)
    length = headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        return _broken(window, f"Content-Length {length!r} is no number")
    size = int(length)
    if is_too_long(size):
        is_whole = window.skip(end[1] + size)
        kind = headers.get("warc-type", "")
        if not is_whole:
            return Bad(f"malformed WARC: {_CUT_SHORT}")
        return too_long() if kind == _RESPONSE else NotText(kind)
    if not window.reach(end[1] + size):
        return _broken(window, _CUT_SHORT)
    window.reach(end[1] + size + 4)
    if not _ends_well(bytes(window.data[end[1] + size : end[1] + size + 4])):
        return _broken(window, f"Content-Length {size} does not lead to the record's end")
    block = bytes(window.data[end[1] : end[1] + size])
    window.drop(end[1] + size)
    return _document(headers, block)


def _ends_well(tail: bytes) -> bool:
    """Whether two line ends follow; the last record of a file may lack them."""
    return len(tail) < 4 and not tail.strip(b"\r\n") or _BLANK_LINE.match(tail) is not None


def _broken(window: Window, reason: str) -> Bad:
    """Why the record is broken; the window goes on to the next that begins behind its first byte, or to the end."""
    start = 1
    while (found := window.find(_NEXT_RECORD, start, _MAX_HEADER_BYTES)) is None:
        window.drop(len(window.data) if window.ended else len(window.data) - 16)
        if window.ended:
            break
        start = 0
    window.drop(found[0] if found else 0)
    return Bad(f"malformed WARC: {reason}")


def _headers(head: bytes) -> dict[str, str]:
    """The lines below the first, names in small letters; one that begins with a blank goes on the one above."""
    found: dict[str, str] = {}
    name = ""
    for line in re.split(r"\r?\n", head.decode("utf-8", "replace"))[1:]:
        if line[:1] in (" ", "\t") and name:
            found[name] += f" {line.strip()}"
            continue
        name, _, value = line.partition(":")
        name = name.strip().lower()
        found[name] = f"{found[name]}, {value.strip()}" if name in found else value.strip()
    return found


def _document(headers: dict[str, str], block: bytes) -> dict[str, Any] | Bad | NotText:
    """The columns of a page, or the kind of a record that holds none."""
    kind = headers.get("warc-type", "")
    if kind != _RESPONSE:
        return NotText(kind)
    end = _BLANK_LINE.search(block)
    if not block.startswith(b"HTTP/") or end is None:
        return NotText(f"{kind} without HTTP")
    http = _headers(block[: end.start()])
    content_type, _, parameters = http.get("content-type", "").partition(";")
    content_type = content_type.strip().lower()
    if content_type not in _HTML:
        return NotText(f"{kind} {content_type}".strip())
    try:
        page = _decoded_body(block[end.end() :], http)
    except Bad as bad:
        return bad
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", parameters, re.IGNORECASE)
    return {
        "text": decode_html(page, charset[1] if charset else None),
        "url": headers.get("warc-target-uri", "").strip("<>"),  # WARC/1.0 was understood to want them
        "date": headers.get("warc-date"),
        "id": headers.get("warc-record-id"),
        "status": _status(block),
        "content_type": content_type,
        "headers": headers,
        "http": http,
    }


def _status(block: bytes) -> int | None:
    found = re.match(rb"HTTP/\S+ +(\d{3})", block)
    return int(found[1]) if found else None


def _decoded_body(body: bytes, http: dict[str, str]) -> bytes:
    """The page as it was before HTTP packed it. Raises `Bad` for what cannot be unpacked.

    Many crawlers store the body unpacked below the header of the packed one: what does not look packed is left alone.
    """
    if "chunked" in http.get("transfer-encoding", "").lower():
        body = _without_chunks(body)
    for encoding in reversed(http.get("content-encoding", "").lower().replace(" ", "").split(",")):
        body = _unpacked(body, encoding)
    return body


def _without_chunks(body: bytes) -> bytes:
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


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity", "none"):
        return body
    if encoding in ("gzip", "x-gzip"):
        return _inflated(body, zlib.MAX_WBITS | 16) if body.startswith(CODECS["gz"].magic) else body
    if encoding == "deflate":  # RFC 9110 means zlib's format; some servers send the bare stream
        is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return body if body.lstrip()[:1] == b"<" else _inflated(body, zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    if encoding == "zstd" and body.startswith(CODECS["zst"].magic):
        return _bounded(_slices(zstd_decompressor(), body))
    if body.lstrip()[:1] == b"<":
        return body
    raise Bad(f"page packed as {encoding}, which is not read")


def _inflated(body: bytes, wbits: int) -> bytes:
    return _bounded(_slices(zlib.decompressobj(wbits), body))


def _slices(engine: Any, body: bytes) -> Iterator[bytes]:
    """The body decompressed, 2 KiB of it at once, for a small page may unpack to a giant one."""
    try:
        for begin in range(0, len(body), 2048):
            if engine.eof:
                return
            yield engine.decompress(body[begin : begin + 2048])
    except (zlib.error, zstandard.ZstdError) as error:
        raise Bad(f"page whose compression is damaged: {error}") from error
    if not engine.eof:
        raise Bad("page whose compression is cut short")


def _bounded(parts: Iterator[bytes]) -> bytes:
    held = bytearray()
    for part in parts:
        held += part
        if is_too_long(len(held)):
            raise too_long()
    return bytes(held)
