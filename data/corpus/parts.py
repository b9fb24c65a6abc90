"""The corpus on its way through storage: pieces of input become chunks, chunks become parts.

    piece ── clean ──▶ chunk files, one slice a part ── gather ──▶ a part, equal texts met ── finish ──▶ files

A document belongs to the part that its text's hash names, so the same texts meet in one part whatever file they came
from, and a part's rows are ordered by id. Neither depends on how the work was cut, so the files have the same bytes
for any number of pieces, partitions and workers. Every function here is one task's work and can be done again.
"""

# pyarrow.compute makes its functions while it is imported, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.storage import Storage
from data.cleaning.recipe import Step, clean
from data.corpus.deduplication import text_key
from data.corpus.slices import read_tables, write_tables
from data.document import Document, ReadRange, Source, unit_hash

MAX_PARTS = 4096
_CHUNK_BYTES = 64 << 20

_COLUMNS = [("id", pa.string()), ("source", pa.string())]
_CONTENT = [("text", pa.large_string()), ("metadata", pa.large_string())]  # a part may hold more than 2 GiB of either
ROW_SCHEMA = pa.schema(
    [
        *_COLUMNS,
        *_CONTENT,
        ("key", pa.binary()),
        ("reason", pa.string()),
        ("kept_id", pa.string()),
        ("file", pa.uint32()),
        ("offset", pa.uint64()),
    ]
)
"""A document on its way: with text and key while it is kept, with a reason once it is dropped. One that has both key
and reason has the text of another that is kept."""
DOCUMENT_SCHEMA = pa.schema([*_COLUMNS, *_CONTENT])
DROP_SCHEMA = pa.schema([*_COLUMNS, ("reason", pa.string()), ("kept_id", pa.string())])
"""`kept_id` is the document for whose sake a duplicate was dropped."""
ORIGIN_SCHEMA = pa.schema([*_COLUMNS, ("file", pa.uint32()), ("offset", pa.uint64())])
"""`file` is a place in the source's list in `origins/files.json`, `offset` a byte in it (a record number in JSON and
Parquet files)."""


def part_name(kind: str, part: int) -> str:
    """The name of a part's file: `documents`, `drops` or `origins`."""
    return f"{kind}/part-{part:05d}.parquet"


def part_of_text(key: bytes, num_parts: int) -> int:
    """The part of a document with this `text_key`."""
    return int.from_bytes(key[:8], "big") * num_parts >> 64


def source_files(sources: Sequence[Source], ranges: Iterable[ReadRange]) -> list[dict[str, int]]:
    """For each source its files' URLs, numbered in their order."""
    files: list[dict[str, int]] = [{} for _ in sources]
    for place in ranges:
        own = files[place.source]
        own.setdefault(place.url, len(own))
    return files


# From documents to chunks.


def clean_rows(
    documents: Sequence[Document], steps: Sequence[Step], *, fraction: float, files: Mapping[str, int], num_parts: int
) -> tuple[list[tuple[int, dict[str, Any]]], Mapping[str, int]]:
    """(part, row) of every document, kept or dropped, and how often each change was made.

    `files` numbers the source's files by their URLs.
    """
    taken = [document for document in documents if unit_hash(document.id, "fraction") < fraction]
    left_out = [document for document in documents if unit_hash(document.id, "fraction") >= fraction]
    result = clean(taken, steps)
    rows: list[tuple[int, dict[str, Any]]] = []
    for document in result.kept:
        key = text_key(document.text)
        metadata = json.dumps(document.metadata, sort_keys=True, ensure_ascii=False, default=str)
        row = _row(document, files) | {"text": document.text, "metadata": metadata, "key": key}
        rows.append((part_of_text(key, num_parts), row))
    for document, reason in [*result.dropped, *((document, "fraction") for document in left_out)]:
        part = int(unit_hash(document.id, "bucket") * num_parts)
        rows.append((part, _row(document, files) | {"reason": reason}))
    return rows, result.counts


def _row(document: Document, files: Mapping[str, int]) -> dict[str, Any]:
    return {"id": document.id, "source": document.source, "file": files[document.file], "offset": document.offset}


