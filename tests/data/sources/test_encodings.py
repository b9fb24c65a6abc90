"""Encodings of the web: every label, byte and pair of bytes agrees with the tables of the WHATWG Encoding Standard.

The digests were computed with decoders that follow the standard's algorithms and read its index files, which are not
part of the project.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data.document
import data.sources.compression
from data.document import BadRecord, Source
from data.sources.charset import decode_html
from data.sources.encodings import _NAMES, convert_to_utf8, decode, find_encoding
from data.sources.readers import check_source, plan_ranges


def digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()[:16]


def test_all_labels_of_the_standard_name_their_encodings() -> None:
    assert len(_NAMES) == 228
    assert digest(f"{label} {name}" for label, name in sorted(_NAMES.items())) == "c5110a593f6a59c9"
    assert find_encoding(' ISO-8859-1"') == "windows-1252"
    assert find_encoding("idna") is None and find_encoding("cp949") is None


SINGLE_BYTE = {
    "ibm866": "3c8cc5cb",
    "iso-8859-2": "a5871b0f",
    "iso-8859-3": "e83895f2",
    "iso-8859-4": "449076e2",
    "iso-8859-5": "9f31ddc0",
    "iso-8859-6": "beba4e6c",
    "iso-8859-7": "71069977",
    "iso-8859-8": "b43535e7",
    "iso-8859-8-i": "b43535e7",
    "iso-8859-10": "282514fb",
    "iso-8859-13": "4426f6d2",
    "iso-8859-14": "f03afb7e",
    "iso-8859-15": "9b58b26d",
    "iso-8859-16": "2de1faef",
    "koi8-r": "fb024345",
    "koi8-u": "896c218a",
    "macintosh": "54112bce",
    "windows-874": "6a2c7940",
    "windows-1250": "03772ed2",
    "windows-1251": "b16600cf",
    "windows-1252": "cc916e51",
    "windows-1253": "e4570135",
    "windows-1254": "4a8e9964",
    "windows-1255": "870c5c5e",
    "windows-1256": "6f6e8626",
    "windows-1257": "d19a4e88",
    "windows-1258": "e79b48db",
    "x-mac-cyrillic": "784db55e",
}


@pytest.mark.parametrize("name", SINGLE_BYTE)
def test_all_256_bytes_are_decoded_as_in_the_standard(name: str) -> None:
    text = decode(bytes(range(256)), name)
    assert hashlib.sha256(text.encode()).hexdigest()[:8] == SINGLE_BYTE[name]


MULTI_BYTE = {
    "big5": "15ab5046a8d49e97",
    "euc-kr": "c9fb7486bf84a854",
    "gb18030": "5de1bb57c43e17f0",
    "gbk": "5de1bb57c43e17f0",
    "shift_jis": "fb2d42b1a887c77c",
    "euc-jp": "3a308f30959f4f0f",
}


@pytest.mark.parametrize("name", MULTI_BYTE)
def test_all_pairs_of_bytes_are_decoded_as_in_the_standard(name: str) -> None:
    pairs = (bytes([lead, trail]) + b"A" for lead in range(0x80, 0x100) for trail in range(0x100))
    assert digest(decode(pair, name) for pair in pairs) == MULTI_BYTE[name]


def test_longer_sequences_are_decoded_as_in_the_standard() -> None:
    triples = (b"\x8f" + bytes([lead, trail]) + b"A" for lead in range(0x80, 0x100) for trail in range(0x80, 0x100))
    assert digest(decode(triple, "euc-jp") for triple in triples) == "eee5a9fef30084ab"
    sequences = (
        bytes([0x81 + n // 12600, 0x30 + n // 1260 % 10, 0x81 + n // 10 % 126, 0x30 + n % 10])
        for n in range(0, 126 * 12600, 17)
    )
    assert digest(decode(sequence, "gb18030") for sequence in sequences) == "5e5d9637e7aa71cb"
    pairs = (bytes([lead, trail]) for lead in range(0x20, 0x80) for trail in range(0x20, 0x80) if trail != 0x1B)
    assert digest(decode(b"\x1b$B" + pair + b"\x1b(B", "iso-2022-jp") for pair in pairs) == "dc3fa49bb8d1b85f"


TEXTS = {
    "shift_jis": (b"\x87\x40\x81\x60\xfb\xfc \xb1", "①～髙 ｱ"),
    "euc-jp": (b"\xad\xa1\xa1\xc1\xfc\xe2 \x8e\xb1", "①～髙 ｱ"),
    "iso-2022-jp": (b"A\x1b$B-!\x1b(J\\\x1b(I1\x1b(B.", "A①¥ｱ."),
    "euc-kr": (b"\x8c\x63\xb9\xe6\xb0\xa2\xc7\xcf", "똠방각하"),
    "big5": (b"\xa1\x45\x87\x7a\xc6\xb5\xa2\x41\xa1\xfe", "‧㡵ⅰ∕／"),
    "gbk": (b"\xe9F\x80\xa2\xa1", "镕€ⅰ"),
    "windows-874": (b"\xa1\x80\xdb", "ก€\ufffd"),
    "koi8-u": (b"\xae\xa4\xb4", "ўєЄ"),
    "iso-8859-8-i": (b"\xf9\xec\xe5\xed", "שלום"),
    "windows-1252": (b"\x93x\x94 \x81", "“x” \x81"),
    "windows-1254": (b"\xfe\x80", "ş€"),
    "x-mac-cyrillic": (b"\xcf\xf0\xff", "ѕр€"),
    "x-user-defined": (b"a\x80\xff", "a\uf780\uf7ff"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_characters_beyond_pythons_codecs_are_decoded(name: str) -> None:
    raw, text = TEXTS[name]
    assert decode(raw, name) == text


LABELLED = {
    "Shift_JIS": ("髙島①", "cp932"),
    "x-sjis": ("～―", "cp932"),
    "EUC-KR": ("똠펲쀍", "cp949"),
    "ks_c_5601-1987": ("믜", "cp949"),
    "Big5": ("、裏碁", "big5hkscs"),
    "GB2312": ("镕€囧", "gb18030"),
    "ISO-8859-1": ("“naïve” – €", "cp1252"),
    "latin1": ("…", "cp1252"),
    "ISO-8859-9": ("şğı €", "cp1254"),
    "TIS-620": ("สวัสดี …", "cp874"),
}


@pytest.mark.parametrize("label", LABELLED)
def test_a_page_is_read_as_browsers_read_its_label(label: str) -> None:
    text, codec = LABELLED[label]
    assert decode_html(f"<meta charset={label}>{text}".encode(codec)) == f"<meta charset={label}>{text}"


def test_invalid_bytes_become_one_sign_each_and_keep_what_follows() -> None:
    assert decode(b"\x81\x20A", "shift_jis") == "\ufffd A"
    assert decode("漢字".encode("cp932")[:3], "shift_jis") == "漢\ufffd"
    assert decode(b"\xc7\xffA\xfe", "euc-kr") == "\ufffdA\ufffd"
    assert decode(b"\x81\x30\x81", "gb18030") == "\ufffd"
    with pytest.raises(BadRecord, match="encoding that browsers do not decode"):
        decode_html(b"<meta charset=hz-gb-2312>~{VPND~}")


@pytest.mark.parametrize("name", ["shift_jis", "gb18030", "big5", "euc-jp", "iso-2022-jp", "windows-1251", "utf-16le"])
@pytest.mark.parametrize("num_bytes", [1, 2, 3, 7, 1 << 20])
def test_blocks_are_converted_without_cutting_a_character(name: str, num_bytes: int) -> None:
    text = "Привет, world\n" * 3 if name == "windows-1251" else '["漢字 2005", "上海"]\n漢字 test, 漢字' * 3
    raw = text.encode({"iso-2022-jp": "iso2022_jp", "windows-1251": "cp1251", "shift_jis": "cp932"}.get(name, name))
    blocks = (raw[start : start + num_bytes] for start in range(0, len(raw), num_bytes))
    assert b"".join(convert_to_utf8(blocks, name)).decode() == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gb18030", "没有空格的句子𠀀"),
        ("big5", "沒有空格的句子"),
        ("shift_jis", "空白のない文章ｱ"),
        ("euc-jp", "空白のない文章ｱ丂"),
        ("euc-kr", "띄어쓰기없는문장"),
        ("windows-1251", "безпробелов"),
    ],
)
@pytest.mark.parametrize("num_bytes", [1, 7, 100])
def test_a_file_without_spaces_and_line_ends_is_converted_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, num_bytes: int
) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 50)
    encoded = (text * 100).encode({"windows-1251": "cp1251"}.get(name, name))
    blocks = [encoded[start : start + num_bytes] for start in range(0, len(encoded), num_bytes)]
    converted = list(convert_to_utf8(iter(blocks), name))
    assert b"".join(converted).decode() == text * 100
    assert max(map(len, converted)) <= 4 * (50 + num_bytes)


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("windows-1252", "naïve “x”"),
        ("windows-1251", "Привет, мир"),
        ("shift_jis", "表示ソ能"),
        ("gbk", "中文，标点"),
        ("utf-16le", "Ж漢"),
        ("utf-8", "Ж"),
    ],
)
def test_files_of_any_encoding_are_read(
    tmp_path: Path, find: Callable, label: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Shift_JIS, the second byte of 表, ソ and 能 is a backslash or a bracket of ASCII."""
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", 5)
    codec = {"shift_jis": "cp932"}.get(label, label)
    contents = {
        "text": f"{text}\n\nb",
        "jsonl": "".join(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in (text, "b")),
        "json": json.dumps([{"text": text}, {"text": "b"}], ensure_ascii=False),
        "csv": f'text\n"{text}"\nb\n',
    }
    for format, content in contents.items():
        (tmp_path / "a").write_bytes(content.encode(codec))
        fields = {"split": r"\n\n"} if format == "text" else {}
        check_source(Source(name="s", path=str(tmp_path / "a"), format=format, encoding=label, **fields))  # type: ignore[arg-type]
        found = find(tmp_path / "a", format, encoding=label, range_bytes=8, **fields)
        assert found.texts == [text, "b"] and not found.bad


