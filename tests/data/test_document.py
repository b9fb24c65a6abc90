"""Readers: what becomes a document, what goes to quarantine and where it says it stood."""

import bz2
import gzip
import io
import json
import lzma
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.document import (
    Document,
    Quarantined,
    ReadRange,
    Source,
    check_source,
    check_sources,
    content_id,
    is_damage,
    pick,
    plan_ranges,
    read,
    unit_hash,
)


def read_all(source: Source, range_bytes: int = 1 << 20) -> list[Document | Quarantined]:
    return [record for piece in plan_ranges([source], range_bytes) for record in read(source, piece)]


def texts(records: list[Document | Quarantined]) -> list[str]:
    return [record.text for record in records if isinstance(record, Document)]


def quarantined(records: list[Document | Quarantined]) -> list[Quarantined]:
    return [record for record in records if isinstance(record, Quarantined)]


def write_jsonl(path: Path, records: list[object]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_an_id_depends_on_the_source_and_the_text_and_not_on_the_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    (tmp_path / "moved").mkdir()
    write_jsonl(tmp_path / "moved/x.jsonl", [{"text": "two"}])
    write_jsonl(tmp_path / "moved/y.jsonl", [{"text": "one"}])
    here = read_all(Source(name="s", path=str(tmp_path / "a.jsonl"), format="jsonl"))
    there = read_all(Source(name="s", path=str(tmp_path / "moved/*.jsonl"), format="jsonl"))
    assert {r.id for r in here} == {r.id for r in there} == {content_id("s", "one"), content_id("s", "two")}
    assert content_id("s", "one") != content_id("t", "one")


def test_bad_jsonl_records_are_quarantined_with_their_offset_and_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "broken',
        b'{"text": "caf\xe9"}',
        b'{"other": 1}',
        b'{"text": 7}',
        b'["text"]',
        b'{"text": "\\ud800"}',
        b"",
        b'{"text": "last"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    records = read_all(Source(name="s", path=str(path), format="jsonl"))
    assert texts(records) == ["good", "last"]
    bad = quarantined(records)
    content = path.read_bytes()
    assert [content[record.offset :].split(b"\n")[0] for record in bad] == lines[1:7]
    expected = ["malformed JSON", "not UTF-8", "missing value", "must be a string, not int", "JSON object", "surrogate"]
    assert [part in record.reason for part, record in zip(expected, bad, strict=True)] == [True] * 6
    assert all(record.source == "s" and record.file.endswith("a.jsonl") for record in bad)


@pytest.mark.parametrize("range_bytes", [1, 2, 7, 16, 50, 1000])
def test_ranges_of_any_size_read_every_line_once_in_order(tmp_path: Path, range_bytes: int) -> None:
    words = ["a" * n for n in (1, 30, 2, 0, 55, 3)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": word}) for word in words) + "\n\n")
    source = Source(name="s", path=str(path), format="jsonl")
    assert texts(read_all(source, range_bytes)) == words


def test_parquet_ranges_of_row_groups_read_every_row_once_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"row {n}" if n != 6 else None for n in range(10)]
    pq.write_table(pa.table({"body": rows, "n": list(range(10))}), path, row_group_size=2)
    source = Source(name="s", path=str(path), format="parquet", text="body", id="n", metadata=["n"])
    for range_bytes in (1, path.stat().st_size // 2, 1 << 20):
        records = read_all(source, range_bytes)
        assert texts(records) == [row for row in rows if row]
        assert [(bad.offset, bad.reason) for bad in quarantined(records)] == [(6, "body: missing value")]
    first = records[0]
    assert isinstance(first, Document) and first.id == "s/0" and first.metadata == {"n": 0}


def test_a_text_file_is_one_document_or_split_by_a_rule_and_a_bad_byte_costs_only_its_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("first\nstill\n\n\nsecond \xe9\n\nthird".encode("latin-1"))
    (bad,) = read_all(Source(name="s", path=str(path), format="text"))
    assert isinstance(bad, Quarantined) and "not UTF-8" in bad.reason
    records = read_all(Source(name="s", path=str(path), format="text", split=r"\n\s*\n"))
    assert texts(records) == ["first\nstill", "third"]
    assert [record.offset for record in quarantined(records)] == [14]


def test_json_files_hold_an_array_or_an_object_of_records(tmp_path: Path) -> None:
    talk = {"turns": [[{"say": "hi"}, {"say": "there"}], [{"say": "yes"}]]}
    (tmp_path / "object.json").write_text(json.dumps({"k1": talk, "k2": 5}))
    source = Source(name="s", path=str(tmp_path / "object.json"), format="json", text="turns[][].say", id="$key")
    records = read_all(source)
    assert [(r.id, r.text) for r in records if isinstance(r, Document)] == [("s/k1", "hi\nthere\nyes")]
    assert [(bad.offset, bad.reason) for bad in quarantined(records)] == [(1, "a record must be a JSON object")]
    (tmp_path / "array.json").write_text(json.dumps([{"text": "x"}]))
    assert texts(read_all(Source(name="s", path=str(tmp_path / "array.json"), format="json"))) == ["x"]


def test_files_inside_a_zip_are_read_in_place(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("pkg/a.jsonl", '{"text": "one"}\n')
        archive.writestr("pkg/b.jsonl", '{"text": "two"}\n')
    source = Source(name="s", path=f"zip://pkg/*.jsonl::file://{tmp_path}/w.whl", format="jsonl")
    check_source(source)
    assert texts(read_all(source)) == ["one", "two"]


def test_a_truncated_archive_loses_its_end_and_says_so(tmp_path: Path) -> None:
    whole = gzip.compress(noise_lines(2000))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    records = read_all(Source(name="s", path=str(tmp_path / "a.jsonl.gz"), format="jsonl"))
    assert 100 < len(texts(records)) < 2000
    assert [record.reason.partition(",")[0] for record in quarantined(records)] == ["damaged file"]


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
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressed_file_is_read_whole_however_small_the_ranges(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(COMPRESSORS[name](noise_lines(2000)))
    records = read_all(Source(name="s", path=str(tmp_path / name), format="jsonl"), range_bytes=1000)
    assert len(texts(records)) == len(records) == 2000


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_flipped_byte_is_damage_that_a_run_sets_aside_and_the_check_lets_pass(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "z.jsonl", [{"text": "whole"}])
    content = bytearray(COMPRESSORS[name](noise_lines(2000)))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / name).write_bytes(content)
    source = Source(name="s", path=str(tmp_path / "*"), format="jsonl")
    check_sources([source])
    records = read_all(source)
    assert "whole" in texts(records)
    assert any("damaged file" in bad.reason for bad in quarantined(records))


def test_an_error_of_zstd_is_damage_and_one_of_the_network_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("zstandard")
    monkeypatch.setattr(library, "ZstdError", type("ZstdError", (Exception,), {}), raising=False)
    monkeypatch.setitem(sys.modules, "zstandard", library)
    assert is_damage(library.ZstdError("corrupted block"))
    assert not is_damage(TimeoutError()) and not is_damage(OSError("no route to the bucket"))


def test_the_check_lets_pass_what_is_truncated_or_no_parquet_when_other_files_can_be_read(tmp_path: Path) -> None:
    whole = gzip.compress(noise_lines(150))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    check_source(Source(name="s", path=str(tmp_path / "a.jsonl.gz"), format="jsonl"))
    (tmp_path / "a.parquet").write_bytes(b"no parquet" * 100)
    source = Source(name="s", path=str(tmp_path / "*.parquet"), format="parquet")
    with pytest.raises(ValueError, match="no readable parquet record at the start of .*a.parquet"):
        check_source(source)
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    check_source(source)
    records = read_all(source, range_bytes=10)
    assert texts(records) == ["x"] and ["unreadable Parquet" in bad.reason for bad in quarantined(records)] == [True]


def test_a_lone_surrogate_anywhere_in_a_record_is_quarantined_with_its_column(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "id": "1", "meta": {"by": ["x"]}}',
        '{"text": "b", "id": "2", "meta": {"by": ["\\ud800"]}}',
        '{"text": "c", "id": "3", "meta": {"\\udfff": 1}}',
        '{"text": "d", "id": "\\ud800", "meta": 1}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    records = read_all(
        Source(name="s", path=str(tmp_path / "a.jsonl"), format="jsonl", id="id", metadata=["meta"]),
    )
    assert texts(records) == ["a"]
    columns = [bad.reason.partition(": lone surrogate")[0] for bad in quarantined(records)]
    assert columns == ["meta", "meta", "id"]


def test_a_damaged_parquet_row_group_is_quarantined_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{n} " * 50 for n in range(400)]}), path, row_group_size=100, compression="zstd")
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    assert start is not None
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    records = read_all(Source(name="s", path=str(path), format="parquet"))
    assert len(texts(records)) == 300
    assert [(bad.offset, "unreadable Parquet" in bad.reason) for bad in quarantined(records)] == [(200, True)]


def test_pick_prefers_a_literal_name_and_walks_objects_and_lists() -> None:
    record = {"a.b": 1, "a": {"b": 2, "c": [{"d": 3}, {"d": 4}, {}]}}
    assert pick(record, "a.b") == 1
    assert pick(record, "a.c[].d") == [3, 4, None]
    assert pick(record, "a.x") is None and pick(record, "a.b.c") is None and pick(record, "a.b[]") is None


def test_a_missing_column_is_an_error_before_any_work_with_the_nearest_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"texts": "x", "n": 1}])
    with pytest.raises(ValueError, match=r"sources\.s: column 'text' .* did you mean 'texts'\? \(present: texts, n\)"):
        check_source(Source(name="s", path=str(tmp_path / "a.jsonl"), format="jsonl"))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column 'text' is in none"):
        check_source(Source(name="s", path=str(tmp_path / "a.parquet"), format="parquet"))
    with pytest.raises(ValueError, match="column 'lang' is in none"):
        check_source(
            Source(name="s", path=str(tmp_path / "a.parquet"), format="parquet", text="body", metadata=["lang"])
        )


