"""Reader of the format `csv`, as RFC 4180 defines it.

The first row is a header of column names. A quoted field may span lines, and a quote in it is doubled. Many files are
written without any quoting, above all those separated by tabs. There, a text that begins with a quote looks like a
quoted field that goes on to the next quote, in whatever row that is. `_is_merged` recognizes such rows, and they are
read again line by line, with the quote as a part of the text. With `quote: null`, quotes have no meaning at all.
"""

import csv
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from data.document import BadRecord, ReadRange, Source, column_paths, is_too_long, too_long_error
from data.sources.compression import read_utf8_blocks
from data.sources.encodings import file_encoding
from data.sources.records import Records, decode_utf8, split_lines

_OTHER_DELIMITERS = (";", "\t", "|")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"\s*[+-]?\d[\d.,:/-]*\s*")


def csv_records(source: Source, read_range: ReadRange) -> Records:
    """Yield a record for each row, at the byte offset of its first line. Blank lines are skipped.

    A row with more or fewer fields than the header is a BadRecord. If the header itself cannot be used, the only record
    of the file is a BadRecord for the header.
    """
    csv.field_size_limit(sys.maxsize)  # no limit for this process, because `_LineFeed` limits the length of rows
    header: list[str] = []
    for offset, row in _read_rows(source, read_range.url):
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


class _Line(NamedTuple):
    """A line of the file, and the position of its first byte."""

    offset: int
    content: bytes | BadRecord
    """The line with its line end, or a BadRecord for a line that is too long."""


class _LineFeed:
    """Iterator that gives lines to the csv module and remembers the lines of the current row.

    The csv module asks for as many lines as the row needs. The iterator raises BadRecord if the row becomes too long.
    """

    def __init__(self, lines: Iterator[tuple[int, bytes | BadRecord]], encoding: str):
        self._lines = lines
        self._returned: deque[_Line] = deque()
        self.encoding = encoding
        """Name of the encoding that the lines were converted from."""
        self.begin_row()

    def begin_row(self) -> None:
        """Forget the lines of the previous row. The next line is the first one of a new row."""
        self.row_lines: list[_Line] = []
        """The lines of the row that have been read so far."""
        self.row_bytes = 0
        """Total size of these lines."""
        self.is_utf8 = True
        """Whether all of these lines are valid UTF-8."""

    def return_following_lines(self) -> bytes:
        """Give back all lines of the row but the first one, so that they are read again. Returns the first line."""
        self._returned.extendleft(reversed(self.row_lines[1:]))
        del self.row_lines[1:]
        content = self.row_lines[0].content
        assert isinstance(content, bytes), "a row of several lines does not begin with a line that is too long"
        return content

    def __iter__(self) -> "_LineFeed":
        return self

    def __next__(self) -> str:
        offset, content = self._returned.popleft() if self._returned else next(self._lines)
        if offset == 0 and isinstance(content, bytes):
            content = content.removeprefix(_BYTE_ORDER_MARK)
        self.row_lines.append(_Line(offset, content))
        if isinstance(content, BadRecord):
            raise content
        self.row_bytes += len(content)
        if is_too_long(self.row_bytes):
            raise too_long_error()
        try:
            return content.decode()
        except UnicodeDecodeError:
            self.is_utf8 = False
            # The row becomes a BadRecord, but the csv module still needs the line to find the end of the row.
            return content.decode(errors="surrogateescape")


def _read_rows(source: Source, url: str) -> Iterator[tuple[int, list[str] | BadRecord]]:
    """Yield (offset, fields) of every row that is not blank; a BadRecord takes the place of malformed fields."""
    encoding = file_encoding(source)
    feed = _LineFeed(split_lines(read_utf8_blocks(url, encoding=encoding)), encoding)
    if source.quote is None:
        # A generator would end when the feed raises BadRecord, but `map` goes on with the next line.
        reader = map(partial(_split_line, delimiter=source.delimiter), feed)
    else:
        reader = csv.reader(feed, delimiter=source.delimiter, quotechar=source.quote, strict=True)
    quoting = _Quoting(source.delimiter, source.quote) if source.quote else None
    while True:
        feed.begin_row()
        try:
            row: list[str] | BadRecord = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = BadRecord(f"malformed CSV: {error}")
        except BadRecord as bad:
            row = bad
        if quoting and len(feed.row_lines) > 1 and quoting.is_merged(row, feed.row_lines):
            row = _read_literally(feed.return_following_lines(), source.delimiter, feed.encoding)
        else:
            # Only now, because invalid bytes do not show that the row is merged.
            if not (feed.is_utf8 or isinstance(row, BadRecord)):
                row = _check_encoding(row, feed.row_lines, feed.encoding)
            if quoting and row:
                quoting.learn(row, feed.row_lines)
        if row:  # An empty list is a blank row.
            yield feed.row_lines[0].offset, row


