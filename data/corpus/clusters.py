"""Finds clusters of near-duplicates with many tasks. A cluster is a connected component of linked documents.

`links.py` says which documents are linked, and finds clusters in memory. This module does the same for a corpus that is
larger than memory, in phases. A phase is a list of tasks. Each task writes one or two files, which are divided into
buckets. A bucket holds the records for one task of a later phase. This task reads its bucket of every file of the
earlier phase.

    write_nodes                     Run by the caller for each part. Writes ids and signatures, and an entry (band hash,
                                    digest, row) for each band of each signature.
      phase    a task for each      what the task writes
      match    bucket of entries    Edges between documents with equal signatures. For documents with different
                                    signatures that share a band hash, requests for their signatures.
      attach   part                 The requested signatures, for the buckets that requested them.
      link     bucket of entries    Edges between documents whose signatures agree.
      stars    bucket of nodes      In each round, edges that replace those of the round before. In the last round each
                                    component is a star: all edges lead to its lowest node. Then the lowest node for
                                    each other node, in the bucket of this node's part. If there are few edges, the
                                    driver (the process that runs the phases) does this phase itself.
      name     part                 The id of each document in a cluster, for the bucket of its cluster.
      keep     bucket of clusters   The lowest id of each cluster, for the parts of its documents.
    kept_ids_of_near_duplicates     Reads, for one part, the ids of the documents that are kept instead.

A node is a document, identified by the number `part << 32 | row`. The row is the document's position among the
documents of the part that `write_nodes` gets.

The result of each finished task is stored, so only unfinished tasks run again after the process is killed. The clusters
depend only on ids and texts, not on the number of buckets and workers.

A task has in memory the signatures of one part or the records of one bucket. The records of a document take 20 bytes
for each band. In addition, a document has a record of about 500 bytes (with the default settings) for each band hash
that it shares with a document whose signature is different. All edges of a node are in one bucket, 16 bytes each. The
center of a star has an edge to every other document of its component, so a large component needs much memory.

Large stars and small stars are the two operations of the algorithm that finds connected components (`edges.py`).
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
"""Maximum number of buckets, and the number of buckets in the files of entries, which `write_nodes` writes."""
MAX_DRIVER_EDGES = 1 << 20
"""With at most this many edges (16 MiB), the driver finds the connected components itself. With more edges, tasks find
them in rounds. The driver is the process that runs the phases."""

_ENTRY = np.dtype([("hash", "<u8"), ("digest", "<u8"), ("row", "<u4")])
"""A band hash of a document, the digest of the document's signature, and the document's row in its part."""
_REQUEST = np.dtype([("hash", "<u8"), ("node", "<u8")])
"""A request for the signature of a node, and the shared band hash because of which the signature is requested."""
_ID_SCHEMA = pa.schema([("id", pa.string())])
_CLUSTER_ID_SCHEMA = pa.schema([("cluster", pa.uint64()), ("id", pa.string()), ("node", pa.uint64())])
"""For each document in a cluster: the lowest node of the cluster, and the id and the node of the document."""
_KEPT_ID_SCHEMA = pa.schema([("row", pa.uint32()), ("id", pa.string())])
"""For each document that is dropped: its row in its part, and the id of the document that is kept instead."""
_ROW_BITS = np.uint64(32)


@dataclass(frozen=True)
class PartNodes:
    """What `write_nodes` returns for a part."""

    part_number: int
    documents: int
    """Number of documents of the part."""


@dataclass(frozen=True)
class _NumRecords:
    """Result of a task that wrote a file of records."""

    num_records: int
    """Number of records in the file. A task of the phase `match` writes two files and counts only its edges."""


@dataclass(frozen=True)
class _LargeStarResult:
    """Result of a task that made large stars."""

    in_stars: bool
    """Whether all nodes of the bucket were already in stars before this task (`edges.LargeStar.in_stars`)."""


@dataclass(frozen=True)
class _Layout:
    """Says where the files of the phases are, and in which bucket each record is."""

    work: Storage
    """Folder that `write_nodes` writes to. The files of the phases are in a folder below it."""
    num_parts: int
    num_buckets: int
    """Number of buckets in a file that is divided by band hash, node or cluster. A file that is divided by part has
    `num_parts` buckets."""

    @property
    def folder(self) -> Storage:
        """Folder of the files of the phases."""
        return self.work / f"buckets-{self.num_buckets:04d}"

    def bucket_of_hash(self, hashes: np.ndarray) -> np.ndarray:
        """Return the bucket of each hash. The ten highest bits of a hash decide, so buckets are ranges of hashes."""
        return (hashes >> np.uint64(54)).astype(np.int64) * self.num_buckets // MAX_BUCKETS

    def bucket_of_node(self, nodes: np.ndarray) -> np.ndarray:
        """Return the bucket of each node."""
        return self.bucket_of_hash(mix_bits(nodes))


def _part_numbers(nodes: np.ndarray) -> np.ndarray:
    """Return the part number of each node."""
    return (nodes >> _ROW_BITS).astype(np.int64)


def _row_numbers(nodes: np.ndarray) -> np.ndarray:
    """Return the position of each node among the documents of its part."""
    return (nodes & np.uint64(0xFFFFFFFF)).astype(np.int64)


# Files of records in buckets.


def _write_records(folder: Storage, name: str, records: np.ndarray, buckets: np.ndarray, num_buckets: int) -> None:
    """Write a file of records. `buckets` (int64) has the bucket of each record."""
    order = np.argsort(buckets, kind="stable")
    bucket_bytes = np.bincount(buckets, minlength=num_buckets) * records.itemsize
    write_chunk(folder, name, records[order].tobytes(), bucket_bytes)


def _read_records(folder: Storage, names: Sequence[str], dtype: np.dtype, begin: int, stop: int) -> list[np.ndarray]:
    """Read the records of the buckets from `begin` to `stop - 1`. Returns an array for each file."""
    contents = read_many(lambda name: read_buckets(folder, name, begin, stop), names)
    return [np.frombuffer(content, dtype) for content in contents]


def _read_bucket(folder: Storage, names: Sequence[str], dtype: np.dtype, bucket: int) -> np.ndarray:
    """Read the records of one bucket of all files, and concatenate them."""
    return np.concatenate(_read_records(folder, names, dtype, bucket, bucket + 1))


def _split_by_bucket(table: pa.Table, buckets: np.ndarray, num_buckets: int) -> list[pa.Table]:
    """Split the rows of a table by their buckets. The order of rows within a bucket does not change."""
    table = table.take(pa.array(np.argsort(buckets, kind="stable")))
    ends = np.cumsum(np.bincount(buckets, minlength=num_buckets))
    return [table.slice(end - size, size) for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]


def _file_name(name: str, number: int) -> str:
    return f"{name}/{number:05d}"


def _file_names(name: str, num_files: int) -> list[str]:
    return [_file_name(name, number) for number in range(num_files)]


# The documents of one part.


def write_nodes(
    work: Storage, part_number: int, ids: Sequence[str], texts: Sequence[str], settings: NearDuplicates
) -> PartNodes:
    """Write the files of one part that the search for clusters reads first.

    Must be called for every part, even for a part without documents. The part number must be below 2**31.
    """
    signatures = minhash_signatures(texts, settings)
    digests = signature_digests(signatures)
    # The digest counts as one more band, which documents share only if their signatures are equal.
    hashes = np.column_stack([band_hashes(signatures, settings), digests])
    entries = np.empty(hashes.size, _ENTRY)
    entries["hash"] = hashes.ravel()
    entries["digest"] = np.repeat(digests, hashes.shape[1])
    entries["row"] = np.repeat(np.arange(len(signatures), dtype=np.uint32), hashes.shape[1])
    # The number of buckets in later phases is not known here, so there are as many buckets as possible.
    buckets = _Layout(work, 1, MAX_BUCKETS).bucket_of_hash(entries["hash"])
    _write_records(work, _file_name("entries", part_number), entries, buckets, MAX_BUCKETS)
    work.write_bytes(_file_name("signatures", part_number), signatures.astype("<u4").tobytes())
    write_tables(work, _file_name("ids", part_number), [pa.table({"id": pa.array(ids, pa.string())})])
    return PartNodes(part_number, len(ids))


# The phases.


class _Phases:
    """Runs the phases of one search for clusters."""

    def __init__(self, layout: _Layout, workers: int | None) -> None:
        self.layout, self.workers = layout, workers

    def run(
        self, name: str, function: Callable[..., Result], num_tasks: int, result_type: type[Result], **arguments: Any
    ) -> list[Result]:
        """Run a phase: call the function with each number below `num_tasks`, the layout and the arguments."""
        return run_tasks(
            partial(function, layout=self.layout, **arguments),
            list(range(num_tasks)),
            result_type=result_type,
            workers=self.workers,
            label=f"near-duplicates: {name}",
            result_folder=self.layout.folder / "results" / name,
        )


def find_clusters(
    work: Storage, nodes: Iterable[PartNodes], settings: NearDuplicates, *, num_buckets: int, workers: int | None
) -> None:
    """Find the clusters of near-duplicates in all parts. `kept_ids_of_near_duplicates` reads the result.

    `nodes` has what `write_nodes` returned for every part. `num_buckets`, 1 to 1,024, is the number of tasks in most
    phases. After the process is killed, the same call continues the search.
    """
    if not 1 <= num_buckets <= MAX_BUCKETS:
        raise ValueError(f"num_buckets: {num_buckets} must be between 1 and {MAX_BUCKETS}")
    part_numbers = sorted(part.part_number for part in nodes)
    assert part_numbers and part_numbers == list(range(len(part_numbers))), (
        f"each part from 0 to {len(part_numbers) - 1} must occur once, but the part numbers are {part_numbers}"
    )
    layout = _Layout(work, len(part_numbers), num_buckets)
    phases = _Phases(layout, workers)
    matched = phases.run("match", _match_entries, num_buckets, _NumRecords)
    phases.run("attach", _attach_signatures, len(part_numbers), _NumRecords, settings=settings)
    linked = phases.run("link", _link_documents, num_buckets, _NumRecords, settings=settings)
    num_edges = sum(result.num_records for result in (*matched, *linked))
    label_files = _connect(layout) if num_edges <= MAX_DRIVER_EDGES else _connect_in_rounds(phases)
    phases.run("name", _name_documents, len(part_numbers), _NumRecords, label_files=label_files)
    phases.run("keep", _choose_kept_ids, num_buckets, _NumRecords)
    work.write_json("clusters.json", {"num_buckets": num_buckets})


def _match_entries(bucket: int, *, layout: _Layout) -> _NumRecords:
    """Write edges between documents with equal signatures, and request the signatures that the phase `link` compares.

    The edges lead from each document to the lowest node that has an equal signature. Documents with different
    signatures may be linked if they share a band hash, so their signatures are requested. Of several documents with
    equal signatures, only the signature of the lowest node is requested.
    """
    # The files of entries have `MAX_BUCKETS` buckets. Those from `begin` to `stop - 1` make up this bucket.
    begin, stop = (-(-MAX_BUCKETS * number // layout.num_buckets) for number in (bucket, bucket + 1))
    entries_by_part = _read_records(layout.work, _file_names("entries", layout.num_parts), _ENTRY, begin, stop)
    entries = np.concatenate(entries_by_part)
    first_nodes = np.arange(layout.num_parts, dtype=np.uint64) << _ROW_BITS  # the first node of each part
    nodes = np.repeat(first_nodes, [len(part_entries) for part_entries in entries_by_part])
    nodes += entries["row"]
    order = np.lexsort((nodes, entries["digest"], entries["hash"]))
    entries, nodes = entries[order], nodes[order]
    # For each entry, the position of the first entry with the same hash and digest. It has the lowest node.
    first_equal = run_starts(entries["hash"], entries["digest"])
    is_repeated = first_equal < np.arange(len(nodes))
    # Documents with equal signatures share all bands, but only one edge is needed: that for the band of the digest.
    is_edge = is_repeated & (entries["hash"] == entries["digest"])
    edges = make_edges(nodes[is_edge], nodes[first_equal[is_edge]])
    hashes, nodes = entries["hash"][~is_repeated], nodes[~is_repeated]
    first_of_hash = run_starts(hashes)
    is_shared = np.bincount(first_of_hash, minlength=len(nodes))[first_of_hash] > 1
    requests = np.empty(int(is_shared.sum()), _REQUEST)
    requests["hash"], requests["node"] = hashes[is_shared], nodes[is_shared]
    _write_edges(layout, _file_name("edges/match", bucket), edges)
    part_numbers = _part_numbers(requests["node"])
    _write_records(layout.folder, _file_name("wanted", bucket), requests, part_numbers, layout.num_parts)
    return _NumRecords(len(edges))


def _attach_signatures(part_number: int, *, layout: _Layout, settings: NearDuplicates) -> _NumRecords:
    """Write the requested signatures of the part's documents, for the buckets that requested them."""
    requests = _read_bucket(layout.folder, _file_names("wanted", layout.num_buckets), _REQUEST, part_number)
    replies = np.empty(len(requests), _reply_type(settings))
    replies["hash"], replies["node"] = requests["hash"], requests["node"]
    if len(requests):
        values = np.frombuffer(layout.work.read_bytes(_file_name("signatures", part_number)), "<u4")
        signatures = values.reshape(-1, settings.bands * settings.rows)
        replies["signature"] = signatures[_row_numbers(requests["node"])]
    buckets = layout.bucket_of_hash(replies["hash"])
    _write_records(layout.folder, _file_name("attached", part_number), replies, buckets, layout.num_buckets)
    return _NumRecords(len(replies))


