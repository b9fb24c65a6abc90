"""Clusters of near-duplicates over storage: links (`find_links.py`) band by band, then their connected components.

    write_nodes       in each part's own task: ids, signatures, and (band hash, digest, row) sorted by band hash
      match           bucket of band hashes ─▶ equal signatures as edges; requests for the others that share a band
      attach          part                  ─▶ the requested signatures, to the buckets that requested them
      link            bucket                ─▶ verified links, thinned to a forest, as edges
      stars           bucket of nodes       ─▶ connected components, in rounds (few edges: at once, in the driver)
      name            part                  ─▶ the ids of clustered documents, to the bucket of their cluster
      keep            bucket of clusters    ─▶ the lowest id of each, to the parts
    near_duplicates   one part's rows and the ids of the documents kept in their place

A node is a document: part << 32 | row. Every phase is a list of tasks, each named by its number; a task reads one
bucket of every chunk of the phase before, and writes chunks of its own. A task that was done is known by its answer,
so a kill costs no more than the tasks under way. The outcome is a function of ids and texts alone, whatever the number
of buckets and workers.

A task holds one part's signatures or one bucket. A document costs 20 bytes a band, and 500 more for each band that it
shares with a different one. The center of a component meets all its edges (16 bytes each) in one bucket.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.chunk_files import read_buckets, read_many, read_table, write_chunk, write_tables
from data.cleaning.duplicates import NearDuplicates
from data.corpus.edges import EDGE, forest_edges, large_star, make_edges, run_starts, small_star, sort_unique
from data.corpus.links import find_links, lowest_in_component
from data.corpus.minhash import band_hashes, minhash_signatures, mix_bits, signature_digests

Result = TypeVar("Result")

MAX_BUCKETS = 1024
MAX_DRIVER_EDGES = 1 << 20
"""The driver connects up to so many edges (16 MiB) itself; more of them take rounds of many tasks."""

_ENTRY = np.dtype([("hash", "<u8"), ("digest", "<u8"), ("row", "<u4")])
_REQUEST = np.dtype([("hash", "<u8"), ("node", "<u8")])
_ID_SCHEMA = pa.schema([("id", pa.string())])
_CLUSTER_ID_SCHEMA = pa.schema([("cluster", pa.uint64()), ("id", pa.string()), ("node", pa.uint64())])
_REPLACEMENT_SCHEMA = pa.schema([("row", pa.uint32()), ("id", pa.string())])
_ROW_BITS = np.uint64(32)


@dataclass(frozen=True)
class PartNodes:
    """What `write_nodes` wrote of a part."""

    part: int
    documents: int


@dataclass(frozen=True)
class _RecordCount:
    """How many records a task wrote."""

    records: int


@dataclass(frozen=True)
class _LargeStarResult:
    in_stars: bool
    """Whether all nodes of the bucket are in stars."""


@dataclass(frozen=True)
class _Layout:
    """Where the files of one clustering are, and how its nodes are distributed over them."""

    work: Storage
    num_parts: int
    num_buckets: int

    @property
    def folder(self) -> Storage:
        return self.work / f"buckets-{self.num_buckets:04d}"

    def of_hash(self, hashes: np.ndarray) -> np.ndarray:
        """The bucket of band hashes or mixed nodes: equal ranges of their first ten bits."""
        return (hashes >> np.uint64(54)).astype(np.int64) * self.num_buckets // MAX_BUCKETS

    def of_node(self, nodes: np.ndarray) -> np.ndarray:
        return self.of_hash(mix_bits(nodes))

    def of_part(self, nodes: np.ndarray) -> np.ndarray:
        return (nodes >> _ROW_BITS).astype(np.int64)


def _row_numbers(nodes: np.ndarray) -> np.ndarray:
    return (nodes & np.uint64(0xFFFFFFFF)).astype(np.int64)


# Records in buckets.


def _write_records(folder: Storage, name: str, records: np.ndarray, buckets: np.ndarray, num_buckets: int) -> None:
    """Write a chunk of records; `buckets` (int64) is the bucket of each record."""
    order = np.argsort(buckets, kind="stable")
    sizes = np.bincount(buckets, minlength=num_buckets) * records.itemsize
    write_chunk(folder, name, records[order].tobytes(), sizes)


def _read_records(folder: Storage, names: Sequence[str], dtype: np.dtype, first: int, last: int) -> list[np.ndarray]:
    """The records of buckets first to last - 1 of every chunk."""
    contents = read_many(lambda name: read_buckets(folder, name, first, last), names)
    return [np.frombuffer(content, dtype) for content in contents]


def _read_bucket(folder: Storage, names: Sequence[str], dtype: np.dtype, bucket: int) -> np.ndarray:
    """The records of one bucket of every chunk, joined."""
    return np.concatenate(_read_records(folder, names, dtype, bucket, bucket + 1))


def _split_by_bucket(table: pa.Table, buckets: np.ndarray, num_buckets: int) -> list[pa.Table]:
    """The table's rows by bucket, each in their order."""
    table = table.take(pa.array(np.argsort(buckets, kind="stable")))
    ends = np.cumsum(np.bincount(buckets, minlength=num_buckets))
    return [table.slice(end - size, size) for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]


