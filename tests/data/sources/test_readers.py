"""Readers of all formats: ranges, damage, random content, limited memory, and the checks of a source."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import data.document
from cluster.storage import Storage
from data.document import Document, Quarantined, ReadRange, Source, unit_hash
from data.sources.readers import READERS, check_source, check_sources, plan_ranges, read_records


def noise_lines(number: int) -> bytes:
    lines = (json.dumps({"text": f"{n} {unit_hash(str(n), 'noise')}"}) + "\n" for n in range(number))
    return "".join(lines).encode()


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", content)
    return buffer.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl.zip": zipped,
    "a.jsonl.lzma": lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE),
    "a.jsonl.GZ": gzip.compress,
    "a.jsonl.bz2": bz2.compress,
    "a.jsonl.xz": lzma.compress,
    "a.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressed_file_is_read_completely_for_any_ranges(tmp_path: Path, find: Callable, name: str) -> None:
    (tmp_path / name).write_bytes(COMPRESSORS[name](noise_lines(2000)))
    found = find(tmp_path / name, "jsonl", range_bytes=1000)
    assert len(found.texts) == len(found.records) == 2000


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_flipped_byte_is_quarantined_by_a_run_and_is_no_error_of_the_check(
    tmp_path: Path, find: Callable, name: str
) -> None:
    (tmp_path / "z.jsonl").write_text('{"text": "whole"}\n')
    content = bytearray(COMPRESSORS[name](noise_lines(2000)))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / name).write_bytes(content)
    check_sources([Source(name="s", path=str(tmp_path / "*"), format="jsonl")])
    found = find(tmp_path / "*", "jsonl")
    assert "whole" in found.texts
    assert any("damaged file" in bad.reason for bad in found.bad)


@pytest.mark.parametrize("name", ["a.jsonl.GZ", "a.jsonl.xz", "a.jsonl.zst"])
def test_the_end_of_a_truncated_archive_is_one_quarantined_record(tmp_path: Path, find: Callable, name: str) -> None:
    whole = COMPRESSORS[name](noise_lines(20_000))
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    found = find(tmp_path / name, "jsonl")
    assert 5000 < len(found.texts) < 20_000
    assert [bad.reason.partition(":")[0] for bad in found.bad] == [
        "damaged file, unreadable after the record at this offset"
    ]
    assert found.bad[0].offset == found.documents[-1].offset


def test_a_file_without_a_readable_record_is_one_quarantined_record(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip file")
    (bad,) = find(tmp_path / "a.jsonl.gz", "jsonl").bad
    assert bad.offset == 0 and bad.reason.startswith("damaged file, unreadable from here on: ")


def test_the_check_accepts_damaged_files_if_other_files_are_readable(tmp_path: Path, find: Callable) -> None:
    whole = gzip.compress(noise_lines(150))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    check_source(Source(name="s", path=str(tmp_path / "a.jsonl.gz"), format="jsonl"))
    (tmp_path / "a.parquet").write_bytes(b"no parquet" * 100)
    source = Source(name="s", path=str(tmp_path / "*.parquet"), format="parquet")
    with pytest.raises(ValueError, match="no readable parquet record at the start of .*a.parquet.*unreadable Parquet"):
        check_source(source)
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    check_source(source)
    found = find(tmp_path / "*.parquet", "parquet", range_bytes=10)
    assert found.texts == ["x"] and ["unreadable Parquet" in bad.reason for bad in found.bad] == [True]


def test_a_missing_column_is_an_error_that_suggests_the_most_similar_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"texts": "x", "n": 1}\n')
    with pytest.raises(ValueError, match=r"sources\.s: column 'text' .* did you mean 'texts'\? \(present: texts, n\)"):
        check_source(Source(name="s", path=str(tmp_path / "a.jsonl"), format="jsonl"))
    with pytest.raises(ValueError, match="column 'lang' is in none of the first records of this source "):
        check_source(Source(name="s", path=str(tmp_path / "a.jsonl"), format="jsonl", text="texts", metadata=["lang"]))
    (tmp_path / "a.csv").write_text("texts,n\nx,1\n")
    with pytest.raises(ValueError, match=r"sources\.s: column 'text' .* did you mean 'texts'\? \(present: texts, n\)"):
        check_source(Source(name="s", path=str(tmp_path / "a.csv"), format="csv"))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column 'text' is not in the schema of .*a\.parquet \(present: body\)"):
        check_source(Source(name="s", path=str(tmp_path / "a.parquet"), format="parquet"))
    with pytest.raises(ValueError, match=r"column 'lang' is not in the schema of .*a\.parquet"):
        check_source(
            Source(name="s", path=str(tmp_path / "a.parquet"), format="parquet", text="body", metadata=["lang"])
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "none*.txt"}, "matches no file"),
        ({"metadata": ["title"]}, r"sources\.s\.metadata: a text file has no columns"),
        ({"format": "html", "text": "body"}, r"sources\.s\.text: an HTML file has no columns"),
        ({"format": "html", "id": "url"}, r"sources\.s\.id: an HTML file has no columns"),
        ({"split": "("}, "not a valid regular expression"),
        ({"split": "x*"}, "empty string"),
        ({"format": "html", "split": "\n"}, r"split: this field is only for format text, not html"),
        ({"delimiter": ";"}, r"delimiter: this field is only for format csv, not text"),
        ({"format": "csv", "delimiter": ";;"}, "must be one character"),
        ({"format": "csv", "delimiter": '"'}, "must be one character"),
        ({"fraction": 0}, "fraction: 0 must be above 0"),
        ({"format": "jsonl"}, r"no readable jsonl record .* \(malformed JSON: Expecting value"),
        ({"format": "json"}, r"no readable json record .* must be an array or an object"),
        ({"format": "warc"}, r"no readable warc record .* no WARC record begins here"),
    ],
)
def test_contradictory_fields_of_a_source_are_errors(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    values: dict[str, Any] = {"path": "a.txt", "format": "text"} | fields
    with pytest.raises(ValueError, match=message):
        check_sources([Source(**values | {"name": "s", "path": f"{tmp_path}/{values['path']}"})])


def test_two_sources_with_one_name_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    text = Source(name="s", path=str(tmp_path / "a.txt"), format="text")
    check_sources([text])
    with pytest.raises(ValueError, match="is used twice"):
        check_sources([text, text])


def test_a_range_of_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    source = Source(name="s", path=str(tmp_path / "a.jsonl"), format="jsonl")
    assert list(read_records(source, ReadRange(0, source.path, 0, 100, 0))) == []


@pytest.mark.parametrize("format", [format for format in READERS if format not in ("text", "html", "parquet")])
def test_an_empty_file_has_no_records(tmp_path: Path, find: Callable, format: str) -> None:
    for name in ("a", "a.gz", "a.zst"):
        (tmp_path / name).write_bytes(b"")
        assert find(tmp_path / name, format).records == []


def test_ranges_are_planned_without_opening_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        (tmp_path / f"{number:03d}.txt").write_bytes(b"x" * number)
    (tmp_path / "link.txt").symlink_to(tmp_path / "007.txt")
    (tmp_path / "folder.txt").mkdir()
    asked: list[str] = []
    local = fsspec.filesystem("file")
    monkeypatch.setattr(type(local), "exists", lambda *_: asked.append("exists"))
    monkeypatch.setattr(type(local), "open", lambda *_: asked.append("open"))
    ranges = plan_ranges([Source(name="s", path=f"{tmp_path}/*.txt", format="text")], 1 << 20)
    assert [(place.num_bytes, place.start, place.stop) for place in ranges] == [
        *((number, 0, -1) for number in range(300)),
        (7, 0, -1),
    ]
    assert not asked


@pytest.mark.parametrize("range_bytes", [1, 1000, 1500, 2500, 1 << 30])
def test_the_sizes_of_the_ranges_of_a_parquet_file_add_up_to_its_size(tmp_path: Path, range_bytes: int) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"{n} {unit_hash(str(n), 'noise')}" for n in range(130)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=20)
    ranges = plan_ranges([Source(name="s", path=str(path), format="parquet")], range_bytes)
    assert sum(planned.num_bytes for planned in ranges) == path.stat().st_size
    assert range_bytes == 1 << 30 or ranges[-1].stop == 7


# Random and broken files.


def valid_content(format: str, number: int) -> bytes:
    """Return the content of a file with `number` valid records."""
    texts = [f"text {n} " + "x" * (n % 50) for n in range(number)]
    if format == "csv":
        made = io.StringIO(newline="")
        csv.writer(made).writerows([["text"], *([text] for text in texts)])
        return made.getvalue().encode()
    if format == "json":
        return json.dumps([{"text": text} for text in texts]).encode()
    if format == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": texts}), sink, row_group_size=5)
        return sink.getvalue().to_pybytes()
    if format == "warc":
        blocks = [f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{text}".encode() for text in texts]
        head = "WARC/1.1\r\nWARC-Type: response\r\nContent-Length: {}\r\n\r\n"
        return b"".join(head.format(len(block)).encode() + block + b"\r\n\r\n" for block in blocks)
    if format == "jsonl":
        return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    return "\n\n".join(texts).encode()


def corrupt(content: bytes, rng: random.Random) -> bytes:
    """Return the content with some bytes overwritten, removed, repeated or inserted, or with its end removed."""
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice([1, 3, 40]))
    return rng.choice(
        [
            content[:start] + rng.randbytes(stop - start) + content[stop:],
            content[:start] + content[stop:],
            content[:stop] + content[start:],
            content[:start],
            content[:start] + b"\0\xff\xfe\"'{[\n" + content[start:],
        ]
    )


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".bz2", ".xz"])
def test_no_content_raises_an_error_and_offsets_are_ascending(
    tmp_path: Path, find: Callable, format: str, ending: str
) -> None:
    rng = random.Random(f"{format}{ending}")
    pack = COMPRESSORS.get(f"a.jsonl{ending}".replace(".gz", ".GZ"), bytes)
    fields = {"split": "\n\n"} if format == "text" else {}
    path = tmp_path / f"a{ending}"
    for number in range(40 if ending else 120):
        kind = number % 3
        if kind == 0:
            content = rng.randbytes(rng.randrange(300))
        elif kind == 1:
            content = pack(corrupt(valid_content(format, 20), rng))
        else:
            content = corrupt(pack(valid_content(format, 20)), rng)
        path.write_bytes(content)
        found = find(path, format, range_bytes=rng.choice([50, 1 << 20]), **fields)
        offsets = [record.offset for record in found.records]
        assert offsets == sorted(offsets) and all(offset >= 0 for offset in offsets)
        assert all(record.reason for record in found.bad)
        for text in found.texts:
            text.encode()


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "warc", "json"])
def test_inserted_bytes_affect_only_the_records_that_they_touch(tmp_path: Path, find: Callable, format: str) -> None:
    """In a JSON file only earlier records are unaffected, because brackets and quotes separate its records."""
    rng = random.Random(format)
    fields = {"split": "\n\n"} if format == "text" else {}
    content = valid_content(format, 60)
    texts = find_all(tmp_path, find, content, format, fields)
    assert len(texts) == 60
    begins = [content.find(text.encode()) for text in texts]
    ends = [begin + len(text) for begin, text in zip(begins, texts, strict=True)]
    for _ in range(60):
        start = rng.randrange(len(content) // 4, len(content) // 2)
        junk = bytes(rng.choice(b"\0\x80\xff\xc3") for _ in range(12))
        found = find_all(tmp_path, find, content[:start] + junk + content[start + 12 :], format, fields)
        # The bytes that frame a record, such as its brackets, are between the texts of its neighbors.
        before = [text for text, begin in zip(texts, [*begins[1:], len(content)], strict=True) if begin <= start]
        behind = [text for text, end in zip(texts, [0, *ends[:-1]], strict=True) if end >= start + 12]
        assert len(before) > 10 and len(behind) > 10
        assert found[: len(before)] == before
        assert format == "json" or found[-len(behind) :] == behind


def find_all(folder: Path, find: Callable, content: bytes, format: str, fields: dict[str, str]) -> list[str]:
    (folder / "a").write_bytes(content)
    return find(folder / "a", format, **fields).texts


WHOLE = ReadRange(0, "x", 0, -1, 0)


class Endless(io.RawIOBase):
    """A file of `begin`, `size` bytes that repeat `fill`, and `end`. The bytes are created as they are read."""

    def __init__(self, begin: bytes, fill: bytes, size: int, end: bytes):
        self.parts = iter([begin, *([fill * ((1 << 20) // len(fill))] * (size >> 20)), end])

    def read(self, size: int = -1) -> bytes:
        return next(self.parts, b"")


@pytest.mark.parametrize(
    ("format", "begin", "fill", "end", "texts"),
    [
        ("jsonl", b'{"text": "a"}\n{"text": "', b"x", b'"}\n{"text": "b"}\n', ["a", "b"]),
        ("json", b'[{"text": "a"}, {"text": "', b"x", b'"}, {"text": "b"}]', ["a", "b"]),
        ("json", b'[{"text": "a"}, {"m": ["', b'","' + b"k" * 509, b'"], "text": ""}, {"text": "b"}]', ["a", "b"]),
        ("csv", b'text\na\n"', b"x", b'"\nb\n', ["a", "b"]),
        ("text", b"a\n\n", b"x", b"\n\nb", ["a", "b"]),
        ("html", b"<p>", b"x", b"</p>", []),
        ("warc", b"WARC/1.1\r\nWARC-Type: response\r\nContent-Length: 33554432\r\n\r\n", b"x", b"\r\n\r\n", []),
    ],
)
def test_a_record_over_the_limit_is_skipped_with_little_memory(
    format: Any, begin: bytes, fill: bytes, end: bytes, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 1 << 20)
    monkeypatch.setattr(
        "data.sources.compression.open", lambda *_, **__: Endless(begin, fill, 32 << 20, end), raising=False
    )
    source = Source(name="s", path="x", format=format, split="\n\n" if format == "text" else None)
    tracemalloc.start()
    found = list(read_records(source, WHOLE))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [record.text for record in found if isinstance(record, Document)] == texts
    assert [record.reason for record in found if isinstance(record, Quarantined)] == [
        "record longer than 1048576 bytes"
    ]
    assert peak < 12 << 20, f"{peak >> 20} MiB"


def test_an_unclosed_quote_needs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 1 << 20)
    line = b"x" * 1023 + b"\n"
    monkeypatch.setattr(
        "data.sources.compression.open", lambda *_, **__: Endless(b'text\n"', line, 32 << 20, b""), raising=False
    )
    tracemalloc.start()
    kinds = Counter(type(record).__name__ for record in read_records(Source(name="s", path="x", format="csv"), WHOLE))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kinds == {"Quarantined": 1, "Document": 31 << 10}
    assert peak < 12 << 20, f"{peak >> 20} MiB"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "name"),
    [
        *(("broken_off", name) for name in ("a.jsonl.gz", "a.csv", "a.json", "a.parquet", "a.warc", "a.txt")),
        *((fault, "a.jsonl") for fault in ("slow_down", "internal", "dropped", "answer_lost", "broken_off")),
    ],
)
def test_files_on_a_failing_object_store_are_read_completely(s3: str, find: Callable, fault: str, name: str) -> None:
    format: Any = {"txt": "text", "gz": "jsonl"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
    content = valid_content(format, 400)
    url = f"{s3}/{fault}-{name}"
    Storage(s3).write_bytes(f"{fault}-{name}", gzip.compress(content) if name.endswith("gz") else content)
    found = find(f"{s3}/*{name}", format, range_bytes=5000, **({"split": "\n\n"} if format == "text" else {}))
    assert found.texts == [f"text {n} " + "x" * (n % 50) for n in range(400)]
    assert not found.bad and {document.file for document in found.documents} == {url}
