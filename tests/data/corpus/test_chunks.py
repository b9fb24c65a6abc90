"""Chunks: every row is read in its part for any number of chunks, and a chunk has each text once."""

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.storage import Storage
from data.chunk_files import read_table
from data.cleaning.duplicates import ExactDuplicates
from data.corpus.chunks import ChunkWriter, PartRow, clean_rows, part_of_text, read_part_rows
from data.corpus.exact_duplicates import sort_and_deduplicate, text_key
from data.corpus.parts import Part, part_from_rows
from data.corpus.rows import ROW_SCHEMA, Row, to_table
from data.document import Document


def rows(*texts: tuple[str, str], source: str = "s") -> pa.Table:
    """Return a table with a row for each (id, text). Every row has a different file number."""
    return to_table(
        [
            Row(name, source, number, 0, text, "{}", text_key(text, ExactDuplicates()))
            for number, (name, text) in enumerate(texts)
        ]
    )


def test_every_row_of_a_part_is_read_from_any_number_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document(f"s/{n}", f"text number {n}", "s", {}, "f", n) for n in range(50)]
    part_rows = clean_rows(documents, [], fraction=1.0, files={"f": 0}, num_parts=3).rows
    tables: list[list[dict]] = []
    for size in (1 << 20, 100):
        monkeypatch.setattr("data.corpus.chunks._CHUNK_BYTES", size)
        output = Storage(str(tmp_path / f"{size}"))
        writer = ChunkWriter(output, "chunks/a", 3, deduplicate=True)
        for row in part_rows:
            writer.add([row])
        names = writer.close()
        tables.append(
            [row for part in range(3) for row in read_part_rows(output, names, part, deduplicate=True).to_pylist()]
        )
    assert len(names) == 50 and tables[0] == tables[1] and len(tables[0]) == 50
    assert all(part_of_text(row["key"], 3) in (0, 1, 2) for row in tables[0])


def test_a_chunk_has_each_text_once_and_parts_are_the_same_for_any_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are 300 documents with 200 different ids, and 7 different texts in upper and lower case."""
    documents = [
        Document(f"s/{n * 37 % 200:03d}", (str.upper if n % 5 else str)(f"text {n % 7}"), "s", {"n": n % 2}, "f", n)
        for n in range(300)
    ]
    part_rows = clean_rows(documents, [], fraction=1.0, files={"f": 0}, num_parts=3).rows
    parts: list[list[Part]] = []
    for size, order in ((1 << 20, 1), (3000, 1), (1, 1), (3000, -1)):
        monkeypatch.setattr("data.corpus.chunks._CHUNK_BYTES", size)
        output = Storage(str(tmp_path / f"{size}{order}"))
        writer = ChunkWriter(output, "chunks/a", 3, deduplicate=True)
        for row in part_rows[::order]:
            writer.add([row])
        names = writer.close()
        parts.append([part_from_rows(read_part_rows(output, names, part, deduplicate=True)) for part in range(3)])
        chunk = pa.concat_tables([read_table(output, names[:1], part, ROW_SCHEMA) for part in range(3)])
        assert len(chunk) - chunk["text"].null_count == len(set(chunk["key"].to_pylist()))
    assert all(parts_of_run == parts[0] for parts_of_run in parts)
    assert parts[0] == [
        part_from_rows(sort_and_deduplicate(rows_of_part(part_rows, part), deduplicate=True)) for part in range(3)
    ]
    assert sum(part.documents.num_rows for part in parts[0]) == 7


def rows_of_part(rows: list[PartRow], part: int) -> pa.Table:
    return to_table([row for row_part, row in rows if row_part == part])


def test_without_deduplication_equal_texts_are_written_and_kept(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    writer = ChunkWriter(output, "chunks/a", 1, deduplicate=False)
    writer.add([PartRow(0, Row(**row)) for row in rows(("b", "same"), ("a", "same")).to_pylist()])
    table = read_part_rows(output, writer.close(), 0, deduplicate=False)
    assert table["text"].to_pylist() == ["same", "same"] and table["reason"].null_count == 2


def test_a_part_is_read_from_a_chunk_in_two_reads_and_an_empty_part_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Storage(str(tmp_path))
    writer = ChunkWriter(output, "a", 4096, deduplicate=True)
    writer.add([PartRow(7, Row(**row)) for row in rows(("a", "x")).to_pylist()])
    (name,) = writer.close()
    assert (tmp_path / name).stat().st_size < 8 * 4097 + 4000
    reads: list[int] = []
    read = Storage.read_bytes

    def counted(self: Storage, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        reads.append((stop or 0) - (start or 0))
        return read(self, name, start, stop)

    monkeypatch.setattr(Storage, "read_bytes", counted)
    assert read_part_rows(output, [name], 7, deduplicate=True)["text"].to_pylist() == ["x"]
    assert len(reads) == 2 and reads[0] == 16 and reads[1] < 4000
    assert read_part_rows(output, [name], 6, deduplicate=True) == ROW_SCHEMA.empty_table()
    assert reads[2:] == [16]