def test_a_byte_order_mark_has_priority_over_the_encoding_of_the_source(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffé".encode())
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" + "é".encode("utf-16-le"))
    (tmp_path / "c.txt").write_bytes(b"\xe9")
    assert find(tmp_path / "*.txt", "text", encoding="latin1").texts == ["é", "é", "é"]


def test_only_a_record_with_bytes_that_are_no_character_is_quarantined(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\x8a\xbf"}\n{"text": "\x81\x20"}\n{"text": "\xa0"}\n{"text": "b"}\n')
    found = find(tmp_path / "a.jsonl", "jsonl", encoding="shift_jis")
    assert found.texts == ["漢", "b"]
    assert [bad.reason for bad in found.bad] == ["not shift_jis: the record contains bytes that are no character"] * 2


def test_the_encoding_of_an_html_source_has_priority_over_the_page(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a.html").write_bytes("<meta charset=windows-1251>Ж".encode())
    assert find(tmp_path / "a.html", "html", encoding="utf-8").texts == ["<meta charset=windows-1251>Ж"]


def test_columns_of_bytes_are_text_in_the_encoding_of_the_source(tmp_path: Path, find: Callable) -> None:
    path = tmp_path / "a.parquet"
    names = pa.array([[b"\xc3\xa9"], [b"b"], []], pa.list_(pa.binary()))
    texts = pa.array(["Ж".encode(), b"\xe9", b"c"], pa.large_binary())
    pq.write_table(pa.table({"text": texts, "names": names}), path)
    found = find(path, "parquet", metadata=["names"])
    assert [(document.text, document.metadata["names"]) for document in found.documents] == [("Ж", ["é"]), ("c", [])]
    assert [(bad.offset, bad.reason) for bad in found.bad] == [
        (1, "text: not utf-8: the value contains bytes that are no character")
    ]
    assert find(path, "parquet", encoding="latin1").texts == ["Ð–", "é", "c"]


@pytest.mark.parametrize(
    ("format", "encoding", "message"),
    [
        ("text", "utf8", None),
        ("text", "windows1251", r"sources\.s\.encoding: 'windows1251' is not the label .* did you mean 'windows-1251'"),
        ("text", "latin-1", "did you mean 'latin1'"),
        ("text", "cp850", "'cp850' is not the label .*; convert the files to UTF-8 first, or choose one of big5, "),
        ("jsonl", "utf-32", "; convert the files to UTF-8 first"),
        ("csv", "hz-gb-2312", "is an encoding that browsers do not decode; convert the files to UTF-8"),
        ("warc", "koi8-r", r"sources\.s\.encoding: the pages of a WARC file say their encoding themselves"),
        ("parquet", "koi8-r", r"sources\.s\.encoding: this field is for columns of bytes"),
    ],
)
def test_an_encoding_that_would_be_wrong_or_ignored_is_an_error(
    tmp_path: Path, format: str, encoding: str, message: str | None
) -> None:
    path = tmp_path / "a"
    pq.write_table(pa.table({"text": ["x"]}), path)
    source = Source(name="s", path=str(path), format=format, encoding=encoding)  # type: ignore[arg-type]
    if message is None:
        check_source(source)
        return
    with pytest.raises(ValueError, match=message):
        check_source(source)


def test_the_check_suggests_the_encoding_of_files_that_are_not_utf8(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    russian = "Все люди рождаются свободными и равными в своём достоинстве и правах"
    (tmp_path / "a.jsonl").write_bytes(f'{{"text": "{russian}"}}\n'.encode("cp1251"))
    with pytest.raises(ValueError, match="not in UTF-8; set encoding: windows-1251"):
        check_source(Source(name="s", path=str(tmp_path / "a.jsonl"), format="jsonl"))
    (tmp_path / "a.txt").write_bytes(russian.encode("koi8-r"))
    check_source(Source(name="s", path=str(tmp_path / "a.txt"), format="text"))
    assert "not in UTF-8; set encoding: koi8-u" in caplog.text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("windows-1251", "Все люди рождаются свободными"),
        ("shift_jis", "すべての人間は、生まれながらにして自由"),
        ("latin1", "Ünïcödé ist überall schön und größer als äöüß"),
        ("windows-874", "มนุษย์ทั้งหลายเกิดมามีอิสระ"),
    ],
)
@pytest.mark.parametrize("format", ["text", "jsonl", "csv"])
def test_utf8_files_with_another_encoding_in_the_config_are_refused(
    tmp_path: Path, format: str, encoding: str, text: str
) -> None:
    content = {"text": text, "jsonl": f'{{"text": "{text}"}}\n', "csv": f"text\n{text}\n"}[format]
    (tmp_path / "a").write_text(content)
    source = Source(name="s", path=str(tmp_path / "a"), format=format, encoding=encoding)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"sources.s.encoding: {encoding}, but .*a is UTF-8: its first .* characters"):
        check_source(source)
    python_name = {"windows-1251": "cp1251", "windows-874": "cp874", "shift_jis": "cp932"}.get(encoding, encoding)
    (tmp_path / "a").write_bytes(content.replace("、", "").encode(python_name))
    check_source(source)


def test_a_file_that_is_not_utf8_is_one_range(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xe9"}\n' * 100)
    source = Source(name="s", path=str(tmp_path / "a.jsonl"), format="jsonl", encoding="latin1")
    assert [(planned.start, planned.stop) for planned in plan_ranges([source], 100)] == [(0, -1)]
