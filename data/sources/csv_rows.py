"""CSV as RFC 4180 has it: a header of column names, quoted fields that may span lines, quotes doubled within."""

import csv
import sys
from collections.abc import Iterator

from data.document import BadRecord, ReadRange, Source, column_paths, is_too_long, too_long_error
from data.sources.compression import read_utf8_blocks
from data.sources.records import Records, decode_utf8, split_lines

_OTHER_DELIMITERS = (";", "\t", "|")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def csv_records(source: Source, read_range: ReadRange) -> Records:
    """One record for each row, at the offset of its first line. Blank lines are skipped; rows fit the header."""
    csv.field_size_limit(sys.maxsize)  # for this process; `_LineFeed` bounds the rows
    feed = _LineFeed(split_lines(read_utf8_blocks(read_range.url)))
    header: list[str] = []
    for offset, row in _read_rows(feed, source.delimiter):
        if header and not isinstance(row, BadRecord):
            wrong = len(row) != len(header)
            yield offset, _wrong_field_count(row, header) if wrong else dict(zip(header, row, strict=True))
        elif isinstance(row, BadRecord):
            yield offset, row if header else BadRecord(f"header that cannot be read, so the file was not: {row}")
            if not header:
                return
        else:
            header = row
            doubled = next((name for name in column_paths(source) if header.count(name) > 1), None)
            if doubled is not None:
                yield offset, BadRecord(f"header with two columns {doubled!r}, so the file was not read")
                return


def _wrong_field_count(row: list[str], header: list[str]) -> BadRecord:
    likely = next((mark for mark in _OTHER_DELIMITERS if len(header) == 1 and mark in header[0]), None)
    advice = f"; the header looks separated by {likely!r}: give the source delimiter: {likely!r}" if likely else ""
    return BadRecord(f"malformed CSV: {len(row)} fields where the header has {len(header)}{advice}")


class _LineFeed:
    """The lines for the csv module, which takes as many as a row needs; remembers those of the current row."""

    def __init__(self, numbered: Iterator[tuple[int, bytes | BadRecord]]):
        self._numbered = numbered
        self.begin()

    def begin(self) -> None:
        """A new row begins with the next line."""
        self.offset: int | None = None
        self.raw: list[bytes] = []
        self.size = 0
        self.is_utf8 = True

    def __iter__(self) -> "_LineFeed":
        return self

    def __next__(self) -> str:
        offset, line = next(self._numbered)
        if self.offset is None:
            self.offset = offset
        if isinstance(line, BadRecord):
            raise line
        if offset == 0:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        self.size += len(line)
        if is_too_long(self.size):
            raise too_long_error()
        self.raw.append(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.is_utf8 = False
            return line.decode(errors="surrogateescape")  # its commas and quotes still count


def _read_rows(feed: _LineFeed, delimiter: str) -> Iterator[tuple[int, list[str] | BadRecord]]:
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        try:
            row: list[str] | BadRecord = next(reader)
            if not feed.is_utf8:
                decode_utf8(b"".join(feed.raw))
        except StopIteration:
            return
        except csv.Error as error:
            row = BadRecord(f"malformed CSV: {error}")
        except BadRecord as bad:
            row = bad
        if row:
            assert feed.offset is not None
            yield feed.offset, row
