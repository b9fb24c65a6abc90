"""Checks that the kept documents of a corpus have different ids.

If a source names an id column whose values repeat, several documents have one id. Then `raymill trace` and `raymill
forget` cannot tell them apart, and a hash of the id treats all of them alike. The id of a document without an id column
is a hash of its text, so such documents need no check. Documents with equal ids and equal texts are copies of one
document, and are no error either.

The documents of one id may be in any part. So each part's task writes a file of hashes, which is divided into buckets
by the hash of the id, and the check reads one bucket of all files at a time.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.chunk_files import read_buckets, read_many, write_chunk
from data.corpus.edges import run_starts
from data.corpus.parts import part_file
from data.document import Source

NUM_BUCKETS = 64
MAX_DRIVER_DOCUMENTS = 1 << 20
"""With at most so many documents in the corpus, the driver checks the buckets itself, which is faster than tasks."""

_ENTRY = np.dtype([("id", "<u8"), ("id_rest", "<u8"), ("text", "<u8"), ("part", "<u4"), ("row", "<u4")])
"""Hashes of a document's id (128 bits in two fields) and text, the number of its part, and its row in the file of kept
documents. With 64 bits, two of five billion ids would have the same hash with a probability of one half."""


@dataclass(frozen=True)
class RepeatedIds:
    """What a bucket says about ids that several different documents have."""

    num_ids: int
    num_documents: int
    """Number of documents with these ids."""
    part_number: int
    """Part that contains one of these documents."""
    row: int
    """Row of this document in the part's file of kept documents."""


def write_id_hashes(folder: Storage, part_number: int, documents: pa.Table, sources: Sequence[Source]) -> None:
    """Write the hashes of the kept documents of a part, for those sources that name an id column."""
    with_ids = {source.name for source in sources if source.id is not None}
    if not with_ids:
        return
    columns = (documents[name].to_pylist() for name in ("id", "source", "text"))
    rows = [
        (*_id_hash(id), _hash(text), part_number, row)
        for row, (id, source, text) in enumerate(zip(*columns, strict=True))
        if source in with_ids
    ]
    entries = np.array(rows, _ENTRY)
    entries.sort(order="id")
    buckets = (entries["id"] >> np.uint64(58)).astype(np.int64)  # the six highest bits
    sizes = np.bincount(buckets, minlength=NUM_BUCKETS) * _ENTRY.itemsize
    write_chunk(folder, _file_name(part_number), entries.tobytes(), sizes)


def check_unique_ids(
    output: Storage, folder: Storage, num_parts: int, num_documents: int, sources: Sequence[Source], workers: int | None
) -> None:
    """Raises ValueError if different documents that the corpus keeps have the same id.

    `num_documents` is the number of kept documents. `write_id_hashes` must have been called for every part.
    """
    if all(source.id is None for source in sources):
        return
    find_in_bucket = partial(find_repeated_ids, folder=folder, num_parts=num_parts)
    if num_documents <= MAX_DRIVER_DOCUMENTS:
        workers = 0
    found = run_tasks(
        find_in_bucket, list(range(NUM_BUCKETS)), result_type=RepeatedIds, workers=workers, label="corpus: check ids"
    )
    repeated = [bucket for bucket in found if bucket.num_ids]
    if not repeated:
        return
    with output.open(part_file("documents", repeated[0].part_number)) as file:
        example = pq.read_table(file, columns=["id"])["id"][repeated[0].row].as_py()
    source = next(source for source in sources if source.name == example.partition("/")[0])
    num_ids, num_in_all = sum(one.num_ids for one in repeated), sum(one.num_documents for one in repeated)
    raise ValueError(
        f"sources.{source.name}.id: the column {source.id!r} does not identify a document: {num_in_all:,} different "
        f"documents share {num_ids:,} {'id' if num_ids == 1 else 'ids'}, such as {example!r}; name a column with "
        "unique values, or remove the field, so that ids are hashes of the texts"
    )


def find_repeated_ids(bucket: int, *, folder: Storage, num_parts: int) -> RepeatedIds:
    """Return what the bucket with this number says about ids that several different documents have."""
    contents = read_many(
        lambda part_number: read_buckets(folder, _file_name(part_number), bucket, bucket + 1), range(num_parts)
    )
    entries = np.frombuffer(b"".join(contents), _ENTRY)
    entries = entries[np.lexsort([entries[name] for name in ("row", "part", "text", "id_rest", "id")])]
    starts = run_starts(entries["id"], entries["id_rest"])
    # An id is repeated if one of its documents has another text than the first one.
    differs = entries["text"] != entries["text"][starts] if len(entries) else np.zeros(0, bool)
    repeated = np.unique(starts[differs])
    first = entries[repeated[0]] if len(repeated) else None
    return RepeatedIds(
        num_ids=len(repeated),
        num_documents=int(np.isin(starts, repeated).sum()),
        part_number=int(first["part"]) if first is not None else 0,
        row=int(first["row"]) if first is not None else 0,
    )


def _id_hash(id: str) -> tuple[int, int]:
    digest = hashlib.blake2b(id.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _file_name(part_number: int) -> str:
    return f"ids/{part_number:05d}"