def _file_name(name: str, number: int) -> str:
    return f"{name}/{number:05d}"


def _file_names(name: str, number: int) -> list[str]:
    return [_file_name(name, n) for n in range(number)]


# One part's documents.


def write_nodes(work: Storage, part: int, ids: Sequence[str], texts: Sequence[str], rule: NearDuplicates) -> PartNodes:
    """Write what the clustering needs of the documents of one part, whose rows are in the order given.

    The part's number must be below 2**31, and no part may be left out: one without documents is written as well.
    """
    signature = minhash_signatures(texts, rule)
    digest = signature_digests(signature)
    hashes = np.column_stack([band_hashes(signature, rule), digest])  # the whole signature is a band of its own
    entries = np.empty(hashes.size, _ENTRY)
    entries["hash"] = hashes.ravel()
    entries["digest"] = np.repeat(digest, hashes.shape[1])
    entries["row"] = np.repeat(np.arange(len(signature), dtype=np.uint32), hashes.shape[1])
    cells = _Layout(work, 1, MAX_BUCKETS).of_hash(entries["hash"])
    _write_records(work, _file_name("entries", part), entries, cells, MAX_BUCKETS)
    work.write_bytes(_file_name("signatures", part), signature.astype("<u4").tobytes())
    write_tables(work, _file_name("ids", part), [pa.table({"id": pa.array(ids, pa.string())})])
    return PartNodes(part, len(ids))


# The phases.


class _Phases:
    """Runs the phases of one clustering."""

    def __init__(self, layout: _Layout, workers: int | None) -> None:
        self.layout, self.workers = layout, workers

    def run(
        self, name: str, function: Callable[..., Result], number: int, result_type: type[Result], **arguments: Any
    ) -> list[Result]:
        """`function` of every number below `number`, with the layout and these arguments."""
        return run_tasks(
            partial(function, layout=self.layout, **arguments),
            list(range(number)),
            result_type=result_type,
            workers=self.workers,
            label=f"near-duplicates: {name}",
            result_folder=self.layout.folder / "answers" / name,
        )


def find_clusters(
    work: Storage, nodes: Iterable[PartNodes], rule: NearDuplicates, *, num_buckets: int, workers: int | None
) -> None:
    """Find the clusters of near-duplicates in all parts. `kept_ids_of_near_duplicates` reads the result.

    `num_buckets`, 1 to 1,024, is the number of tasks in most phases. Called again after a kill it resumes.
    """
    if not 1 <= num_buckets <= MAX_BUCKETS:
        raise ValueError(f"num_buckets: {num_buckets} must be between 1 and {MAX_BUCKETS}")
    parts = sorted(part.part for part in nodes)
    assert parts and parts == list(range(len(parts))), (
        f"parts 0 to {len(parts) - 1} are due, each once, but there are {parts}"
    )
    layout = _Layout(work, len(parts), num_buckets)
    phases = _Phases(layout, workers)
    matched = phases.run("match", _match, num_buckets, _RecordCount)
    phases.run("attach", _attach, len(parts), _RecordCount, rule=rule)
    linked = phases.run("link", _link, num_buckets, _RecordCount, rule=rule)
    num_edges = sum(written.records for written in (*matched, *linked))
    labels = _connect(layout) if num_edges <= MAX_DRIVER_EDGES else _connect_in_rounds(phases)
    phases.run("name", _name, len(parts), _RecordCount, labels=labels)
    phases.run("keep", _keep, num_buckets, _RecordCount)
    work.write_json("clusters.json", {"num_buckets": num_buckets})


