"""CSV: rows and offsets are compared with those of Python's csv module, and malformed rows are quarantined."""

import csv
import io
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    assert [(d.id, d.text) for d in found.documents] == [
        ("s/1", 'two\nlines, "quoted"'),
        ("s/6", "fine"),
        ("s/7", '"never closed'),
        ("s/8", "gone"),
    ]
    offsets = [sum(map(len, rows[:number])) for number in range(len(rows))]
    assert [(bad.offset, bad.reason.partition(" (")[0]) for bad in found.bad] == [
        (offsets[2], "malformed CSV: 3 fields where the header has 2"),
        (offsets[3], "malformed CSV: 1 fields where the header has 2"),
        (offsets[5], "not UTF-8: invalid continuation byte 0xe9 at byte 5 of the record"),
        (offsets[6], "malformed CSV: ',' expected after '\"'"),
    ]


def texts_by_id(found: Any) -> dict[str, str]:
    return {document.id.removeprefix("s/"): document.text for document in found.documents}


STRAY = {
    "never closed": ['1\t"To be"', '2\t"or not', "3\tto be", "4\tthat is"],
    "closed in a later row": ['1\t"To be', "2\tor not", '3\tto be"', "4\tthat is"],
    "closed in the next row": ['1\t"To be', '2\tor not"', "3\tto be", "4\tthat is"],
    "at the begin of the row": ["1\tTo be", '"2\tor not', "3\tto be", '4\tthat is"'],
    "a doubled quote between": ['1\t"To be', '2\tor "" not', '3\tto be"', "4\tthat is"],
    "two of them": ['1\t"To be', '2\tor not"', '3\t"to be', '4\tthat is"'],
    "Hindi": ['1\t"सभी मनुष्यों को', "2\tगौरव और", '3\tअधिकारों के"', "4\tमामले में"],
    "Japanese": ['1\t"吾輩は', "2\t猫である", '3\t名前はまだ"', "4\t無い"],
}


@pytest.mark.parametrize("case", STRAY)
@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_a_stray_quote_merges_no_rows(tmp_path: Path, find: Callable, case: str, delimiter: str) -> None:
    """Without a numeric column, a comma says too little: a line of a quoted text may well contain one."""
    lines = [line.replace("\t", delimiter) for line in STRAY[case]]
    first = f"0{delimiter}Here comes a text"
    (tmp_path / "a").write_text("\n".join([f"id{delimiter}text", first, *lines]) + "\n")
    found = find(tmp_path / "a", "csv", id="id", delimiter=delimiter)
    expected = dict(line.split(delimiter) for line in [first, *lines])
    expected = {id: text[1:-1] if text == '"To be"' else text for id, text in expected.items()}
    assert texts_by_id(found) == expected and not found.bad
    found = find(tmp_path / "a", "csv", id="id", delimiter=delimiter, quote=None)
    assert texts_by_id(found) == dict(line.split(delimiter) for line in [first, *lines])


def test_rows_after_a_quote_with_a_wrong_number_of_fields_are_read(tmp_path: Path, find: Callable) -> None:
    rows = ['x,"open', "y,good", 'z,"also, ""good""', 'and two lines"', "w,fine"]
    (tmp_path / "a").write_text("\n".join(["id,text", *rows]))
    found = find(tmp_path / "a", "csv", id="id")
    assert texts_by_id(found) == {"x": '"open', "y": "good", "z": 'also, "good"\nand two lines', "w": "fine"}


def test_texts_of_several_lines_stay_whole(tmp_path: Path, find: Callable) -> None:
    """The second line of the first text has as many commas as a row has delimiters."""
    texts = ["Hello\nDear John, bye", "a\n\nb, c\nd", "one\ttab\nand, more", "x, y\nx, y\nx, y", '"\n"']
    for delimiter, ids in ((",", "12345"), (",", "abcde"), (";", "12345"), ("\t", "12345"), ("\t", "abcde")):
        made = io.StringIO(newline="")
        writer = csv.writer(made, delimiter=delimiter, lineterminator="\n")
        writer.writerows([["id", "text"], *zip(ids, texts, strict=True)])
        (tmp_path / "a").write_text(made.getvalue())
        found = find(tmp_path / "a", "csv", id="id", delimiter=delimiter)
        assert texts_by_id(found) == dict(zip(ids, texts, strict=True)) and not found.bad


@pytest.mark.parametrize("encoding", [None, "shift_jis"])
def test_a_text_of_several_lines_with_an_invalid_byte_is_quarantined_as_a_whole(
    tmp_path: Path, find: Callable, encoding: str | None
) -> None:
    (tmp_path / "a").write_bytes(b'id,text\n1,"one\ntwo"\n2,"begin\ncaf\xff\nend"\n3,three\n')
    found = find(tmp_path / "a", "csv", id="id", encoding=encoding)
    assert texts_by_id(found) == {"1": "one\ntwo", "3": "three"}
    assert [bad.offset for bad in found.bad] == [20]


def test_unenclosed_quotes_show_that_a_file_of_one_column_has_no_quoting(tmp_path: Path, find: Callable) -> None:
    lines = ['He said "no" twice.', '"Twice?', "Yes twice", 'he did"']
    (tmp_path / "a").write_text("\n".join(["text", *lines]))
    assert find(tmp_path / "a", "csv").texts == lines
    (tmp_path / "a").write_text('text\n"He said ""no"" twice."\n"Twice?\nYes"\n')
    assert find(tmp_path / "a", "csv").texts == ['He said "no" twice.', "Twice?\nYes"]


def test_without_quoting_every_quote_and_carriage_return_is_part_of_the_text(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a").write_bytes(b'id\ttext\r\n1\t"a\rb""\r\n\n2\t\n3\tx\ty\n4\t\xff\n5\t"')
    found = find(tmp_path / "a", "csv", id="id", delimiter="\t", quote=None)
    assert texts_by_id(found) == {"1": '"a\rb""', "2": "", "5": '"'}
    assert [bad.reason[:23] for bad in found.bad] == ["malformed CSV: 3 fields", "not UTF-8: invalid star"]


@pytest.mark.parametrize("quote", ["", "''", ",", "\n", " "])
def test_a_quote_that_is_not_one_character_is_an_error(tmp_path: Path, quote: str) -> None:
    (tmp_path / "a").write_text("text\nx\n")
    with pytest.raises(ValueError, match=r"sources\.s\.quote: .* must be one character"):
        check_source(Source(name="s", path=str(tmp_path / "a"), format="csv", quote=quote))
    with pytest.raises(ValueError, match=r"sources\.s\.quote: this field is only for format csv"):
        check_source(Source(name="s", path=str(tmp_path / "a"), format="text", quote=None))


def test_another_quote_can_be_chosen(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a").write_text("id,text\n1,'a, \"b\"\nc'\n")
    assert find(tmp_path / "a", "csv", quote="'").texts == ['a, "b"\nc']


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_many_stray_quotes_are_read_in_linear_time(tmp_path: Path, find: Callable, delimiter: str) -> None:
    rng = random.Random(delimiter)
    texts = [rng.choice(['"', "", '""', 'x"']) + f"text {n}" + rng.choice(["", '"', '""']) for n in range(20_000)]
    lines = [f"{n}{delimiter}{text}" for n, text in enumerate(texts)]
    (tmp_path / "a").write_text("\n".join([f"id{delimiter}text", *lines]))
    started = time.monotonic()
    found = find(tmp_path / "a", "csv", id="id", delimiter=delimiter)
    assert time.monotonic() - started < 20
    assert len(found.records) == 20_000
    assert all("\n" not in text for text in found.texts)


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