def test_contradictory_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    text = Source(name="s", path=str(tmp_path / "a.txt"), format="text")
    check_sources([text])
    with pytest.raises(ValueError, match="matches no file"):
        check_source(Source(name="s", path=str(tmp_path / "none*.txt"), format="text"))
    with pytest.raises(ValueError, match=r"sources\.s\.metadata: a text file has no columns"):
        check_source(Source(name="s", path=text.path, format="text", metadata=["title"]))
    with pytest.raises(ValueError, match="no regular expression"):
        check_source(Source(name="s", path=text.path, format="text", split="("))
    with pytest.raises(ValueError, match="empty string"):
        check_source(Source(name="s", path=text.path, format="text", split="x*"))
    with pytest.raises(ValueError, match="fraction: 0 must be above 0"):
        check_source(Source(name="s", path=text.path, format="text", fraction=0))
    with pytest.raises(ValueError, match="stands twice"):
        check_sources([text, text])
    with pytest.raises(ValueError, match="no readable jsonl record"):
        check_source(Source(name="s", path=text.path, format="jsonl"))


def test_unit_hash_is_even_and_independent_between_purposes() -> None:
    values = [(unit_hash(str(n), "split"), unit_hash(str(n), "fraction")) for n in range(4000)]
    assert abs(sum(a < 0.25 for a, _ in values) / 4000 - 0.25) < 0.03
    assert abs(sum(a < 0.5 and b < 0.5 for a, b in values) / 4000 - 0.25) < 0.03


def test_a_range_past_the_end_of_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    source = Source(name="s", path=str(tmp_path / "a.jsonl"), format="jsonl")
    assert list(read(source, ReadRange(0, source.path, 0, 100, 0))) == []
