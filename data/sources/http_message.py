"""Reads the HTTP responses that web archives store: headers, media types and bodies (RFC 9110, RFC 9112).

Servers and crawlers make mistakes, so a response is read as leniently as browsers read it. A body that cannot be read
completely is never cut silently: it is an error, which puts the page into quarantine.
"""

import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import zstandard

from data.document import BadRecord, is_too_long, too_long_error
from data.sources.compression import CODECS, zstd_decompressor

HTML = "text/html"
XHTML = "application/xhtml+xml"
PLAIN_TEXT = "text/plain"

BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,60}/[\w!#$&^.+-]{1,60}")
_LIST_ITEM = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"?)+')
_CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_HTML_START = re.compile(
    rb"[\t\n\f\r ]*<(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p|!--)[ >]",
    re.IGNORECASE,
)
"""How a page begins (WHATWG MIME Sniffing Standard, "identifying a resource with an unknown MIME type")."""
_XHTML_START = re.compile(
    rb"\s*<\?xml[^>]*>\s*(?:<!--.*?-->\s*)*+<(?:!doctype html|html)[\s>]", re.IGNORECASE | re.DOTALL
)
_SNIFFED_BYTES = 1445
"""A browser looks at so many bytes to find out the type of a resource."""
_CHUNK_HEADER = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LAST_CHUNK = re.compile(rb"\n0+[ \t]*\r?\n")
_CHUNK_SLIP = 64
"""If the size of a chunk is wrong, the next chunk is searched within so many bytes of where it should begin."""


class MediaType(NamedTuple):
    """The value of a Content-Type header."""

    name: str
    """Media type such as `text/html`, in lower case. Empty if there is no valid one."""
    charset: str | None = None


class Response(NamedTuple):
    """An HTTP response."""

    status: int | None
    """Status code, such as 200. None if the status line has none."""
    headers: dict[str, str]
    """Values of the headers by name in lower case."""
    body: bytes
    """The body as it is stored, perhaps in chunks or compressed (`decode_body`)."""


def parse_response(block: bytes) -> Response | None:
    """Return the HTTP response in a block, or None if the block is none."""
    end = BLANK_LINE.search(block)
    if not block.startswith(b"HTTP/") or end is None:
        return None
    status = re.match(rb"HTTP/\S+ +(\d{3})", block)
    return Response(int(status[1]) if status else None, parse_headers(block[: end.start()]), block[end.end() :])


def parse_headers(head: bytes) -> dict[str, str]:
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


def parse_content_type(value: str) -> MediaType:
    """Return the media type in a Content-Type header: of several the last valid one (Fetch Standard, "extract a MIME
    type"). Its charset may be in an earlier one of the same type."""
    result = MediaType("")
    for item in _LIST_ITEM.findall(value):
        name, _, parameters = item.partition(";")
        name = name.strip().lower()
        if not _MEDIA_TYPE.fullmatch(name):
            continue
        charset = _CHARSET.search(parameters)
        inherited = result.charset if result.name == name else None
        result = MediaType(name, charset[1] if charset else inherited)
    return result


def sniff_page(body: bytes) -> str:
    """Return the media type of a body that browsers take for a page, and "" for any other body.

    The body has no valid Content-Type, so a browser looks at its first bytes.
    """
    if _HTML_START.match(body):
        return HTML
    return XHTML if _XHTML_START.match(body[:_SNIFFED_BYTES]) else ""


def decode_body(response: Response) -> bytes:
    """Undo the transfer and content encodings of a response. Raises BadRecord for a body that cannot be decoded.

    Many crawlers store a decoded body with the original headers. So a body that does not look encoded is returned
    unchanged.
    """
    body = response.body
    if "chunked" in response.headers.get("transfer-encoding", "").lower():
        body = _join_chunks(body)
    for encoding in reversed(response.headers.get("content-encoding", "").lower().replace(" ", "").split(",")):
        body = _decompress_body(body, encoding)
    return body


def _join_chunks(body: bytes) -> bytes:
    """Join the chunks of a body with the transfer encoding `chunked` (RFC 9112, 7.1).

    A body that does not consist of chunks is returned unchanged. If the archive ends within a chunk, this chunk is the
    last one. If the size of a chunk is wrong by a few bytes, the begin of the next chunk says where it ends. Raises
    BadRecord if no chunk begins there.
    """
    header = _CHUNK_HEADER.match(body)
    if header is None:
        return body
    line_end = b"\r\n" if header[0].endswith(b"\r\n") else b"\n"
    is_page = body[header.end() :].lstrip()[:1] in (b"<", b"")
    end = header.end() + int(header[1], 16)
    is_packed = body.startswith(tuple(codec.magic for codec in CODECS.values()), header.end())
    if not (is_page or is_packed) and (end >= len(body) or not _ends_chunk(body, end, line_end)):
        return body  # a text whose first line looks like a size
    parts: list[bytes] = []
    while header is not None and (num_bytes := int(header[1], 16)):
        start, end = header.end(), header.end() + num_bytes
        if not _ends_chunk(body, end, line_end):
            end = _find_chunk_end(body, start, end, line_end)
        parts.append(body[start:end])
        header = _CHUNK_HEADER.match(body, end + len(line_end))
    return b"".join(parts)


def _ends_chunk(body: bytes, end: int, line_end: bytes) -> bool:
    """Whether a chunk can end at this position: a line end and the next chunk or the end of the body follow."""
    if end + len(line_end) >= len(body):
        return _LAST_CHUNK.search(body, max(0, len(body) - _CHUNK_SLIP)) is None
    return body.startswith(line_end, end) and _CHUNK_HEADER.match(body, end + len(line_end)) is not None


def _find_chunk_end(body: bytes, start: int, end: int, line_end: bytes) -> int:
    """Return where a chunk of a wrong size ends, which begins at `start` and should end at `end`.

    Raises BadRecord if no other chunk begins near the position `end`.
    """
    # A line of the text may look like the header of a chunk, but then no further chunk begins where it says.
    ends = [
        header.start() - len(line_end)
        for header in _headers_near(body, start, end, line_end)
        if int(header[1], 16) == 0
        or _ends_chunk(body, header.end() + int(header[1], 16), line_end)
        or _headers_near(body, header.end(), header.end() + int(header[1], 16), line_end)
    ]
    if not ends:
        raise BadRecord(f"page with a wrong chunk size: no chunk begins at byte {end} of the body or near it")
    return min(ends, key=lambda position: abs(position - end))


def _headers_near(body: bytes, start: int, end: int, line_end: bytes) -> list[re.Match[bytes]]:
    """Return what looks like the header of a chunk after a line end near `end`, but not before `start`."""
    headers: list[re.Match[bytes]] = []
    position = body.find(line_end, max(start, end - _CHUNK_SLIP), end + _CHUNK_SLIP)
    while position >= 0:
        if header := _CHUNK_HEADER.match(body, position + len(line_end)):
            headers.append(header)
        position = body.find(line_end, position + 1, end + _CHUNK_SLIP)
    return headers


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
