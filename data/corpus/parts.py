"""Parts: the output of a corpus is divided into parts, and each part is three Parquet files.

The files list the kept documents, the dropped documents and the origin of every document. A hash of the text decides
which part a document belongs to, so documents with equal texts are in one part. Only a document that a cleaning step
drops is assigned to a part by a hash of its id. Rows are sorted by id, and the bytes of a file depend only on its rows
and on the version of pyarrow. So the files are the same for any number of tasks and workers.
"""

# pyarrow.compute creates its functions when it is imported, so type checkers cannot see them.
# pyright: reportAttributeAccessIssue=false

import hashlib
from collections.abc import Collection, Mapping
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
"""Greatest number of parts of a corpus."""
PARTS_JSON = "parts.json"
"""File of a corpus that lists a `PartRecord` for every part, in the order of the part numbers."""

DOCUMENT_SCHEMA = pa.schema([*ID_COLUMNS, *CONTENT_COLUMNS])
DROP_SCHEMA = pa.schema([*ID_COLUMNS, *DROP_COLUMNS])
ORIGIN_SCHEMA = pa.schema([*ID_COLUMNS, *ORIGIN_COLUMNS])


class Part(NamedTuple):
    """The contents of the three files of a part."""

    documents: pa.Table
    """The kept documents, with the columns `DOCUMENT_SCHEMA`."""
    drops: pa.Table
    """The dropped documents and why they were dropped, with the columns `DROP_SCHEMA`."""
    origins: pa.Table
    """File and offset of every document, kept or dropped, with the columns `ORIGIN_SCHEMA`."""

    def without_ids(self, ids: Collection[str]) -> "Part":
        """Return the part without the rows of the documents with these ids."""
        removed_ids = pa.array(sorted(ids), pa.string())
        return Part(*(table.filter(pc.invert(pc.is_in(table["id"], removed_ids))) for table in self))

    def with_kept_ids(self, new_kept_ids: Mapping[str, str | None]) -> "Part":
        """Return the part with every `kept_id` that is a key of `new_kept_ids` replaced by the value."""
        kept_ids = [new_kept_ids.get(kept_id, kept_id) for kept_id in self.drops["kept_id"].to_pylist()]
        column = self.drops.schema.get_field_index("kept_id")
        return self._replace(drops=self.drops.set_column(column, "kept_id", pa.array(kept_ids, pa.string())))

    def with_rows_of(self, other: "Part") -> "Part":
        """Return a part with the rows of this part and of `other`."""
        pairs = zip(self, other, strict=True)
        return _sort_part(Part(*(pa.concat_tables([table, added.cast(table.schema)]) for table, added in pairs)))


_SCHEMAS = (DOCUMENT_SCHEMA, DROP_SCHEMA, ORIGIN_SCHEMA)
"""Schemas of the tables of a `Part`, in the order of its fields."""


@dataclass(frozen=True)
class PartCounts:
    """Counts of one source's documents in a part."""

    kept: int = 0
    """Number of kept documents."""
    bytes: int = 0
    """Total bytes of the texts of the kept documents."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of dropped documents for each reason."""


@dataclass(frozen=True)
class WrittenPart:
    """What a task returns for a part whose files it has written."""

    part_number: int
    counts: dict[str, PartCounts]
    """Counts for each source. The keys are the names of the sources."""
    digest: str
    """Hash of the kept documents of the part (`documents_digest`)."""


@dataclass(frozen=True)
class PartRecord:
    """The entry of a part in parts.json."""

    name: str
    """Name of the part's file of kept documents."""
    digest: str
    """Hash of the kept documents of the part (`documents_digest`)."""
    documents: int
    """Number of kept documents."""
    bytes: int
    """Total bytes of the texts of the kept documents."""
    counts: dict[str, PartCounts]
    """Counts for each source. The keys are the names of the sources."""


def part_file(kind: str, part_number: int) -> str:
    """Return the name of a file of a part. `kind` is `documents`, `drops` or `origins`."""
    return f"{kind}/part-{part_number:05d}.parquet"


def part_from_rows(rows: pa.Table) -> Part:
    """Return the part that consists of these rows. The table has the schema `data.corpus.rows.ROW_SCHEMA`."""
    drops = rows.filter(pc.invert(rows["reason"].is_null()))
    pairs = zip((kept_rows(rows), drops, rows), _SCHEMAS, strict=True)
    return _sort_part(Part(*(table.select(schema.names) for table, schema in pairs)))


def _sort_part(part: Part) -> Part:
    """Return the part with the rows of its tables in the order that the files have."""
    return Part(
        sort_rows(part.documents, ["id", "text", "metadata"]),
        sort_rows(part.drops, ["id", "reason", "kept_id"]),
        sort_rows(part.origins, ["id", "file", "offset"]),
    )


def write_part(output: Storage, part_number: int, part: Part) -> WrittenPart:
    """Write the three files of a part. Returns its counts and its digest."""
    for kind, table in part._asdict().items():
        _write_parquet(output, part_file(kind, part_number), table)
    return WrittenPart(part_number, _count_by_source(part.documents, part.drops), documents_digest(part.documents))


def read_part(output: Storage, part_number: int) -> Part:
    """Read a part from its files."""
    tables: list[pa.Table] = []
    for kind, schema in zip(Part._fields, _SCHEMAS, strict=True):
        with output.open(part_file(kind, part_number)) as file:
            tables.append(pq.read_table(file).cast(schema))
    return Part(*tables)


def documents_digest(documents: pa.Table) -> str:
    """Return a hash of the documents of a part: their ids, texts and metadata, in the order of the table."""
    digest = hashlib.sha256()
    for batch in documents.select(["id", "text", "metadata"]).to_batches(max_chunksize=1024):
        for document_id, text, metadata in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(f"{document_id}\0{text}\0{metadata}\n".encode())
    return digest.hexdigest()


def _count_by_source(documents: pa.Table, drops: pa.Table) -> dict[str, PartCounts]:
    """Return the counts of a part. The keys are the names of the sources."""
    counts = {
        source: PartCounts(kept.documents, kept.bytes) for source, kept in count_kept_by_source(documents).items()
    }
    for row in drops.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist():
        counts.setdefault(row["source"], PartCounts()).dropped[row["reason"]] = row["count_all"]
    return counts


def _write_parquet(output: Storage, name: str, rows: pa.Table) -> None:
    """Write a Parquet file whose bytes depend only on the rows and on the version of pyarrow.

    Settings whose defaults may change with the version of pyarrow are given. The version itself is also in the file.
    """
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
    """Return the entry of a written part in parts.json."""
    return PartRecord(
        name=part_file("documents", part.part_number),
        digest=part.digest,
        documents=sum(counts.kept for counts in part.counts.values()),
        bytes=sum(counts.bytes for counts in part.counts.values()),
        counts=part.counts,
    )


def read_part_records(corpus: Storage) -> list[PartRecord]:
    """Read the records of all parts of a corpus, in the order of the part numbers.

    Raises ValueError if the corpus has no parts.json.
    """
    try:
        return from_plain(list[PartRecord], corpus.read_json(PARTS_JSON))
    except FileNotFoundError as error:
        raise ValueError(
            f"corpus: {corpus.url} has no {PARTS_JSON}, which every complete corpus has; run the corpus stage again"
        ) from error