def _reply_type(settings: NearDuplicates) -> np.dtype:
    """Return the type of a request together with the requested signature."""
    return np.dtype([("hash", "<u8"), ("node", "<u8"), ("signature", "<u4", (settings.bands * settings.rows,))])


def _link_documents(bucket: int, *, layout: _Layout, settings: NearDuplicates) -> _NumRecords:
    """Write edges that connect the linked documents of the bucket.

    The edges form a forest, which has fewer edges than there are links but connects the same documents.
    """
    replies = _read_bucket(layout.folder, _file_names("attached", layout.num_parts), _reply_type(settings), bucket)
    nodes, first_replies, members = np.unique(replies["node"], return_index=True, return_inverse=True)
    links = find_links(replies["hash"], members, replies["signature"][first_replies], settings)
    edges = forest_edges(nodes, links)
    _write_edges(layout, _file_name("edges/link", bucket), edges)
    return _NumRecords(len(edges))


# Connected components.


def _write_edges(layout: _Layout, name: str, edges: np.ndarray) -> None:
    """Write each edge to the buckets of both its nodes. If both nodes are in one bucket, the edge is written once."""
    node_buckets, lower_buckets = layout.bucket_of_node(edges["node"]), layout.bucket_of_node(edges["lower"])
    differ = node_buckets != lower_buckets
    edges, buckets = np.concatenate([edges, edges[differ]]), np.concatenate([node_buckets, lower_buckets[differ]])
    _write_records(layout.folder, name, edges, buckets, layout.num_buckets)


