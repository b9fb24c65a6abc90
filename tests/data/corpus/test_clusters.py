"""Near-duplicates in storage: clusters equal those in memory for any number of buckets, parts and interruptions."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import data.corpus.clusters
from cluster.storage import Storage
from data.cleaning.duplicates import NearDuplicates
from data.corpus.clusters import PartNodes, find_clusters, kept_ids_of_near_duplicates, write_nodes
from data.corpus.links import representatives

SETTINGS = NearDuplicates()


@pytest.mark.parametrize("max_driver_edges", [0, data.corpus.clusters.MAX_DRIVER_EDGES])
@pytest.mark.parametrize(("num_parts", "num_buckets"), [(1, 1), (1, 7), (3, 2), (5, 1), (5, 7)])
def test_clusters_equal_those_in_memory_for_any_number_of_parts_and_buckets(
    num_parts: int, num_buckets: int, max_driver_edges: int, tmp_path: Path, without_ray: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr(data.corpus.clusters, "MAX_DRIVER_EDGES", max_driver_edges)
    ids, texts = corpus()
    found = find_and_read(Storage(str(tmp_path)), ids, texts, num_parts, num_buckets)
    assert found == kept_in_memory(ids, texts)
    assert 80 < len(found) < len(ids)
    assert (tmp_path / f"buckets-{num_buckets:04d}/labels/00000").exists() == (max_driver_edges > 0)


def test_being_killed_at_any_write_does_not_change_the_clusters(
    tmp_path: Path, without_ray: None, monkeypatch: Any
) -> None:
    """Each run is killed after a few writes, and the next run continues."""
    monkeypatch.setattr(data.corpus.clusters, "MAX_DRIVER_EDGES", 0)
    ids, texts = corpus()
    work = Storage(str(tmp_path))
    nodes = write_all_nodes(work, ids, texts, 3)
    rng = random.Random(0)
    write, left, kills = Storage.write_bytes, 0, 0

    def write_or_die(self: Storage, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(self, name, data)

    monkeypatch.setattr(Storage, "write_bytes", write_or_die)
    while not work.exists("clusters.json"):
        left = rng.randint(2, 6)
        try:
            find_clusters(work, nodes, SETTINGS, num_buckets=2, workers=None)
        except KeyboardInterrupt:
            kills += 1
    assert kills > 5
    assert read_kept_documents(work, ids, 3) == kept_in_memory(ids, texts)


def test_equal_texts_in_many_parts_keep_the_lowest_id(tmp_path: Path, without_ray: None) -> None:
    texts = ["the same words again and again and again"] * 9
    ids = ["h", "c", "i", "f", "b", "a", "e", "g", "d"]
    found = find_and_read(Storage(str(tmp_path)), ids, texts, 3, 4)
    assert found == {position: ("a", 5) for position in range(9) if position != 5}


def test_of_documents_with_equal_ids_that_in_the_lowest_part_and_row_is_kept(tmp_path: Path, without_ray: None) -> None:
    work = Storage(str(tmp_path))
    text = "all of these are the very same"
    parts = [(["b", "b"], [text] * 2), (["a", "a"], [text] * 2), (["a"], [text])]
    nodes = [write_nodes(work, part, ids, texts, SETTINGS) for part, (ids, texts) in enumerate(parts)]
    find_clusters(work, nodes, SETTINGS, num_buckets=3, workers=None)
    assert [kept_ids_of_near_duplicates(work, part) for part in range(3)] == [{0: "a", 1: "a"}, {1: "a"}, {0: "a"}]


def test_a_chain_through_all_parts_is_one_cluster(
    tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.corpus.clusters, "MAX_DRIVER_EDGES", 0)
    words = [f"w{number}" for number in range(1000)]
    texts = [" ".join(words[step * 10 : step * 10 + 100]) for step in range(91)]
    ids = [f"{number:03d}" for number in random.Random(0).sample(range(100, 191), 91)]
    found = find_and_read(Storage(str(tmp_path)), ids, texts, 5, 3)
    kept = ids.index("100")
    assert found == {position: ("100", kept) for position in range(91) if position != kept}


def test_empty_parts_and_a_corpus_without_duplicates_work(tmp_path: Path, without_ray: None) -> None:
    work = Storage(str(tmp_path))
    nodes = [write_nodes(work, part, [], [], SETTINGS) for part in range(2)]
    nodes.append(write_nodes(work, 2, ["a", "b"], ["one thing", "another thing"], SETTINGS))
    find_clusters(work, nodes, SETTINGS, num_buckets=2, workers=None)
    assert [part.documents for part in nodes] == [0, 0, 2]
    assert [kept_ids_of_near_duplicates(work, part) for part in range(3)] == [{}, {}, {}]


def test_clusters_on_an_object_store_equal_those_in_memory(without_ray: None) -> None:
    ids, texts = corpus()
    assert find_and_read(Storage("memory://clusters"), ids, texts, 3, 2) == kept_in_memory(ids, texts)


def test_too_many_buckets_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_buckets: 1025 must be between 1 and 1024"):
        find_clusters(Storage(str(tmp_path)), [], SETTINGS, num_buckets=1025, workers=None)


@pytest.mark.slow
def test_clusters_found_on_ray_equal_those_in_memory(ray_session: None, tmp_path: Path) -> None:
    ids, texts = corpus()
    found = find_and_read(Storage(str(tmp_path)), ids, texts, 3, 2, workers=2)
    assert found == kept_in_memory(ids, texts)


# Helpers.


def corpus() -> tuple[list[str], list[str]]:
    """Return ids and texts of 300 documents: new texts, exact copies, edited copies and copies of copies.

    The ids are in random order.
    """
    rng = random.Random(7)
    vocabulary = [f"word{number}" for number in range(2000)]
    texts: list[str] = []
    for number in range(300):
        if number % 3 and texts:
            words = rng.choice(texts[-40:]).split()
            for _ in range(rng.choice([0, 0, 1, 2, 5, 20])):
                words[rng.randrange(len(words))] = rng.choice(vocabulary)
        else:
            words = rng.choices(vocabulary, k=rng.randint(40, 250))
        texts.append(" ".join(words))
    return [f"s/{number}" for number in rng.sample(range(1000), 300)], texts


def rows_of(number: int, part: int, num_parts: int) -> list[int]:
    """Return the documents of a part. They are assigned to parts in turn, so clusters extend over several parts."""
    return list(range(part, number, num_parts))


def write_all_nodes(work: Storage, ids: Sequence[str], texts: Sequence[str], num_parts: int) -> list[PartNodes]:
    nodes = []
    for part in range(num_parts):
        rows = rows_of(len(ids), part, num_parts)
        nodes.append(write_nodes(work, part, [ids[row] for row in rows], [texts[row] for row in rows], SETTINGS))
    return nodes


def read_kept_documents(work: Storage, ids: Sequence[str], num_parts: int) -> dict[int, tuple[str, int]]:
    """Return, for each dropped position, (id, position) of the document that is kept instead."""
    found = {}
    for part in range(num_parts):
        rows = rows_of(len(ids), part, num_parts)
        found.update(
            {rows[row]: (kept, ids.index(kept)) for row, kept in kept_ids_of_near_duplicates(work, part).items()}
        )
    return found


def find_and_read(
    work: Storage,
    ids: Sequence[str],
    texts: Sequence[str],
    num_parts: int,
    num_buckets: int,
    workers: int | None = None,
) -> dict[int, tuple[str, int]]:
    nodes = write_all_nodes(work, ids, texts, num_parts)
    find_clusters(work, nodes, SETTINGS, num_buckets=num_buckets, workers=workers)
    return read_kept_documents(work, ids, num_parts)


def kept_in_memory(ids: Sequence[str], texts: Sequence[str]) -> dict[int, tuple[str, int]]:
    kept = representatives(ids, texts, SETTINGS)
    return {
        position: (ids[kept_position], kept_position)
        for position, kept_position in enumerate(kept)
        if kept_position != position
    }
