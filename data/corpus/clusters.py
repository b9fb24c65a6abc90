"""Clusters of near-duplicates over storage: links (`deduplication.py`) band by band, then what hangs together.

    write_nodes       in each part's own task: ids, signatures, and (band hash, digest, row) sorted by band hash
      match           bucket of band hashes ─▶ equal signatures as edges; which others share a band with somebody
      attach          part                  ─▶ the signatures of those, to the buckets that want them
      link            bucket                ─▶ verified links, thinned to a forest, as edges
      stars           bucket of nodes       ─▶ connected components, in rounds (few edges: at once, in the driver)
      name            part                  ─▶ the ids of clustered documents, to the bucket of their cluster
      keep            bucket of clusters    ─▶ the lowest id of each, to the parts
    dropped           one part's rows and the ids kept in their stead

A node is a document: part << 32 | row. Every phase is a list of tasks; each writes files of its own, named by its
number, after reading one slice of every file of the phase before. A task that was done is known by its answer, so a
kill costs no more than the tasks under way. The outcome is a function of ids and texts alone, whatever the number of
buckets and workers.

A task holds one part's signatures or one bucket. A document costs 20 bytes a band, and 500 more for each band that it
shares with a different one. The centre of a component meets all its edges (16 bytes each) in one bucket.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.cleaning.duplicates import NearDuplicates
from data.corpus.deduplication import band_hashes, components, digests, links, mixed, signatures
from data.corpus.slices import read_each, read_slices, read_tables, write_slices, write_tables

MAX_BUCKETS = 1024
EDGES_AT_ONCE = 1 << 20
"""So many edges (16 MiB) the driver connects itself; more of them take rounds of many tasks."""

_ENTRY = np.dtype([("hash", "<u8"), ("digest", "<u8"), ("row", "<u4")])
_WANTED = np.dtype([("hash", "<u8"), ("node", "<u8")])
_EDGE = np.dtype([("node", "<u8"), ("lower", "<u8")])
_IDS = pa.schema([("id", pa.string())])
_NAMED = pa.schema([("cluster", pa.uint64()), ("id", pa.string()), ("node", pa.uint64())])
_KEPT = pa.schema([("row", pa.uint32()), ("id", pa.string())])
_ROW_BITS = np.uint64(32)


@dataclass(frozen=True)
class _Layout:
    """Where the files of one clustering are, and how its nodes are spread."""

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
        return self.of_hash(mixed(nodes))

    def of_part(self, nodes: np.ndarray) -> np.ndarray:
        return (nodes >> _ROW_BITS).astype(np.int64)


def _rows(nodes: np.ndarray) -> np.ndarray:
    return (nodes & np.uint64(0xFFFFFFFF)).astype(np.int64)


# Records in slices.


def _write_records(folder: Storage, name: str, records: np.ndarray, slices: np.ndarray, num_slices: int) -> None:
    """Write records by slice (`slices` int64, one number a record), each in their order."""
    order = np.argsort(slices, kind="stable")
    sizes = np.bincount(slices, minlength=num_slices) * records.itemsize
    write_slices(folder, name, records[order].tobytes(), sizes)


def _read_records(folder: Storage, names: Sequence[str], dtype: np.dtype, first: int, last: int) -> list[np.ndarray]:
    """The records of slices first to last - 1 of every file."""
    return [np.frombuffer(own, dtype) for own in read_each(lambda name: read_slices(folder, name, first, last), names)]


def _gather(folder: Storage, names: Sequence[str], dtype: np.dtype, number: int) -> np.ndarray:
    """One slice of every file, joined."""
    return np.concatenate(_read_records(folder, names, dtype, number, number + 1))


def _split(table: pa.Table, slices: np.ndarray, num_slices: int) -> list[pa.Table]:
    """The table's rows by slice, each in their order."""
    table = table.take(pa.array(np.argsort(slices, kind="stable")))
    ends = np.cumsum(np.bincount(slices, minlength=num_slices))
    return [table.slice(end - size, size) for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]


def _file(name: str, number: int) -> str:
    return f"{name}/{number:05d}"