def _edge_files(layout: _Layout) -> list[str]:
    """Return the names of the files with the edges that the phases `match` and `link` wrote."""
    return [*_file_names("edges/match", layout.num_buckets), *_file_names("edges/link", layout.num_buckets)]


def _connect(layout: _Layout) -> list[str]:
    """Find all connected components in this process. Returns the names of the label files, which is a single name."""
    edges = sort_unique(np.concatenate(_read_records(layout.folder, _edge_files(layout), EDGE, 0, layout.num_buckets)))
    nodes, pairs = np.unique(np.stack([edges["node"], edges["lower"]], axis=1), return_inverse=True)
    lowest = nodes[lowest_in_component(len(nodes), pairs.reshape(-1, 2))]
    _write_labels(layout, _file_name("labels", 0), nodes, lowest)
    return [_file_name("labels", 0)]


def _write_labels(layout: _Layout, name: str, nodes: np.ndarray, lowest: np.ndarray) -> None:
    """Write the label of each node, for the node's part. The label is the lowest node of the component.

    A node and its label are stored like an edge: the node in the field `node`, the label in the field `lower` (`EDGE`).
    Unlike in an edge, both may be equal.
    """
    _write_records(layout.folder, name, make_edges(nodes, lowest), _part_numbers(nodes), layout.num_parts)