def _join_lines(lines: Sequence[_Line]) -> bytes:
    return b"".join(line.content for line in lines if isinstance(line.content, bytes))


def _check_encoding(row: list[str], lines: Sequence[_Line], encoding: str) -> list[str] | BadRecord:
    """Return the row, or a BadRecord if its lines are not all valid in the file's encoding."""
    try:
        decode_utf8(_join_lines(lines), encoding)
    except BadRecord as bad:
        return bad
    return row


def _split_line(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line in which quotes have no meaning. A blank line has no fields."""
    line = line.rstrip("\r\n")
    return line.split(delimiter) if line else []


def _read_literally(line: bytes, delimiter: str, encoding: str) -> list[str] | BadRecord:
    """Return the fields of a line in which quotes have no meaning, or a BadRecord if it is not valid."""
    try:
        return _split_line(decode_utf8(line, encoding), delimiter)
    except BadRecord as bad:
        return bad


class _Quoting:
    """What the rows of a file up to now say about its quotes."""

    def __init__(self, delimiter: str, quote: str):
        self.delimiter, self.quote = delimiter, quote
        self._quote_bytes = quote.encode()
        self.num_fields = 0
        """Number of fields of the header. 0 before the header."""
        self.last_row: list[str] = []
        """The last row that has as many fields as the header."""
        self.has_quoted_fields = False
        """Whether a field was enclosed in quotes."""
        self.has_bare_quotes = False
        """Whether a field that is not enclosed contained a quote, which RFC 4180 does not allow."""

    def learn(self, row: list[str] | BadRecord, lines: Sequence[_Line]) -> None:
        """Take note of a row, which is not merged, and of its lines."""
        if isinstance(row, BadRecord):
            return
        self.num_fields = self.num_fields or len(row)
        if len(row) == self.num_fields:
            self.last_row = row
        line = lines[0].content
        if len(lines) > 1 or isinstance(line, BadRecord) or not (num_in_file := line.count(self._quote_bytes)):
            return
        is_bare = num_in_file == sum(field.count(self.quote) for field in row)
        self.has_bare_quotes |= is_bare
        self.has_quoted_fields |= not is_bare

    def is_merged(self, row: list[str] | BadRecord, lines: Sequence[_Line]) -> bool:
        """Return whether a row of several lines is several rows, merged by a quote that is part of a text.

        This is so if it is no valid row of this file, or if each of its lines is one. A line of a quoted text may by
        chance have as many delimiters as a row. So it only counts as a row if the delimiter is a tab, which texts
        hardly contain, or if it has numbers in the columns in which the last row has numbers. In a file of one column
        each line of a quoted text looks like a row. There, only unenclosed quotes before this row show that the file is
        written without quoting, and a text that is too long for a record stays one record.
        """
        if self.has_bare_quotes and not self.has_quoted_fields:
            return True
        if isinstance(row, BadRecord):
            return self.num_fields != 1 or not is_too_long(len(_join_lines(lines)))
        if len(row) != (self.num_fields or len(row)):
            return True
        if self.num_fields < 2 or not self._is_row(lines[-1], ()):
            return False
        numbers = [index for index, field in enumerate(self.last_row) if _NUMBER.fullmatch(field)]
        if not numbers and self.delimiter != "\t":
            return False
        return all(self._is_row(line, numbers) for line in lines)

    def _is_row(self, line: _Line, numbers: Sequence[int]) -> bool:
        """Return whether a line has as many fields as a row, with numbers in the fields at the positions `numbers`."""
        fields = self._fields_of_line(line)
        return len(fields) == self.num_fields and all(_NUMBER.fullmatch(fields[index]) for index in numbers)

    def _fields_of_line(self, line: _Line) -> list[str]:
        """Return the fields of a line by itself. A quote that is not closed is part of the text."""
        assert isinstance(line.content, bytes), "a line that is too long makes the row a BadRecord"
        text = line.content.decode(errors="replace")
        if self.quote not in text:
            return _split_line(text, self.delimiter)
        try:
            return next(csv.reader([text], delimiter=self.delimiter, quotechar=self.quote, strict=True), [])
        except csv.Error:
            return _split_line(text, self.delimiter)
