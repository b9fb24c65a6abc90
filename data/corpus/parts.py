"""Parts: the output files of a corpus, in which equal texts have met.

Rows are ordered by id and each file's bytes depend on its rows alone, so the files are the same for any number of
tasks, partitions and workers.
"""

# pyarrow.compute makes its functions while it is imported, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.plain import from_plain
from cluster.storage import Storage
from data.corpus.rows import (
    CONTENT_COLUMNS,
    DROP_COLUMNS,
    ID_COLUMNS,
    ORIGIN_COLUMNS,
    count_kept_by_source,
    kept_rows,
    sort_rows,
)

MAX_PARTS = 4096
PARTS_JSON = "parts.json"
"""In a corpus: a `PartRecord` of every part, in their order."""

DOCUMENT_SCHEMA = pa.schema([*ID_COLUMNS, *CONTENT_COLUMNS])
DROP_SCHEMA = pa.schema([*ID_COLUMNS, *DROP_COLUMNS])
ORIGIN_SCHEMA = pa.schema([*ID_COLUMNS, *ORIGIN_COLUMNS])


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
        return _sort_part(Part(*(pa.concat_tables([table, added.cast(table.schema)]) for table, added in pairs)))


_SCHEMAS = (DOCUMENT_SCHEMA, DROP_SCHEMA, ORIGIN_SCHEMA)
"""In the order of `Part`."""


@dataclass(frozen=True)
class PartCounts:
    """What a part holds of one source."""

    kept: int = 0
    bytes: int = 0
    """Of the texts that are kept."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Documents by reason."""


@dataclass(frozen=True)
class WrittenPart:
    """A part whose files are written."""

    part: int
    counts: dict[str, PartCounts]
    """By source."""
    digest: str


@dataclass(frozen=True)
class PartRecord:
    """What parts.json says of a part."""

    name: str
    """Of its documents' file."""
    digest: str
    documents: int
    bytes: int
    counts: dict[str, PartCounts]


def part_name(kind: str, part: int) -> str:
    """The name of a part's file; `kind` is `documents`, `drops` or `origins`."""
    return f"{kind}/part-{part:05d}.parquet"


def part_from_rows(rows: pa.Table) -> Part:
    """The tables that rows of `ROW_SCHEMA` make."""
    drops = rows.filter(pc.invert(rows["reason"].is_null()))
    pairs = zip((kept_rows(rows), drops, rows), _SCHEMAS, strict=True)
    return _sort_part(Part(*(table.select(schema.names) for table, schema in pairs)))


def _sort_part(part: Part) -> Part:
    return Part(
        sort_rows(part.documents, ["id", "text", "metadata"]),
        sort_rows(part.drops, ["id", "reason", "kept_id"]),
        sort_rows(part.origins, ["id", "file", "offset"]),
    )


def write_part(output: Storage, number: int, part: Part) -> WrittenPart:
    """Write the three files of one part; return its counts and its digest."""
    for kind, table in part._asdict().items():
        _write_parquet(output, part_name(kind, number), table)
    return WrittenPart(number, _count_by_source(part.documents, part.drops), documents_digest(part.documents))


def read_part(output: Storage, number: int) -> Part:
    """The tables of one part, from its files."""
    tables: list[pa.Table] = []
    for kind, schema in zip(Part._fields, _SCHEMAS, strict=True):
        with output.open(part_name(kind, number)) as file:
            tables.append(pq.read_table(file).cast(schema))
    return Part(*tables)


def documents_digest(documents: pa.Table) -> str:
    """Identity of a part's documents, in their order."""
    digest = hashlib.sha256()
    for batch in documents.select(["id", "text", "metadata"]).to_batches(max_chunksize=1024):
        for document_id, text, metadata in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(f"{document_id}\0{text}\0{metadata}\n".encode())
    return digest.hexdigest()


def _count_by_source(documents: pa.Table, drops: pa.Table) -> dict[str, PartCounts]:
    counts = {source: PartCounts(*text) for source, text in count_kept_by_source(documents).items()}
    for row in drops.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist():
        counts.setdefault(row["source"], PartCounts()).dropped[row["reason"]] = row["count_all"]
    return counts


def _write_parquet(output: Storage, name: str, rows: pa.Table) -> None:
    """Write a Parquet file whose bytes depend on the rows alone: every setting that a default could change is fixed."""
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


def part_record(part: WrittenPart) -> PartRecord:
    """What parts.json says of a written part."""
    return PartRecord(
        name=part_name("documents", part.part),
        digest=part.digest,
        documents=sum(counts.kept for counts in part.counts.values()),
        bytes=sum(counts.bytes for counts in part.counts.values()),
        counts=part.counts,
    )


def read_part_records(corpus: Storage) -> list[PartRecord]:
    """The record of every part of a corpus, in their order. Raises ValueError where there are none."""
    try:
        return from_plain(list[PartRecord], corpus.read_json(PARTS_JSON))
    except FileNotFoundError as error:
        raise ValueError(f"corpus: {corpus.url} holds no {PARTS_JSON}; make the corpus again") from error
