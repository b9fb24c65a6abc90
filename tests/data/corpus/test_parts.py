"""Parts: the order of rows, what meets in them, and the arithmetic of a mixture."""

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.storage import Storage
from data.corpus.deduplication import text_key
from data.corpus.parts import (
    DOCUMENT_SCHEMA,
    ROW_SCHEMA,
    ChunkWriter,
    Part,
    bytes_by_source,
    clean_rows,
    gather,
    mix,
    mixture_shares,
    part_of_text,
    read_part,
    settle,
    to_part,
    write_part,
)
from data.corpus.slices import read_tables
from data.document import Document, unit_hash


def rows(*texts: tuple[str, str], source: str = "s") -> pa.Table:
    """A table of (id, text), each in a file of its own."""
    made = [
        {"id": own, "source": source, "text": text, "metadata": "{}", "key": text_key(text), "file": n, "offset": 0}
        for n, (own, text) in enumerate(texts)
    ]
    return pa.Table.from_pylist(made, schema=ROW_SCHEMA)


def test_of_equal_texts_the_lowest_id_is_kept_and_the_others_name_it() -> None:
    table = settle(rows(("c", "Same  text"), ("a", "same text"), ("b", "other"), ("d", "SAME TEXT")), deduplicate=True)
    found = [(row["id"], row["reason"], row["kept_id"]) for row in table.to_pylist()]
    assert found == [
        ("a", None, None),
        ("b", None, None),
        ("c", "exact_duplicates", "a"),
        ("d", "exact_duplicates", "a"),
    ]
    assert [row["text"] for row in table.to_pylist()] == ["same text", "other", None, None]


def test_documents_of_one_id_stay_apart_unless_their_texts_are_equal() -> None:
    table = settle(rows(("a", "one"), ("a", "two"), ("a", "one")), deduplicate=True)
    assert [(row["text"], row["reason"]) for row in table.to_pylist()] == [
        ("one", None),
        (None, "exact_duplicates"),
        ("two", None),
    ]


def test_chunks_give_back_every_row_of_a_part_whatever_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(f"s/{n}", f"text number {n}", "s", {}, "f", n) for n in range(50)]
    made, _ = clean_rows(documents, [], fraction=1.0, files={"f": 0}, num_parts=3)
    tables: list[list[dict]] = []
    for size in (1 << 20, 100):
        monkeypatch.setattr("data.corpus.parts._CHUNK_BYTES", size)
        output = Storage(str(tmp_path / f"{size}"))
        writer = ChunkWriter(output, "chunks/a", 3, deduplicate=True)
        for row in made:
            writer.add([row])
        names = writer.close()
        tables.append([row for part in range(3) for row in gather(output, names, part, deduplicate=True).to_pylist()])
    assert len(names) == 50 and tables[0] == tables[1] and len(tables[0]) == 50
    assert all(part_of_text(row["key"], 3) in (0, 1, 2) for row in tables[0])