class ChunkWriter:
    """Collects rows and writes them as chunk files, of which slice p holds part p.

    With `deduplicate` only the first of a chunk's equal texts travels: all copies of a text meet in one part, and there
    may be millions.
    """

    def __init__(self, output: Storage, prefix: str, num_parts: int, *, deduplicate: bool) -> None:
        self._output, self._prefix, self._deduplicate = output, prefix, deduplicate
        self._rows: list[list[dict[str, Any]]] = [[] for _ in range(num_parts)]
        self._num_bytes = 0
        self.names: list[str] = []

    def add(self, rows: Iterable[tuple[int, dict[str, Any]]]) -> None:
        for part, row in rows:
            self._rows[part].append(row)
            self._num_bytes += len(row.get("text") or "") + len(row.get("metadata") or "") + 200
        if self._num_bytes > _CHUNK_BYTES:
            self._write()

    def close(self) -> list[str]:
        """The names of all chunks."""
        if self._num_bytes:
            self._write()
        return self.names

    def _write(self) -> None:
        if self._deduplicate:
            self._rows = [_texts_once(rows) for rows in self._rows]
        name = f"{self._prefix}-{len(self.names):05d}.arrow"
        write_tables(self._output, name, [pa.Table.from_pylist(rows, schema=ROW_SCHEMA) for rows in self._rows])
        self.names.append(name)
        self._rows = [[] for _ in self._rows]
        self._num_bytes = 0


