"""CSV: rows and offsets are compared with those of Python's csv module, and malformed rows are quarantined."""

import csv
import io
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import data.document
import data.sources.compression
from data.document import Source
from data.sources.readers import check_source


def random_field() -> str:
    return "".join(random.choice('ab",;\n\r é\0') for _ in range(random.randrange(9)))


@pytest.mark.parametrize("block_bytes", [1, 3, 50, 1 << 20])
def test_rows_equal_those_of_the_csv_module_for_any_block_size(
    tmp_path: Path, find: Callable, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(block_bytes)
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.csv"
    for number in range(30):
        rows = [[random_field() for _ in "xyz"] for _ in "123"]
        made = io.StringIO(newline="")
        delimiter = ",;\t"[number % 3]
        # Python 3.11 leaves a lone CR unquoted when lines end in LF.
        quoting, end = (csv.QUOTE_MINIMAL, "\r\n") if number % 2 else (csv.QUOTE_ALL, "\n")
        writer = csv.writer(made, delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writerows([["id", "text", "more"], *rows])
        path.write_bytes(made.getvalue().encode())
        found = find(path, "csv", metadata=["id", "more"], delimiter=delimiter)
        assert [[d.metadata["id"], d.text, d.metadata["more"]] for d in found.documents] == rows
        assert not found.bad
        # What is at the offset is the row's first field.
        content = path.read_bytes()
        for document in found.documents:
            rest = io.StringIO(content[document.offset :].decode(), newline="")
            assert next(csv.reader(rest, delimiter=delimiter))[0] == document.metadata["id"]


def test_malformed_rows_are_quarantined_with_their_offset_and_reason(tmp_path: Path, find: Callable) -> None:
    rows = [
        b"\xef\xbb\xbfid,text\r\n",
        b'1,"two\nlines, ""quoted"""\n',
        b"2,too,many\n",
        b"3\n",
        b"\n",
        b"4,caf\xe9\n",
        b'5,"stray" quote\n',
        b"6,fine\n",
        b'7,"never closed\n8,gone',
    ]
    (tmp_path / "a.csv").write_bytes(b"".join(rows))
    found = find(tmp_path / "a.csv", "csv", id="id")
    assert [(d.id, d.text) for d in found.documents] == [("s/1", 'two\nlines, "quoted"'), ("s/6", "fine")]
    offsets = [sum(map(len, rows[:number])) for number in range(len(rows))]
    assert [(bad.offset, bad.reason.partition(" (")[0]) for bad in found.bad] == [
        (offsets[2], "malformed CSV: 3 fields where the header has 2"),
        (offsets[3], "malformed CSV: 1 fields where the header has 2"),
        (offsets[5], "not UTF-8: invalid continuation byte 0xe9 at byte 5 of the record"),
        (offsets[6], "malformed CSV: ',' expected after '\"'"),
        (offsets[8], "malformed CSV: unexpected end of data"),
    ]


def test_a_row_over_the_limit_and_an_unclosed_quote_are_quarantined(
    tmp_path: Path, find: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 100)
    content = "text\nfirst\n" + "x" * 500 + '\nsecond\n"never closed\n' + "line of 17 bytes\n" * 20
    (tmp_path / "a.csv").write_text(content)
    found = find(tmp_path / "a.csv", "csv")
    assert found.texts == ["first", "second"] + ["line of 17 bytes"] * 14
    reason = "record longer than 100 bytes"
    assert [(bad.offset, bad.reason) for bad in found.bad] == [(11, reason), (11 + 501 + 7, reason)]


def test_a_header_that_lacks_or_repeats_a_column_is_an_error(tmp_path: Path, find: Callable) -> None:
    path = tmp_path / "a.csv"
    source = Source(name="s", path=str(path), format="csv")
    path.write_text("id;text\n1;x\n")
    with pytest.raises(ValueError, match="column 'text' is in none .*did you mean 'id;text'"):
        check_source(source)
    path.write_text("text,text\nx,y\n")
    with pytest.raises(ValueError, match="header with two columns 'text'"):
        check_source(source)
    assert [bad.offset for bad in find(path, "csv").bad] == [0]
    path.write_text("text\n")
    with pytest.raises(ValueError, match="no readable csv record"):
        check_source(source)
    path.write_bytes(b"te\xffxt\nx\n")
    assert [bad.reason[:39] for bad in find(path, "csv").bad] == ["header that cannot be read, so the file"]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_the_error_for_another_delimiter_says_how_to_set_it(mark: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"Nr{mark}Text\n1{mark}Erstens, zweitens\n")
    source = Source(name="made", path=str(tmp_path / "a.csv"), format="csv", text="Text")
    with pytest.raises(ValueError, match=re.escape(f"set the source's delimiter: {mark!r}")):
        check_source(source)
    check_source(replace(source, delimiter=mark))
