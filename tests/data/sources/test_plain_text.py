"""Text and HTML files: how they are split into documents and decoded."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import data.document
import data.sources.compression
import data.sources.plain_text
from data.sources.charset import decode_html


def test_a_text_file_is_one_document_or_several_and_an_invalid_byte_affects_only_one(
    tmp_path: Path, find: Callable
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("first\r\nstill\n\n\nsecond \xe9\n\nthird".encode("latin-1"))
    (bad,) = find(path, "text").records
    assert bad.reason == "not UTF-8: invalid continuation byte 0xe9 at byte 22 of the record"
    found = find(path, "text", split=r"\n\s*\n")
    assert found.texts == ["first\r\nstill", "third"]
    assert [record.offset for record in found.bad] == [15]
    assert [document.offset for document in found.documents] == [0, 25]


def pieces(content: bytes, separator: bytes) -> list[tuple[int, str]]:
    """Split the complete content with `re.finditer`. Returns (offset, text) of each document."""
    found = list(re.finditer(separator, content))
    spans = zip([0, *(m.end() for m in found)], [*(m.start() for m in found), len(content)], strict=True)
    parts = [(start, content[start:stop].decode()) for start, stop in spans]
    return [part for part in parts if part[1].strip() or not found]


@pytest.mark.parametrize("separator", [r"\n\s*\n", r"\n(?=C)", r"(?m)^C.*$", r"(?<=b)\n|--+", r"\A\w", "(?=C)"])
@pytest.mark.parametrize("block_bytes", [1, 7, 64])
def test_a_file_is_split_as_by_re_finditer_for_any_block_size(
    tmp_path: Path, find: Callable, separator: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(block_bytes)
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(data.sources.plain_text, "MAX_SEPARATOR_BYTES", 40)
    for _ in range(30):
        content = "".join(random.choice("abC\n\n -") for _ in range(random.randrange(200))).encode()
        (tmp_path / "a.txt").write_bytes(content)
        found = find(tmp_path / "a.txt", "text", split=separator)
        assert [(d.offset, d.text) for d in found.documents] == pieces(content, separator.encode())


def test_a_document_over_the_limit_is_quarantined(
    tmp_path: Path, find: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", 32)
    monkeypatch.setattr(data.sources.plain_text, "MAX_SEPARATOR_BYTES", 8)
    (tmp_path / "a.txt").write_text("a\n\n" + "b" * 1000 + "\n\nc\n\n" + "d" * 1000)
    found = find(tmp_path / "a.txt", "text", split=r"\n\n")
    assert found.texts == ["a", "c"]
    assert [(bad.offset, bad.reason) for bad in found.bad] == [
        (3, "record longer than 100 bytes"),
        (1008, "record longer than 100 bytes"),
    ]
    assert [bad.offset for bad in find(tmp_path / "a.txt", "text").bad] == [0]


def test_an_empty_text_file_is_an_empty_document(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    assert find(tmp_path / "a.txt", "text").texts == [""]
    assert find(tmp_path / "a.txt", "text", split="\n").texts == [""]


PAGES = {
    "utf-8 said by nobody": ("<p>naïve Ж</p>".encode(), None, "<p>naïve Ж</p>"),
    "no utf-8 and said by nobody": (b"<p>na\xefve \x93x\x94</p>", None, "<p>naïve “x”</p>"),
    "a mark goes before all": (b"\xef\xbb\xbf<meta charset=koi8-r>\xc3\xaf", "cp1251", "<meta charset=koi8-r>ï"),
    "utf-16 by its mark": ("\ufeff<p>Ж</p>".encode("utf-16-le"), None, "<p>Ж</p>"),
    "meta charset": (b"<meta charset='windows-1251'>\xc6", None, "<meta charset='windows-1251'>Ж"),
    "meta http-equiv": (
        b'<META http-equiv=content-type content="text/html; charset=Shift_JIS">\x83A',
        None,
        '<META http-equiv=content-type content="text/html; charset=Shift_JIS">ア',
    ),
    "the transport goes before the page": (b"<meta charset=koi8-r>\xc6", "windows-1251", "<meta charset=koi8-r>Ж"),
    "latin-1 is windows-1252 on the web": (b"<meta charset=iso-8859-1>\x80", None, "<meta charset=iso-8859-1>€"),
    "a meta in a comment is none": (
        "<!-- <meta charset=koi8-r> -->Ж".encode(),
        None,
        "<!-- <meta charset=koi8-r> -->Ж",
    ),
    "utf-16 in ascii is utf-8": ("<meta charset=utf-16>Ж".encode(), None, "<meta charset=utf-16>Ж"),
    "xml declaration": (
        b"<?xml version='1.0' encoding='koi8-r'?>\xf6",
        None,
        "<?xml version='1.0' encoding='koi8-r'?>Ж",
    ),
    "no encoding of the web": ("<meta charset=idna>Ж".encode(), "hex", "<meta charset=idna>Ж"),
    "broken bytes as in a browser": (b"<meta charset=utf-8>a\xffb", None, "<meta charset=utf-8>a\ufffdb"),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_decoded_as_html5_specifies(name: str) -> None:
    raw, transport, text = PAGES[name]
    assert decode_html(raw, transport) == text


def test_an_html_file_is_one_page(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a.html").write_bytes(b"<meta charset=koi8-r>\n\xf6\r\n")
    assert find(tmp_path / "a.html", "html").texts == ["<meta charset=koi8-r>\nЖ\r\n"]
