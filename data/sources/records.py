"""What the readers of all formats yield (`Records`), and the functions that they share.

A reader is a function of a source and a range of one of its files. It yields `(offset, record)` for every record in
the range. A record is a dict of its columns, a `BadRecord` that goes to quarantine, or a `NotADocument`. A reader keeps
only one record in memory, and no record above `MAX_RECORD_BYTES`. So it can read files that are larger than memory.
Only the reader of Parquet is different: it keeps a batch of rows of about 8 MiB, and a row of any size.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from data.document import BadRecord, is_too_long, too_long_error


class NotADocument(Exception):
    """Yielded for a record that should not become a document, such as a crawler's request.

    The exception's message is the kind of the record (`SkippedRecord.kind`).
    """


Records = Iterator[tuple[int, "dict[str, Any] | BadRecord | NotADocument"]]
"""(offset, record) of every record. `Quarantined.offset` defines, for each format, what the offset counts."""


def decode_utf8(raw: bytes | bytearray, encoding: str = "utf-8") -> str:
    """Decode UTF-8 and remove a byte order mark. Raises BadRecord that names the first byte that is not UTF-8.

    `encoding` is the encoding of the file that the bytes were converted from (`read_utf8_blocks`).
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise BadRecord(f"not {encoding}: the record contains bytes that are no character") from error
        # `error.object` is `raw` without the byte order mark.
        position = error.start + len(raw) - len(error.object)
        raise BadRecord(f"not UTF-8: {error.reason} 0x{raw[position]:02x} at byte {position} of the record") from error


def join_blocks(blocks: Iterable[bytes]) -> bytes | BadRecord:
    """Join all blocks to one record. Returns a BadRecord as soon as the record is too long."""
    joined_blocks: list[bytes] = []
    num_bytes = 0
    for block in blocks:
        joined_blocks.append(block)
        num_bytes += len(block)
        if is_too_long(num_bytes):
            return too_long_error()
    return b"".join(joined_blocks)


def split_lines(blocks: Iterable[bytes], offset: int = 0, stop: int = -1) -> Iterator[tuple[int, bytes | BadRecord]]:
    """Yield (position in the file, line) of every line that begins before the position `stop`; -1 means no limit.

    `offset` is the position in the file at which the first block begins. A line includes its line end. A BadRecord
    takes the place of a line that is too long.
    """
    pieces: list[bytes] = []  # the pieces of the current line
    line_start = position = offset  # `position` is where the search for line ends continues
    for block in blocks:
        begin = 0
        while end := block.find(b"\n", begin) + 1:
            pieces.append(block[begin:end])
            position += end - begin
            yield line_start, _join_line(pieces, position - line_start)
            pieces, line_start, begin = [], position, end
            if 0 <= stop <= line_start:
                return
        position += len(block) - begin
        if not is_too_long(position - line_start):
            pieces.append(block[begin:])
        elif 0 <= stop <= position:
            break  # the line is too long, and the next line belongs to the next range
        else:
            pieces = []
    if position > line_start:
        yield line_start, _join_line(pieces, position - line_start)


def _join_line(pieces: list[bytes], num_bytes: int) -> bytes | BadRecord:
    """Join the pieces of a line of `num_bytes`. Returns a BadRecord for a line that is too long."""
    return too_long_error() if is_too_long(num_bytes) else b"".join(pieces)


class Buffer:
    """The part of a stream of blocks that a parser keeps in memory.

    A parser appends blocks at the end of the buffer and drops parsed bytes at its start.
    """

    def __init__(self, blocks: Iterable[bytes], offset: int = 0):
        self._blocks = iter(blocks)
        self.data = bytearray()
        self.offset = offset
        """Position in the stream of the first byte of `data`."""
        self.at_end = False
        """Whether the last read found the end of the stream, so that no bytes follow `data`."""

    def read_block(self) -> bool:
        """Append the next block to `data`. Returns False at the end of the stream."""
        block = next(self._blocks, None)
        self.at_end = block is None
        self.data += block or b""
        return not self.at_end

    def fill(self, num_bytes: int) -> bool:
        """Read blocks until `data` has at least `num_bytes`. Returns False if the stream ends before that."""
        while len(self.data) < num_bytes:
            if not self.read_block():
                return False
        return True

    def drop(self, num_bytes: int) -> None:
        """Remove the first `num_bytes` of `data`."""
        del self.data[:num_bytes]
        self.offset += num_bytes

    def skip(self, num_bytes: int) -> bool:
        """Drop `num_bytes`, which may be more than fit in memory. Returns False if the stream ends before that."""
        while num_bytes > len(self.data):
            num_bytes -= len(self.data)
            self.drop(len(self.data))
            if not self.read_block():
                return False
        self.drop(num_bytes)
        return True

    def find(self, pattern: re.Pattern[bytes], start: int, limit: int, overlap: int = 16) -> tuple[int, int] | None:
        """Find the first match from the position `start` of `data` on. Reads further blocks until there is a match.

        Returns the positions in `data` of the match's begin and end. Returns None if no match begins within about
        `limit` bytes after `start` or before the end of the stream. `overlap` is the greatest length of a match. The
        last `overlap` bytes of `data` are searched again after each block, because a match may continue in the next
        block.
        """
        position = start
        while True:
            if match := pattern.search(self.data, position):
                return match.span()
            position = max(position, len(self.data) - overlap)
            if position - start > limit or not self.read_block():
                return None