def test_of_a_chunks_equal_texts_one_travels_and_the_parts_are_the_same_for_any_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 documents of 7 texts in two spellings under ids of which every third is not the only one of its kind."""
    documents = [
        Document(f"s/{n * 37 % 200:03d}", (str.upper if n % 5 else str)(f"text {n % 7}"), "s", {"n": n % 2}, "f", n)
        for n in range(300)
    ]
    made, _ = clean_rows(documents, [], fraction=1.0, files={"f": 0}, num_parts=3)
    parts: list[list[Part]] = []
    for size, order in ((1 << 20, 1), (3000, 1), (1, 1), (3000, -1)):
        monkeypatch.setattr("data.corpus.parts._CHUNK_BYTES", size)
        output = Storage(str(tmp_path / f"{size}{order}"))
        writer = ChunkWriter(output, "chunks/a", 3, deduplicate=True)
        for row in made[::order]:
            writer.add([row])
        names = writer.close()
        parts.append([to_part(gather(output, names, part, deduplicate=True)) for part in range(3)])
        chunk = pa.concat_tables([read_tables(output, names[:1], part, ROW_SCHEMA) for part in range(3)])
        assert len(chunk) - chunk["text"].null_count == len(set(chunk["key"].to_pylist()))
    assert all(own == parts[0] for own in parts)
    assert parts[0] == [to_part(settle(plain(made, part), deduplicate=True)) for part in range(3)]
    assert sum(part.documents.num_rows for part in parts[0]) == 7


def plain(rows: list[tuple[int, dict]], part: int) -> pa.Table:
    return pa.Table.from_pylist([row for own, row in rows if own == part], schema=ROW_SCHEMA)


def test_without_deduplication_equal_texts_travel_and_stay(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    writer = ChunkWriter(output, "chunks/a", 1, deduplicate=False)
    writer.add([(0, row) for row in rows(("b", "same"), ("a", "same")).to_pylist()])
    table = gather(output, writer.close(), 0, deduplicate=False)
    assert table["text"].to_pylist() == ["same", "same"] and table["reason"].null_count == 2


def test_a_part_costs_two_small_reads_of_a_chunk_and_an_empty_one_a_single_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Storage(str(tmp_path))
    writer = ChunkWriter(output, "a", 4096, deduplicate=True)
    writer.add([(7, row) for row in rows(("a", "x")).to_pylist()])
    (name,) = writer.close()
    assert (tmp_path / name).stat().st_size < 8 * 4097 + 4000
    reads: list[int] = []
    read = Storage.read_bytes

    def counted(self: Storage, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        reads.append((stop or 0) - (start or 0))
        return read(self, name, start, stop)

    monkeypatch.setattr(Storage, "read_bytes", counted)
    assert gather(output, [name], 7, deduplicate=True)["text"].to_pylist() == ["x"]
    assert len(reads) == 2 and reads[0] == 16 and reads[1] < 4000
    assert gather(output, [name], 6, deduplicate=True) == ROW_SCHEMA.empty_table()
    assert reads[2:] == [16]


def test_a_parts_texts_may_be_larger_than_offsets_of_32_bits_tell() -> None:
    table = settle(rows(("a", "x"), ("b", "X")), deduplicate=True)
    assert table.schema == ROW_SCHEMA and ROW_SCHEMA.field("text").type == pa.large_string()


def test_a_mixture_keeps_as_much_as_its_weights_allow() -> None:
    # 3 : 1 of 300 and 1,000 bytes: the first limits, 300 / 0.75 = 400 in all, so 100 of the second's 1,000.
    assert mixture_shares({"a": 300, "b": 1000}, {"a": 3, "b": 1}) == {"a": 1.0, "b": pytest.approx(0.1)}
    assert mixture_shares({"a": 300, "b": 1000}, {"a": 1, "b": 0}) == {"a": 1.0, "b": 0.0}
    assert mixture_shares({"a": 0, "b": 1000}, {"a": 1, "b": 1}) == {"a": 0.0, "b": 1.0}


def test_a_mixture_takes_documents_by_a_hash_of_their_ids() -> None:
    table = settle(rows(*((f"s/{n}", f"text {n}") for n in range(2000))), deduplicate=False)
    left = mix(table, {"s": 0.25})
    kept = [row["id"] for row in left.to_pylist() if row["reason"] is None]
    assert kept == [own for own in table["id"].to_pylist() if unit_hash(own, "mixture") < 0.25]
    assert 430 < len(kept) < 570
    assert bytes_by_source(left) == {"s": sum(len(row["text"]) for row in left.to_pylist() if row["text"])}


def test_a_part_comes_back_as_it_was_and_rows_go_and_come(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    part = to_part(settle(rows(("a", "x"), ("b", "X"), ("c", "y")), deduplicate=True))
    answer = write_part(output, 0, part)
    assert answer["counts"] == {"s": {"kept": 2, "bytes": 2, "dropped": {"exact_duplicates": 1}}}
    stored = read_part(output, 0)
    assert stored == part and stored.documents.schema == DOCUMENT_SCHEMA
    assert stored.without({"b"}).drops.num_rows == 0 and stored.without({"b"}).origins["id"].to_pylist() == ["a", "c"]
    more = to_part(settle(rows(("bb", "z")), deduplicate=True))
    assert stored.without({"a", "b"}).joined(more).documents["id"].to_pylist() == ["bb", "c"]
