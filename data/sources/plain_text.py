"""Text files: each one document, or many with a separator between; and HTML files, each one page."""

import re
from collections.abc import Iterator

from data.document import Bad, ReadRange, Source, is_too_long, too_long
from data.sources.charset import decode_html
from data.sources.compression import blocks, utf8_blocks
from data.sources.records import Records, Window, decoded, whole

MAX_SEPARATOR_BYTES = 64 << 10
"""The longest stretch that a separator, with whatever it looks at before and after itself, may span."""


def text_records(source: Source, piece: ReadRange) -> Records:
    content = utf8_blocks(piece.url)
    if source.split is None:
        yield 0, _text(whole(content))
        return
    for offset, part in _parts(Window(content), re.compile(source.split.encode())):
        yield offset, _text(part)


def html_records(source: Source, piece: ReadRange) -> Records:
    raw = whole(blocks(piece.url))
    yield 0, raw if isinstance(raw, Bad) else {"text": decode_html(raw)}


def _text(raw: bytes | Bad) -> dict[str, str] | Bad:
    try:
        return raw if isinstance(raw, Bad) else {"text": decoded(raw)}
    except Bad as bad:
        return bad


def _parts(window: Window, separator: re.Pattern[bytes]) -> Iterator[tuple[int, bytes | Bad]]:
    """(offset, bytes) of what stands between separators, blank stretches left out.

    A file without any separator is one document even when it is blank. Bytes are split, not characters, so that one
    undecodable byte costs one document rather than the file.
    """
    begin = search = 0
    num_separators = 0
    while (span := _next_separator(window, separator, begin, search)) is not None:
        num_separators += 1
        part = _part(window, begin, span[0])
        if isinstance(part, Bad) or part.strip():
            yield begin, part
        begin = span[1]
        search = begin + (span[0] == span[1])  # an empty match, of a lookahead, must not be found again
        window.drop(max(0, begin - MAX_SEPARATOR_BYTES - window.offset))
    part = _part(window, begin, window.offset + len(window.data))
    if isinstance(part, Bad) or part.strip() or not num_separators:
        yield begin, part


def _part(window: Window, begin: int, stop: int) -> bytes | Bad:
    if is_too_long(stop - begin):
        return too_long()
    return bytes(window.data[begin - window.offset : stop - window.offset])


def _next_separator(window: Window, separator: re.Pattern[bytes], begin: int, search: int) -> tuple[int, int] | None:
    """Begin and end, in the file, of the first separator from `search` on; None where there is none any more.

    The document under way stands at `begin`; when it gets too long it is no longer held.
    """
    while search <= window.offset + len(window.data):
        match = separator.search(window.data, search - window.offset)
        first, last = match.span() if match else (len(window.data) - MAX_SEPARATOR_BYTES, len(window.data))
        found = match is not None
        del match  # the window cannot change while a match looks into it
        beyond = len(window.data) - last  # with that many bytes behind it a longer match is out of the question
        if found and (window.ended or max(beyond, last - first) >= MAX_SEPARATOR_BYTES):
            return window.offset + first, window.offset + last
        if window.ended:
            return None
        search = max(search, window.offset + first)
        if is_too_long(search - begin):
            window.drop(max(0, search - MAX_SEPARATOR_BYTES - window.offset))
        window.more()
    return None
