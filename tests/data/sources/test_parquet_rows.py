"""Parquet: every row is read exactly once with its number, and damaged row groups are quarantined."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def test_ranges_of_row_groups_read_every_row_exactly_once_with_its_number(tmp_path: Path, find: Callable) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"row {n}" if n != 6 else None for n in range(10)]
    pq.write_table(pa.table({"body": rows, "n": list(range(10))}), path, row_group_size=2)
    for range_bytes in (1, path.stat().st_size // 2, 1 << 20):
        found = find(path, "parquet", range_bytes=range_bytes, text="body", id="n", metadata=["n"])
        assert found.texts == [row for row in rows if row]
        assert [(bad.offset, bad.reason) for bad in found.bad] == [(6, "body: missing value")]
        assert [document.offset for document in found.documents] == [0, 1, 2, 3, 4, 5, 7, 8, 9]
        assert found.documents[0].id == "s/0" and found.documents[0].metadata == {"n": 0}


def test_a_damaged_parquet_row_group_is_quarantined_and_the_others_are_read(tmp_path: Path, find: Callable) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{n} " * 50 for n in range(400)]}), path, row_group_size=100, compression="zstd")
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    assert start is not None
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    found = find(path, "parquet")
    assert len(found.texts) == 300
    assert [(bad.offset, "unreadable Parquet" in bad.reason) for bad in found.bad] == [(200, True)]


def test_a_value_that_is_not_utf8_affects_only_its_row(tmp_path: Path, find: Callable) -> None:
    raw = pa.array([b"a", b"caf\xe9", b"c"], pa.binary())
    # This array shares the bytes of `raw`. A cast would fail, because Arrow checks for valid UTF-8.
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    found = find(tmp_path / "a.parquet", "parquet")
    assert found.texts == ["a", "c"]
    assert [(bad.offset, bad.reason[:16]) for bad in found.bad] == [(1, "unreadable value")]


def test_huge_rows_are_read_in_small_batches(tmp_path: Path, find: Callable) -> None:
    pq.write_table(pa.table({"text": ["x" * (3 << 20)] * 9}), tmp_path / "a.parquet", use_dictionary=False)
    before = pa.total_allocated_bytes()
    pa.default_memory_pool()
    found = find(tmp_path / "a.parquet", "parquet")
    assert [len(text) for text in found.texts] == [3 << 20] * 9
    assert pa.total_allocated_bytes() - before < 16 << 20


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet" * 100])
def test_a_file_that_is_not_parquet_is_quarantined(tmp_path: Path, find: Callable, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    (bad,) = find(tmp_path / "a.parquet", "parquet", range_bytes=10).bad
    assert "unreadable Parquet, file" in bad.reason
