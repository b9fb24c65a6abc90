"""Writing, reading and changing the files of a part."""

from pathlib import Path

import pyarrow as pa

from cluster.storage import Storage
from data.cleaning.duplicates import ExactDuplicates
from data.corpus.exact_duplicates import sort_and_deduplicate, text_key
from data.corpus.parts import DOCUMENT_SCHEMA, PartCounts, part_from_rows, read_part, write_part
from data.corpus.rows import Row, to_table


def rows(*texts: tuple[str, str], source: str = "s") -> pa.Table:
    """Return a table with a row for each (id, text). Every row has a different file number."""
    return to_table(
        [
            Row(name, source, number, 0, text, "{}", text_key(text, ExactDuplicates()))
            for number, (name, text) in enumerate(texts)
        ]
    )


def test_a_part_is_read_as_it_was_written_and_rows_can_be_removed_and_added(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    part = part_from_rows(sort_and_deduplicate(rows(("a", "x"), ("b", "X"), ("c", "y")), deduplicate=True))
    written = write_part(output, 0, part)
    assert written.counts == {"s": PartCounts(2, 2, {"exact_duplicates": 1})}
    stored = read_part(output, 0)
    assert stored == part and stored.documents.schema == DOCUMENT_SCHEMA
    without_b = stored.without_ids({"b"})
    assert without_b.drops.num_rows == 0 and without_b.origins["id"].to_pylist() == ["a", "c"]
    more = part_from_rows(sort_and_deduplicate(rows(("bb", "z")), deduplicate=True))
    assert stored.without_ids({"a", "b"}).with_rows_of(more).documents["id"].to_pylist() == ["bb", "c"]
