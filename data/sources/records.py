"""What a reader yields, and the bounds that hold for every format.

A reader takes a source and a piece of one of its files and yields `(offset, found)` for every record it meets: a dict
of columns, a `Bad` record for quarantine, or a `NotText` that holds no text at all. It reads blocks, and holds no more
than one record, so that neither a file larger than memory nor one with a giant line breaks it.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from data.document import Bad, is_too_long, too_long


class NotText(Exception):
    """A record that is there for another purpose than its text (a crawler's request); the message is its kind."""


Records = Iterator[tuple[int, "dict[str, Any] | Bad | NotText"]]


def decoded(raw: bytes | bytearray) -> str:
    """UTF-8 text, a byte order mark taken away. Raises `Bad` naming the first byte that is none and where it stands."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `raw` and `error.object` differ by the mark that was taken away.
        place = error.start + len(raw) - len(error.object)
        raise Bad(f"not UTF-8: {error.reason} 0x{raw[place]:02x} at byte {place} of the record") from error


def whole(blocks: Iterable[bytes]) -> bytes | Bad:
    """All blocks as one record."""
    held: list[bytes] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if is_too_long(size):
            return too_long()
    return b"".join(held)


def lines(blocks: Iterable[bytes], offset: int = 0, stop: int = -1) -> Iterator[tuple[int, bytes | Bad]]:
    """(offset, line with its end) of every line that begins before `stop` (-1: the end), the first at `offset`."""
    held: list[bytes] = []
    start = position = offset  # of the line under way, and of the next byte
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
            break  # whatever line comes next is another range's
        else:
            held = []
    if position > start:
        yield start, _joined(held, position - start)


def _joined(held: list[bytes], size: int) -> bytes | Bad:
    return too_long() if is_too_long(size) else b"".join(held)


class Window:
    """The part of a stream of blocks that a parser looks at: it grows at its end and is dropped from its start."""

    def __init__(self, blocks: Iterable[bytes], offset: int = 0):
        self._blocks = iter(blocks)
        self.data = bytearray()
        self.offset = offset
        """Of the first byte of `data`, in the stream."""
        self.ended = False
        """Whether `data` goes to the end of the stream, as far as is known."""

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

        `overlap` is the longest match there can be: what stands that near to the window's end may go on.
        """
        position = start
        while True:
            if match := pattern.search(self.data, position):
                return match.span()
            position = max(position, len(self.data) - overlap)
            if position - start > most or not self.more():
                return None
