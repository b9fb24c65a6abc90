"""Reader of the format `csv`, as RFC 4180 defines it.

The first row is a header of column names. A quoted field may span lines, and a quote in it is doubled.
"""

import csv
import sys
from collections.abc import Iterator

from data.document import BadRecord, ReadRange, Source, column_paths, is_too_long, too_long_error
from data.sources.compression import read_utf8_blocks
from data.sources.encodings import file_encoding
from data.sources.records import Records, decode_utf8, split_lines

_OTHER_DELIMITERS = (";", "\t", "|")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def csv_records(source: Source, read_range: ReadRange) -> Records:
    """Yield a record for each row, at the byte offset of its first line. Blank lines are skipped.

    A row with more or fewer fields than the header is a BadRecord. If the header itself cannot be used, the only record
    of the file is a BadRecord for the header.
    """
    csv.field_size_limit(sys.maxsize)  # no limit for this process, because `_LineFeed` limits the length of rows
    encoding = file_encoding(source)
    feed = _LineFeed(split_lines(read_utf8_blocks(read_range.url, encoding=encoding)), encoding)
    header: list[str] = []
    for offset, row in _read_rows(feed, source.delimiter):
        if header and not isinstance(row, BadRecord):
            fits_header = len(row) == len(header)
            yield offset, dict(zip(header, row, strict=True)) if fits_header else _wrong_field_count(row, header)
        elif isinstance(row, BadRecord):
            yield offset, row if header else BadRecord(f"header that cannot be read, so the file was not read: {row}")
            if not header:
                return
        else:
            header = row
            repeated = next((name for name in column_paths(source) if header.count(name) > 1), None)
            if repeated is not None:
                yield offset, BadRecord(f"header with two columns {repeated!r}, so the file was not read")
                return


def _wrong_field_count(row: list[str], header: list[str]) -> BadRecord:
    """Return the BadRecord for a row whose number of fields differs from the header's."""
    # A header of one field that contains another delimiter suggests that the source's delimiter is wrong.
    likely = next((character for character in _OTHER_DELIMITERS if len(header) == 1 and character in header[0]), None)
    remedy = f"; the header looks separated by {likely!r}: set the source's delimiter: {likely!r}" if likely else ""
    return BadRecord(f"malformed CSV: {len(row)} fields where the header has {len(header)}{remedy}")


class _LineFeed:
    """Iterator that gives lines to the csv module and remembers the lines of the current row.

    The csv module asks for as many lines as the row needs. The iterator raises BadRecord if the row becomes too long.
    """

    def __init__(self, lines: Iterator[tuple[int, bytes | BadRecord]], encoding: str):
        self._lines = lines
        self.encoding = encoding
        """Name of the encoding that the lines were converted from."""
        self.begin_row()

    def begin_row(self) -> None:
        """Forget the lines of the previous row. The next line is the first one of a new row."""
        self.row_offset: int | None = None
        """Position in the file of the row's first line. None until this line has been read."""
        self.row_lines: list[bytes] = []
        """The lines of the row that have been read so far."""
        self.row_bytes = 0
        """Total size of these lines."""
        self.is_utf8 = True
        """Whether all of these lines are valid UTF-8."""

    def __iter__(self) -> "_LineFeed":
        return self

    def __next__(self) -> str:
        offset, line = next(self._lines)
        if self.row_offset is None:
            self.row_offset = offset
        if isinstance(line, BadRecord):
            raise line
        if offset == 0:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        self.row_bytes += len(line)
        if is_too_long(self.row_bytes):
            raise too_long_error()
        self.row_lines.append(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.is_utf8 = False
            # The row becomes a BadRecord, but the csv module still needs the line to find the end of the row.
            return line.decode(errors="surrogateescape")


def _read_rows(feed: _LineFeed, delimiter: str) -> Iterator[tuple[int, list[str] | BadRecord]]:
    """Yield (offset, fields) of every row that is not blank; a BadRecord takes the place of malformed fields."""
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin_row()
        try:
            row: list[str] | BadRecord = next(reader)
            if not feed.is_utf8:
                decode_utf8(b"".join(feed.row_lines), feed.encoding)  # raises a BadRecord
        except StopIteration:
            return
        except csv.Error as error:
            row = BadRecord(f"malformed CSV: {error}")
        except BadRecord as bad:
            row = bad
        if row:  # An empty list is a blank row.
            assert feed.row_offset is not None
            yield feed.row_offset, row
