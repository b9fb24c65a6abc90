"""Ids that several documents of a corpus have are found in all parts, compared with a count in Python."""

import random
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pytest

import data.corpus.unique_ids
from cluster.storage import Storage
from data.corpus.parts import Part, write_part
from data.corpus.unique_ids import NUM_BUCKETS, check_unique_ids, find_repeated_ids, write_id_hashes
from data.document import Source

SOURCES = [
    Source(name="a", path="a", format="jsonl", id="url"),
    Source(name="b", path="b", format="jsonl"),
]


def write_parts(folder: Storage, parts: list[list[tuple[str, str]]]) -> int:
    """Write parts whose kept documents have these ids and texts. Returns the number of documents."""
    for number, rows in enumerate(parts):
        columns = {"id": [id for id, _ in rows], "source": [id.partition("/")[0] for id, _ in rows]}
        columns |= {"text": [text for _, text in rows], "metadata": ["{}"] * len(rows)}
        documents = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        write_id_hashes(folder, number, documents, SOURCES)
        write_part(folder, number, Part(documents, pa.table({"source": [], "reason": []}), pa.table({"id": []})))
    return sum(map(len, parts))


def test_repeated_ids_of_different_texts_are_counted(tmp_path: Path) -> None:
    rng = random.Random(5)
    folder = Storage(str(tmp_path))
    parts = [[(f"a/{rng.randrange(300)}", rng.choice("xyz")) for _ in range(40)] for _ in range(7)]
    parts += [[("b/1", "x"), ("b/1", "y")], []]
    texts = defaultdict[str, list[str]](list)
    for rows in parts:
        for id, text in rows:
            texts[id].append(text)
    repeated = {id: len(found) for id, found in texts.items() if len(set(found)) > 1 and id.startswith("a/")}
    num_documents = write_parts(folder, parts)
    buckets = [find_repeated_ids(bucket, folder=folder, num_parts=len(parts)) for bucket in range(NUM_BUCKETS)]
    assert sum(bucket.num_ids for bucket in buckets) == len(repeated) > 20
    assert sum(bucket.num_documents for bucket in buckets) == sum(repeated.values())
    message = f"{sum(repeated.values())} different documents share {len(repeated)} ids, such as 'a/"
    with pytest.raises(ValueError, match=message) as caught:
        check_unique_ids(folder, folder, len(parts), num_documents, SOURCES, workers=0)
    assert str(caught.value).split("such as '")[1].split("'")[0] in repeated


def test_copies_of_a_document_and_ids_that_are_hashes_are_no_error(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    num_documents = write_parts(folder, [[("a/1", "x"), ("a/2", "y"), ("b/1", "x")], [("a/1", "x"), ("b/1", "y")]])
    check_unique_ids(folder, folder, 2, num_documents, SOURCES, workers=0)
    check_unique_ids(folder, folder / "without", 2, num_documents, SOURCES[1:], workers=0)


def test_ids_with_hashes_that_agree_in_64_bits_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.corpus.unique_ids, "_id_hash", lambda id: (7, len(id)))
    folder = Storage(str(tmp_path))
    num_documents = write_parts(folder, [[("a/1", "x"), ("a/12", "y")], [("a/1", "x")]])
    check_unique_ids(folder, folder, 2, num_documents, SOURCES, workers=0)