def _run_starts(*columns: np.ndarray) -> np.ndarray:
    """For every position of sorted columns, the first position of the run of equal rows that it is in."""
    position = np.arange(len(columns[0]))
    same = np.zeros(len(position), bool)
    same[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    return np.maximum.accumulate(np.where(same, 0, position))


# One part's documents.


def write_nodes(
    work: Storage, part: int, ids: Sequence[str], texts: Sequence[str], rule: NearDuplicates
) -> dict[str, Any]:
    """Write what the clustering needs of the documents of part `part` (rows in the order given); return their count.

    The part's number must be below 2**31, and no part may be left out: one without documents is written as well.
    """
    made = signatures(texts, rule)
    digest = digests(made)
    hashes = np.column_stack([band_hashes(made, rule), digest])  # the whole signature is a band of its own
    entries = np.empty(hashes.size, _ENTRY)
    entries["hash"] = hashes.ravel()
    entries["digest"] = np.repeat(digest, hashes.shape[1])
    entries["row"] = np.repeat(np.arange(len(made), dtype=np.uint32), hashes.shape[1])
    cells = _Layout(work, 1, MAX_BUCKETS).of_hash(entries["hash"])
    _write_records(work, _file("entries", part), entries, cells, MAX_BUCKETS)
    work.write_bytes(_file("signatures", part), made.astype("<u4").tobytes())
    write_tables(work, _file("ids", part), [pa.table({"id": pa.array(ids, pa.string())})])
    return {"part": part, "documents": len(ids)}


# The phases.


def find_clusters(
    work: Storage, answers: Sequence[dict[str, Any]], rule: NearDuplicates, *, num_buckets: int, workers: int | None
) -> None:
    """Cluster the documents of all parts, whose `write_nodes` gave `answers`; `dropped` then tells the outcome.

    `num_buckets`, 1 to 1,024, is how many pieces the work is cut into. Done anew after a kill it goes on where it was.
    """
    if not 1 <= num_buckets <= MAX_BUCKETS:
        raise ValueError(f"num_buckets: {num_buckets} must be between 1 and {MAX_BUCKETS}")
    parts = sorted(answer["part"] for answer in answers)
    assert parts and parts == list(range(len(parts))), (
        f"parts 0 to {len(parts) - 1} are due, each once, but there are {parts}"
    )
    layout = _Layout(work, len(parts), num_buckets)

    def phase(name: str, function: Callable[..., dict[str, Any]], number: int, **arguments: Any) -> list[Any]:
        task = partial(function, layout=layout, **arguments)
        return run_tasks(
            task,
            list(range(number)),
            returns=dict[str, Any],
            workers=workers,
            label=f"near-duplicates: {name}",
            answers=layout.folder / "answers" / name,
        )

    matched = phase("match", _match, num_buckets)
    phase("attach", _attach, len(parts), rule=rule)
    linked = phase("link", _link, num_buckets, rule=rule)
    if sum(answer["edges"] for answer in (*matched, *linked)) <= EDGES_AT_ONCE:
        labels = _connect(layout)
    else:
        labels = _stars(layout, phase)
    phase("name", _name, len(parts), labels=labels)
    phase("keep", _keep, num_buckets)
    work.write_json("clusters.json", {"num_buckets": num_buckets})


def _match(bucket: int, *, layout: _Layout) -> dict[str, Any]:
    """Edges between equal signatures; a request for the signature of each of the rest that shares a band hash."""
    first, last = (-(-MAX_BUCKETS * edge // layout.num_buckets) for edge in (bucket, bucket + 1))
    names = [_file("entries", part) for part in range(layout.num_parts)]
    found = _read_records(layout.work, names, _ENTRY, first, last)
    entries = np.concatenate(found)
    node = np.repeat(np.arange(layout.num_parts, dtype=np.uint64) << _ROW_BITS, [len(own) for own in found])
    node += entries["row"]
    order = np.lexsort((node, entries["digest"], entries["hash"]))
    entries, node = entries[order], node[order]
    first_of_run = _run_starts(entries["hash"], entries["digest"])
    again = first_of_run < np.arange(len(node))
    whole = again & (entries["hash"] == entries["digest"])  # of the bands that equal signatures share, one tells it
    edges = _edges(node[whole], node[first_of_run[whole]])
    hashes, node = entries["hash"][~again], node[~again]
    first_of_hash = _run_starts(hashes)
    shared = np.bincount(first_of_hash, minlength=len(node))[first_of_hash] > 1
    wanted = np.empty(len(node), _WANTED)
    wanted["hash"], wanted["node"] = hashes, node
    wanted = wanted[shared]
    _write_edges(layout, _file("edges/match", bucket), edges)
    _write_records(layout.folder, _file("wanted", bucket), wanted, layout.of_part(wanted["node"]), layout.num_parts)
    return {"edges": len(edges)}


def _attach(part: int, *, layout: _Layout, rule: NearDuplicates) -> dict[str, Any]:
    """The signatures of the part's documents that a bucket asked for, to that bucket."""
    names = [_file("wanted", bucket) for bucket in range(layout.num_buckets)]
    wanted = _gather(layout.folder, names, _WANTED, part)
    attached = np.empty(len(wanted), _attached(rule))
    attached["hash"], attached["node"] = wanted["hash"], wanted["node"]
    if len(wanted):
        every = np.frombuffer(layout.work.read_bytes(_file("signatures", part)), "<u4")
        rows = _rows(wanted["node"])
        attached["signature"] = every.reshape(-1, rule.bands * rule.rows)[rows]
    _write_records(
        layout.folder, _file("attached", part), attached, layout.of_hash(attached["hash"]), layout.num_buckets
    )
    return {"attached": len(attached)}


def _attached(rule: NearDuplicates) -> np.dtype:
    return np.dtype([("hash", "<u8"), ("node", "<u8"), ("signature", "<u4", (rule.bands * rule.rows,))])


def _link(bucket: int, *, layout: _Layout, rule: NearDuplicates) -> dict[str, Any]:
    """The links among the bucket's documents, as a forest that connects the same."""
    names = [_file("attached", part) for part in range(layout.num_parts)]
    attached = _gather(layout.folder, names, _attached(rule), bucket)
    nodes, rows, members = np.unique(attached["node"], return_index=True, return_inverse=True)
    pairs = links(attached["hash"], members, attached["signature"][rows], rule)
    edges = _forest(nodes, pairs)
    _write_edges(layout, _file("edges/link", bucket), edges)
    return {"edges": len(edges)}


# Edges and components.


def _edges(node: np.ndarray, lower: np.ndarray) -> np.ndarray:
    edges = np.empty(len(node), _EDGE)
    edges["node"], edges["lower"] = node, lower
    return edges


def _distinct(edges: np.ndarray) -> np.ndarray:
    """The edges in order, each once."""
    edges = edges[np.lexsort((edges["lower"], edges["node"]))]  # a third of the time that np.unique takes
    return edges[_run_starts(edges["node"], edges["lower"]) == np.arange(len(edges))]


def _forest(nodes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """An edge from each node (sorted uint64; `pairs` are positions among them) to its component's lowest."""
    lowest = nodes[components(len(nodes), pairs)]
    return _edges(nodes[lowest < nodes], lowest[lowest < nodes])


def _write_edges(layout: _Layout, name: str, edges: np.ndarray) -> None:
    """Each edge goes to the buckets of both its ends, once where they are the same."""
    upper, lower = layout.of_node(edges["node"]), layout.of_node(edges["lower"])
    apart = upper != lower
    edges, slices = np.concatenate([edges, edges[apart]]), np.concatenate([upper, lower[apart]])
    _write_records(layout.folder, name, edges, slices, layout.num_buckets)


def _edge_files(layout: _Layout) -> list[str]:
    """The files that the links were written to."""
    return [_file(f"edges/{phase}", bucket) for phase in ("match", "link") for bucket in range(layout.num_buckets)]


def _connect(layout: _Layout) -> list[str]:
    """The file of labels, once every document with an edge has its cluster: all of them at once, in this process."""
    found = _read_records(layout.folder, _edge_files(layout), _EDGE, 0, layout.num_buckets)
    edges = _distinct(np.concatenate(found))
    nodes, pairs = np.unique(np.stack([edges["node"], edges["lower"]], axis=1), return_inverse=True)
    lowest = nodes[components(len(nodes), pairs.reshape(-1, 2))]
    _write_labels(layout, _file("labels", 0), nodes, lowest)
    return [_file("labels", 0)]


def _write_labels(layout: _Layout, name: str, nodes: np.ndarray, lowest: np.ndarray) -> None:
    """The cluster of every node, that is its lowest node, to the nodes' parts."""
    _write_records(layout.folder, name, _edges(nodes, lowest), layout.of_part(nodes), layout.num_parts)


def _stars(layout: _Layout, phase: Callable[..., list[Any]]) -> list[str]:
    """The files of labels, once rounds of large and small stars have made every component a star.

    The two-phase algorithm of Kiveris et al. 2014 (Connected Components in MapReduce and Beyond): a large star links
    each node's greater neighbours to its lowest one (itself counted), a small star its lower neighbours and itself.
    """
    files = _edge_files(layout)
    buckets = range(layout.num_buckets)
    round_ = 0
    while True:
        folder = f"stars-{round_:03d}"
        answers = phase(f"{folder}/large", _large_star, layout.num_buckets, files=files, folder=folder)
        if all(answer["stars"] for answer in answers):
            return [_file(f"{folder}/labels", bucket) for bucket in buckets]
        phase(f"{folder}/small", _small_star, layout.num_buckets, folder=folder)
        files = [_file(f"{folder}/small", bucket) for bucket in buckets]
        round_ += 1


def _large_star(bucket: int, *, layout: _Layout, files: Sequence[str], folder: str) -> dict[str, Any]:
    """One large star over the nodes of a bucket; whether all its nodes are in stars already, and then their labels.

    A node is in a star when it is linked to greater nodes only (the centre) or to a single lower one (a leaf).
    """
    edges = _distinct(_gather(layout.folder, files, _EDGE, bucket))
    both = np.concatenate([edges, _edges(edges["lower"], edges["node"])])
    both = both[layout.of_node(both["node"]) == bucket]
    nodes, lowest, made, in_stars = large_star(both["node"], both["lower"])
    if in_stars:
        _write_labels(layout, _file(f"{folder}/labels", bucket), nodes, lowest)
    _write_records(
        layout.folder, _file(f"{folder}/large", bucket), made, layout.of_node(made["node"]), layout.num_buckets
    )
    return {"stars": in_stars}


def _small_star(bucket: int, *, layout: _Layout, folder: str) -> dict[str, Any]:
    """One small star over the nodes of a bucket."""
    names = [_file(f"{folder}/large", other) for other in range(layout.num_buckets)]
    edges = _distinct(_gather(layout.folder, names, _EDGE, bucket))
    made = small_star(edges["node"], edges["lower"])
    _write_edges(layout, _file(f"{folder}/small", bucket), made)
    return {"edges": len(made)}


def large_star(node: np.ndarray, neighbour: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """(nodes, their lowest neighbour or themselves, the edges made, whether all nodes stand in stars).

    Takes every neighbour of every node, uint64 [E] each, no pair twice.
    """
    nodes, which = np.unique(node, return_inverse=True)
    lowest = nodes.copy()
    np.minimum.at(lowest, which, neighbour)
    greater = neighbour > node
    made = _distinct(_edges(neighbour[greater], lowest[which[greater]]))
    lower_ones = np.bincount(which[~greater], minlength=len(nodes))
    degree = np.bincount(which, minlength=len(nodes))
    return nodes, lowest, made, bool(np.all((lower_ones == 0) | (degree == 1)))


def small_star(node: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The edges that a small star makes of every node's lower neighbours, uint64 [E] each."""
    nodes, which = np.unique(node, return_inverse=True)
    lowest = nodes.copy()
    np.minimum.at(lowest, which, lower)
    made = _edges(np.concatenate([lower, nodes]), np.concatenate([lowest[which], lowest]))
    return _distinct(made[made["node"] > made["lower"]])


# Who is kept.


def _name(part: int, *, layout: _Layout, labels: Sequence[str]) -> dict[str, Any]:
    """The ids of the part's clustered documents, to the bucket of their cluster."""
    own = _gather(layout.folder, labels, _EDGE, part)
    ids = read_tables(layout.work, [_file("ids", part)], 0, _IDS).column("id")
    rows = _rows(own["node"])
    columns = {"cluster": own["lower"], "id": ids.take(pa.array(rows)), "node": own["node"]}
    tables = _split(pa.table(columns, schema=_NAMED), layout.of_node(own["lower"]), layout.num_buckets)
    write_tables(layout.folder, _file("named", part), tables)
    return {"named": len(own)}


def _keep(bucket: int, *, layout: _Layout) -> dict[str, Any]:
    """The lowest (id, node) of every cluster of a bucket, for each of the others, to their parts."""
    names = [_file("named", part) for part in range(layout.num_parts)]
    named = read_tables(layout.folder, names, bucket, _NAMED)
    named = named.sort_by([("cluster", "ascending"), ("id", "ascending"), ("node", "ascending")])
    cluster, node = (named.column(name).to_numpy() for name in ("cluster", "node"))
    first = _run_starts(cluster)
    later = first < np.arange(len(cluster))
    rows = _rows(node[later]).astype(np.uint32)
    kept = pa.table({"row": rows, "id": named.column("id").take(pa.array(first[later]))}, schema=_KEPT)
    tables = _split(kept, layout.of_part(node[later]), layout.num_parts)
    write_tables(layout.folder, _file("kept", bucket), tables)
    return {"dropped": int(later.sum())}


def dropped(work: Storage, part: int) -> dict[int, str]:
    """Row of the part -> id of the document kept in its stead, for each that is a near-duplicate of a lower one.

    Lower means by (id, part, row). Rows are in ascending order.
    """
    num_buckets = work.read_json("clusters.json")["num_buckets"]
    names = [_file("kept", bucket) for bucket in range(num_buckets)]
    found = read_tables(_Layout(work, 0, num_buckets).folder, names, part, _KEPT).sort_by("row")
    return dict(zip(found.column("row").to_pylist(), found.column("id").to_pylist(), strict=True))