def _texts_once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a part with every one dropped whose text another has that comes first in the order of `settle`."""
    made = [row for row in rows if row.get("key") is None]
    kept = [row for row in rows if row.get("key") is not None]
    seen: set[bytes] = set()
    for row in sorted(kept, key=lambda row: [row[name] for name in ("id", "text", "metadata", "file", "offset")]):
        again = row["key"] in seen
        made.append(row | {"text": None, "metadata": None, "reason": "exact_duplicates"} if again else row)
        seen.add(row["key"])
    return made


# From chunks to parts.


def gather(output: Storage, chunks: Sequence[str], part: int, *, deduplicate: bool) -> pa.Table:
    """Every row of one part, in order, and equal texts (`deduplicate`) dropped but for that of the lowest id."""
    return settle(read_tables(output, chunks, part, ROW_SCHEMA), deduplicate=deduplicate)


def settle(rows: pa.Table, *, deduplicate: bool) -> pa.Table:
    """The rows in the order of a part, and equal texts dropped but for the first of them."""
    rows = _ordered(rows, ["id", "text", "metadata", "reason", "file", "offset"])
    if not deduplicate:
        return rows
    ids, keys = rows["id"].to_pylist(), rows["key"].to_pylist()
    first: dict[bytes, int] = {}
    for place in kept_places(rows).tolist():  # the very first has its text, in whatever chunks the others came
        first.setdefault(keys[place], place)
    again = {place: first[key] for place, key in enumerate(keys) if key is not None and first[key] != place}
    return drop(rows, {place: ("exact_duplicates", ids[kept]) for place, kept in again.items()})


def drop(rows: pa.Table, reasons: Mapping[int, tuple[str, str | None]]) -> pa.Table:
    """The rows with reasons (and for whose sake) at some places, which lose their text with it."""
    if not reasons:
        return rows
    places = sorted(reasons)
    mask = np.zeros(len(rows), dtype=np.bool_)
    mask[places] = True
    for name, values in (
        ("reason", [reasons[place][0] for place in places]),
        ("kept_id", [reasons[place][1] for place in places]),
        ("text", [None] * len(places)),
    ):
        column = rows[name].combine_chunks()
        column = pc.replace_with_mask(column, pa.array(mask), pa.array(values, column.type))
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def kept_places(rows: pa.Table) -> np.ndarray:
    """Places of the rows that are not dropped."""
    return np.flatnonzero(rows["reason"].is_null().to_numpy())


def bytes_by_source(rows: pa.Table) -> dict[str, int]:
    """Bytes of text that each source has among the rows that are kept."""
    return {name: size for name, (_, size) in _kept_by_source(rows.filter(rows["reason"].is_null())).items()}


def _kept_by_source(documents: pa.Table) -> dict[str, tuple[int, int]]:
    """Number of documents of each source, and bytes of their texts."""
    table = pa.table({"source": documents["source"], "size": pc.binary_length(documents["text"])})
    table = table.group_by("source").aggregate([("size", "count"), ("size", "sum")])
    return {row["source"]: (row["size_count"], row["size_sum"]) for row in table.to_pylist()}


def mixture_shares(num_bytes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """The part of each source to keep so that bytes stand as the weights say and as many as possible are kept.

    With B bytes of a source and weight w (of weights that sum to 1) the whole is T = min(B / w), the share w T / B.
    A source with no bytes left, or weight 0, has share 0 and limits no other.
    """
    total = sum(weights.values())
    whole = min(
        (num_bytes[name] * total / weight for name, weight in weights.items() if weight and num_bytes.get(name)),
        default=0.0,
    )
    return {
        name: min(1.0, weight / total * whole / num_bytes[name]) if num_bytes.get(name) else 0.0
        for name, weight in weights.items()
    }


def mix(rows: pa.Table, shares: Mapping[str, float]) -> pa.Table:
    """The rows with those dropped that their source has too many of, chosen by a hash of the id."""
    if not shares:
        return rows
    ids, sources = rows["id"], rows["source"]
    surplus = {
        int(place): ("mixture", None)
        for place in kept_places(rows)
        if unit_hash(ids[place].as_py(), "mixture") >= shares[sources[place].as_py()]
    }
    return drop(rows, surplus)


# The files of a part.


class Part(NamedTuple):
    """The tables of one part, each in its order."""

    documents: pa.Table
    drops: pa.Table
    origins: pa.Table

    def without(self, ids: Collection[str]) -> "Part":
        """The part less every row of these ids."""
        values = pa.array(sorted(ids), pa.string())
        return Part(*(table.filter(pc.invert(pc.is_in(table["id"], values))) for table in self))

    def joined(self, other: "Part") -> "Part":
        """The rows of both parts."""
        pairs = zip(self, other, strict=True)
        return _in_order(Part(*(pa.concat_tables([own, more.cast(own.schema)]) for own, more in pairs)))


_SCHEMAS = (DOCUMENT_SCHEMA, DROP_SCHEMA, ORIGIN_SCHEMA)
"""In the order of `Part`."""


def to_part(rows: pa.Table) -> Part:
    """The tables that rows of `ROW_SCHEMA` make."""
    is_kept = rows["reason"].is_null()
    documents, drops = rows.filter(is_kept), rows.filter(pc.invert(is_kept))
    pairs = zip((documents, drops, rows), _SCHEMAS, strict=True)
    return _in_order(Part(*(table.select(schema.names) for table, schema in pairs)))


def _in_order(part: Part) -> Part:
    return Part(
        _ordered(part.documents, ["id", "text", "metadata"]),
        _ordered(part.drops, ["id", "reason", "kept_id"]),
        _ordered(part.origins, ["id", "file", "offset"]),
    )


def _ordered(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in columns]).combine_chunks()


def write_part(output: Storage, number: int, part: Part) -> dict[str, Any]:
    """Write documents/, drops/ and origins/ of one part; return its counts by source and its digest."""
    for kind, table in part._asdict().items():
        _write_parquet(output, part_name(kind, number), table)
    return {
        "part": number,
        "counts": _counts(part.documents, part.drops),
        "digest": documents_digest(part.documents),
    }


def read_part(output: Storage, number: int) -> Part:
    """The tables of one part as they stand."""
    tables: list[pa.Table] = []
    for kind, schema in zip(Part._fields, _SCHEMAS, strict=True):
        with output.open(part_name(kind, number)) as file:
            tables.append(pq.read_table(file).cast(schema))
    return Part(*tables)


def documents_digest(documents: pa.Table) -> str:
    """Identity of a part's documents, in their order."""
    digest = hashlib.sha256()
    for batch in documents.select(["id", "text", "metadata"]).to_batches(max_chunksize=1024):
        for own, text, metadata in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(f"{own}\0{text}\0{metadata}\n".encode())
    return digest.hexdigest()


def _counts(documents: pa.Table, drops: pa.Table) -> dict[str, dict[str, Any]]:
    counts: dict[str, dict[str, Any]] = {
        name: {"kept": number, "bytes": size, "dropped": {}}
        for name, (number, size) in _kept_by_source(documents).items()
    }
    grouped = drops.group_by(["source", "reason"]).aggregate([([], "count_all")])
    for row in grouped.to_pylist():
        own = counts.setdefault(row["source"], {"kept": 0, "bytes": 0, "dropped": {}})
        own["dropped"][row["reason"]] = row["count_all"]
    return counts


def _write_parquet(output: Storage, name: str, rows: pa.Table) -> None:
    """A Parquet file whose bytes depend on the rows alone: every setting that a default could change is fixed."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows.replace_schema_metadata(None).combine_chunks(),
        sink,
        compression="zstd",
        compression_level=3,
        row_group_size=4096,
        version="2.6",
        use_dictionary=False,
        write_statistics=True,
    )
    output.write_bytes(name, sink.getvalue().to_pybytes())