def _match(bucket: int, *, layout: _Layout) -> _RecordCount:
    """Edges between equal signatures; a request for the signature of each of the others that share a band hash."""
    first, last = (-(-MAX_BUCKETS * edge // layout.num_buckets) for edge in (bucket, bucket + 1))
    by_part = _read_records(layout.work, _file_names("entries", layout.num_parts), _ENTRY, first, last)
    entries = np.concatenate(by_part)
    parts = np.arange(layout.num_parts, dtype=np.uint64)
    node = np.repeat(parts << _ROW_BITS, [len(records) for records in by_part])
    node += entries["row"]
    order = np.lexsort((node, entries["digest"], entries["hash"]))
    entries, node = entries[order], node[order]
    first_equal = run_starts(entries["hash"], entries["digest"])
    is_repeated = first_equal < np.arange(len(node))
    # Equal signatures share all bands; that of the whole signature makes their edge.
    is_edge = is_repeated & (entries["hash"] == entries["digest"])
    edges = make_edges(node[is_edge], node[first_equal[is_edge]])
    hashes, node = entries["hash"][~is_repeated], node[~is_repeated]
    first_of_hash = run_starts(hashes)
    is_shared = np.bincount(first_of_hash, minlength=len(node))[first_of_hash] > 1
    wanted = np.empty(int(is_shared.sum()), _REQUEST)
    wanted["hash"], wanted["node"] = hashes[is_shared], node[is_shared]
    _write_edges(layout, _file_name("edges/match", bucket), edges)
    _write_records(
        layout.folder, _file_name("wanted", bucket), wanted, layout.of_part(wanted["node"]), layout.num_parts
    )
    return _RecordCount(len(edges))


def _attach(part: int, *, layout: _Layout, rule: NearDuplicates) -> _RecordCount:
    """The signatures of the part's documents that a bucket requested, to that bucket."""
    wanted = _read_bucket(layout.folder, _file_names("wanted", layout.num_buckets), _REQUEST, part)
    attached = np.empty(len(wanted), _reply_type(rule))
    attached["hash"], attached["node"] = wanted["hash"], wanted["node"]
    if len(wanted):
        every = np.frombuffer(layout.work.read_bytes(_file_name("signatures", part)), "<u4")
        attached["signature"] = every.reshape(-1, rule.bands * rule.rows)[_row_numbers(wanted["node"])]
    buckets = layout.of_hash(attached["hash"])
    _write_records(layout.folder, _file_name("attached", part), attached, buckets, layout.num_buckets)
    return _RecordCount(len(attached))


def _reply_type(rule: NearDuplicates) -> np.dtype:
    return np.dtype([("hash", "<u8"), ("node", "<u8"), ("signature", "<u4", (rule.bands * rule.rows,))])


def _link(bucket: int, *, layout: _Layout, rule: NearDuplicates) -> _RecordCount:
    """The links among the bucket's documents, as a forest that connects the same documents."""
    attached = _read_bucket(layout.folder, _file_names("attached", layout.num_parts), _reply_type(rule), bucket)
    nodes, rows, members = np.unique(attached["node"], return_index=True, return_inverse=True)
    edges = forest_edges(nodes, find_links(attached["hash"], members, attached["signature"][rows], rule))
    _write_edges(layout, _file_name("edges/link", bucket), edges)
    return _RecordCount(len(edges))


# Components.


def _write_edges(layout: _Layout, name: str, edges: np.ndarray) -> None:
    """Each edge goes to the buckets of both its ends, once where they are the same."""
    upper, lower = layout.of_node(edges["node"]), layout.of_node(edges["lower"])
    apart = upper != lower
    edges, buckets = np.concatenate([edges, edges[apart]]), np.concatenate([upper, lower[apart]])
    _write_records(layout.folder, name, edges, buckets, layout.num_buckets)


def _edge_files(layout: _Layout) -> list[str]:
    """The chunks that the links were written to."""
    return [*_file_names("edges/match", layout.num_buckets), *_file_names("edges/link", layout.num_buckets)]


def _connect(layout: _Layout) -> list[str]:
    """Find the cluster of every document with an edge, all of them at once in this process; the chunk of labels."""
    edges = sort_unique(np.concatenate(_read_records(layout.folder, _edge_files(layout), EDGE, 0, layout.num_buckets)))
    nodes, pairs = np.unique(np.stack([edges["node"], edges["lower"]], axis=1), return_inverse=True)
    lowest = nodes[lowest_in_component(len(nodes), pairs.reshape(-1, 2))]
    _write_labels(layout, _file_name("labels", 0), nodes, lowest)
    return [_file_name("labels", 0)]


def _write_labels(layout: _Layout, name: str, nodes: np.ndarray, lowest: np.ndarray) -> None:
    """The cluster of every node, that is its lowest node, to the nodes' parts."""
    _write_records(layout.folder, name, make_edges(nodes, lowest), layout.of_part(nodes), layout.num_parts)


def _connect_in_rounds(phases: _Phases) -> list[str]:
    """Take rounds of large and small stars until every component is a star; the chunks of labels."""
    num_buckets = phases.layout.num_buckets
    files = _edge_files(phases.layout)
    number = 0
    while True:
        folder = f"stars-{number:03d}"
        stars = phases.run(f"{folder}/large", _large_stars, num_buckets, _LargeStarResult, files=files, folder=folder)
        if all(star.in_stars for star in stars):
            return _file_names(f"{folder}/labels", num_buckets)
        phases.run(f"{folder}/small", _small_stars, num_buckets, _RecordCount, folder=folder)
        files = _file_names(f"{folder}/small", num_buckets)
        number += 1


def _large_stars(bucket: int, *, layout: _Layout, files: Sequence[str], folder: str) -> _LargeStarResult:
    """The large stars of a bucket's nodes; their labels once all nodes are in stars."""
    edges = sort_unique(_read_bucket(layout.folder, files, EDGE, bucket))
    both = np.concatenate([edges, make_edges(edges["lower"], edges["node"])])
    both = both[layout.of_node(both["node"]) == bucket]
    star = large_star(both["node"], both["lower"])
    if star.in_stars:
        _write_labels(layout, _file_name(f"{folder}/labels", bucket), star.nodes, star.lowest)
    buckets = layout.of_node(star.edges["node"])
    _write_records(layout.folder, _file_name(f"{folder}/large", bucket), star.edges, buckets, layout.num_buckets)
    return _LargeStarResult(star.in_stars)


def _small_stars(bucket: int, *, layout: _Layout, folder: str) -> _RecordCount:
    """The small stars of a bucket's nodes."""
    edges = sort_unique(_read_bucket(layout.folder, _file_names(f"{folder}/large", layout.num_buckets), EDGE, bucket))
    stars = small_star(edges["node"], edges["lower"])
    _write_edges(layout, _file_name(f"{folder}/small", bucket), stars)
    return _RecordCount(len(stars))


# Which document of a cluster is kept.


def _name(part: int, *, layout: _Layout, labels: Sequence[str]) -> _RecordCount:
    """The ids of the part's clustered documents, to the bucket of their cluster."""
    label = _read_bucket(layout.folder, labels, EDGE, part)
    ids = read_table(layout.work, [_file_name("ids", part)], 0, _ID_SCHEMA).column("id")
    rows = _row_numbers(label["node"])
    columns = {"cluster": label["lower"], "id": ids.take(pa.array(rows)), "node": label["node"]}
    tables = _split_by_bucket(
        pa.table(columns, schema=_CLUSTER_ID_SCHEMA), layout.of_node(label["lower"]), layout.num_buckets
    )
    write_tables(layout.folder, _file_name("named", part), tables)
    return _RecordCount(len(label))


def _keep(bucket: int, *, layout: _Layout) -> _RecordCount:
    """The lowest (id, node) of every cluster of a bucket, for each of its other documents, to their parts."""
    named = read_table(layout.folder, _file_names("named", layout.num_parts), bucket, _CLUSTER_ID_SCHEMA)
    named = named.sort_by([("cluster", "ascending"), ("id", "ascending"), ("node", "ascending")])
    cluster, node = (named.column(name).to_numpy() for name in ("cluster", "node"))
    lowest = run_starts(cluster)
    is_other = lowest < np.arange(len(cluster))
    rows = _row_numbers(node[is_other]).astype(np.uint32)
    kept = pa.table(
        {"row": rows, "id": named.column("id").take(pa.array(lowest[is_other]))}, schema=_REPLACEMENT_SCHEMA
    )
    tables = _split_by_bucket(kept, layout.of_part(node[is_other]), layout.num_parts)
    write_tables(layout.folder, _file_name("kept", bucket), tables)
    return _RecordCount(int(is_other.sum()))


def kept_ids_of_near_duplicates(work: Storage, part: int) -> dict[int, str]:
    """The id of the document that is kept in place of each row of the part that is a near-duplicate of a lower one.

    Lower means by (id, part, row). Rows are in ascending order.
    """
    num_buckets = work.read_json("clusters.json")["num_buckets"]
    folder = _Layout(work, 0, num_buckets).folder
    kept = read_table(folder, _file_names("kept", num_buckets), part, _REPLACEMENT_SCHEMA).sort_by("row")
    return dict(zip(kept.column("row").to_pylist(), kept.column("id").to_pylist(), strict=True))