def _connect_in_rounds(phases: _Phases) -> list[str]:
    """Make large and small stars in rounds until every component is a star. Returns the names of the label files."""
    num_buckets = phases.layout.num_buckets
    edge_files = _edge_files(phases.layout)
    round_number = 0
    while True:
        folder = f"stars-{round_number:03d}"
        results = phases.run(
            f"{folder}/large", _make_large_stars, num_buckets, _LargeStarResult, edge_files=edge_files, folder=folder
        )
        if all(result.in_stars for result in results):
            return _file_names(f"{folder}/labels", num_buckets)
        phases.run(f"{folder}/small", _make_small_stars, num_buckets, _NumRecords, folder=folder)
        edge_files = _file_names(f"{folder}/small", num_buckets)
        round_number += 1


def _make_large_stars(bucket: int, *, layout: _Layout, edge_files: Sequence[str], folder: str) -> _LargeStarResult:
    """Make the large stars of the bucket's nodes. Also writes the labels if all nodes of the bucket are in stars."""
    edges = sort_unique(_read_bucket(layout.folder, edge_files, EDGE, bucket))
    # In this array, the field `lower` is any neighbor of the node, lower or not.
    both_directions = np.concatenate([edges, make_edges(edges["lower"], edges["node"])])
    from_bucket = both_directions[layout.bucket_of_node(both_directions["node"]) == bucket]
    star = large_star(from_bucket["node"], from_bucket["lower"])
    if star.in_stars:
        _write_labels(layout, _file_name(f"{folder}/labels", bucket), star.nodes, star.lowest)
    buckets = layout.bucket_of_node(star.edges["node"])
    _write_records(layout.folder, _file_name(f"{folder}/large", bucket), star.edges, buckets, layout.num_buckets)
    return _LargeStarResult(star.in_stars)


