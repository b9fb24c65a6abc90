"""What a reader yields, and the bounds that hold for every format.

A reader takes a source and a range of one of its files and yields `(offset, record)` for every record: a dict of its
columns, a `BadRecord` for quarantine, or a `NotText` that holds no text. It reads blocks and holds at most one record
at a time, so that it can read a file larger than memory and one with a giant line.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from data.document import BadRecord, is_too_long, too_long_error


class NotText(Exception):
    """A record whose purpose is not its text, such as a crawler's request; the message is its kind."""


Records = Iterator[tuple[int, "dict[str, Any] | BadRecord | NotText"]]


def decode_utf8(raw: bytes | bytearray) -> str:
    """UTF-8 text without a byte order mark. Raises BadRecord that names the first byte that is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `error.object` is `raw` without the byte order mark.
        position = error.start + len(raw) - len(error.object)
        raise BadRecord(f"not UTF-8: {error.reason} 0x{raw[position]:02x} at byte {position} of the record") from error


def join_blocks(blocks: Iterable[bytes]) -> bytes | BadRecord:
    """All blocks as one record."""
    held: list[bytes] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if is_too_long(size):
            return too_long_error()
    return b"".join(held)


def split_lines(blocks: Iterable[bytes], offset: int = 0, stop: int = -1) -> Iterator[tuple[int, bytes | BadRecord]]:
    """(offset, line with its end) of every line that begins before `stop` (-1: no bound); the first is at `offset`."""
    held: list[bytes] = []
    start = position = offset  # of the current line, and of the next byte
    for block in blocks:
        first = 0
        while end := block.find(b"\n", first) + 1:
            held.append(block[first:end])
            position += end - first
            yield start, _joined(held, position - start)
            held, start, first = [], position, end
            if 0 <= stop <= start:
                return
        position += len(block) - first
        if not is_too_long(position - start):
            held.append(block[first:])
        elif 0 <= stop <= position:
            break  # the next line belongs to another range
        else:
            held = []
    if position > start:
        yield start, _joined(held, position - start)


def _joined(held: list[bytes], size: int) -> bytes | BadRecord:
    return too_long_error() if is_too_long(size) else b"".join(held)


class Buffer:
    """The part of a stream of blocks that a parser holds: it grows at its end and shrinks at its start."""

    def __init__(self, blocks: Iterable[bytes], offset: int = 0):
        self._blocks = iter(blocks)
        self.data = bytearray()
        self.offset = offset
        """Position in the stream of the first byte of `data`."""
        self.ended = False
        """Whether `data` is known to reach the end of the stream."""

    def more(self) -> bool:
        """Append a block; False at the end of the stream."""
        block = next(self._blocks, None)
        self.ended = block is None
        self.data += block or b""
        return not self.ended

    def reach(self, size: int) -> bool:
        """Grow to `size` bytes; False when the stream ends before."""
        while len(self.data) < size:
            if not self.more():
                return False
        return True

    def drop(self, size: int) -> None:
        """Forget the first `size` bytes."""
        del self.data[:size]
        self.offset += size

    def skip(self, size: int) -> bool:
        """Forget `size` bytes without holding them; False when the stream ends before."""
        while size > len(self.data):
            size -= len(self.data)
            self.drop(len(self.data))
            if not self.more():
                return False
        self.drop(size)
        return True

    def find(self, pattern: re.Pattern[bytes], start: int, most: int, overlap: int = 16) -> tuple[int, int] | None:
        """Begin and end of the first match from `start` on; None when none begins within `most` bytes.

        `overlap` is the longest match there can be: one so near the end of the data may grow with the next block.
        """
        position = start
        while True:
            if match := pattern.search(self.data, position):
                return match.span()
            position = max(position, len(self.data) - overlap)
            if position - start > most or not self.more():
                return None