def _make_small_stars(bucket: int, *, layout: _Layout, folder: str) -> _NumRecords:
    """Make the small stars of the bucket's nodes."""
    edges = sort_unique(_read_bucket(layout.folder, _file_names(f"{folder}/large", layout.num_buckets), EDGE, bucket))
    star_edges = small_star(edges["node"], edges["lower"])
    _write_edges(layout, _file_name(f"{folder}/small", bucket), star_edges)
    return _NumRecords(len(star_edges))


# The document that a cluster keeps.


def _name_documents(part_number: int, *, layout: _Layout, label_files: Sequence[str]) -> _NumRecords:
    """Write the ids of the part's documents that are in clusters, for the buckets of their clusters."""
    labels = _read_bucket(layout.folder, label_files, EDGE, part_number)
    ids = read_table(layout.work, [_file_name("ids", part_number)], 0, _ID_SCHEMA).column("id")
    rows = _row_numbers(labels["node"])
    columns = {"cluster": labels["lower"], "id": ids.take(pa.array(rows)), "node": labels["node"]}
    buckets = layout.bucket_of_node(labels["lower"])
    tables = _split_by_bucket(pa.table(columns, schema=_CLUSTER_ID_SCHEMA), buckets, layout.num_buckets)
    write_tables(layout.folder, _file_name("named", part_number), tables)
    return _NumRecords(len(labels))


def _choose_kept_ids(bucket: int, *, layout: _Layout) -> _NumRecords:
    """Choose the document that each cluster keeps: the document with the lowest (id, node).

    For every other document of the cluster, writes the id of the kept document, in the bucket of the other document's
    part.
    """
    names = _file_names("named", layout.num_parts)
    documents = read_table(layout.folder, names, bucket, _CLUSTER_ID_SCHEMA)
    documents = documents.sort_by([("cluster", "ascending"), ("id", "ascending"), ("node", "ascending")])
    clusters, nodes = (documents.column(name).to_numpy() for name in ("cluster", "node"))
    kept_positions = run_starts(clusters)
    is_dropped = kept_positions < np.arange(len(clusters))
    dropped_nodes = nodes[is_dropped]
    kept_ids = documents.column("id").take(pa.array(kept_positions[is_dropped]))
    table = pa.table({"row": _row_numbers(dropped_nodes).astype(np.uint32), "id": kept_ids}, schema=_KEPT_ID_SCHEMA)
    tables = _split_by_bucket(table, _part_numbers(dropped_nodes), layout.num_parts)
    write_tables(layout.folder, _file_name("kept", bucket), tables)
    return _NumRecords(len(dropped_nodes))


def kept_ids_of_near_duplicates(work: Storage, part_number: int) -> dict[int, str]:
    """Return, for each near-duplicate of a part that is dropped, the id of the document that is kept instead.

    The keys are the positions of the dropped documents among those that `write_nodes` got for the part, in ascending
    order. Each cluster keeps the document with the lowest id. If several documents have this id, the lowest part number
    and then the lowest row decide.
    """
    num_buckets = work.read_json("clusters.json")["num_buckets"]
    folder = _Layout(work, 0, num_buckets).folder
    table = read_table(folder, _file_names("kept", num_buckets), part_number, _KEPT_ID_SCHEMA).sort_by("row")
    return dict(zip(table.column("row").to_pylist(), table.column("id").to_pylist(), strict=True))
