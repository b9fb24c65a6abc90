"""Chunk files: what many tasks write for many later ones, cut into one bucket for each task that will read it.

    int64 offsets of buckets 0, 1, … n and the end ─ bucket 0 ─ bucket 1 ─ … ─ bucket n

Reading a bucket takes two ranged reads, 16 bytes of offsets and then its content; an empty bucket takes only the first.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from cluster.storage import Storage

_READS_AT_ONCE = 16  # small reads, each of which waits for the answer of an object store

Key = TypeVar("Key")
Content = TypeVar("Content")


def write_chunk(folder: Storage, name: str, content: bytes, sizes: Sequence[int] | np.ndarray) -> None:
    """Write a chunk of the buckets that follow one another in `content`, of these many bytes each."""
    offsets = np.zeros(len(sizes) + 1, "<i8")
    np.cumsum(sizes, out=offsets[1:])
    folder.write_bytes(name, (offsets + offsets.nbytes).tobytes() + content)


def read_buckets(folder: Storage, name: str, first: int, last: int) -> bytes:
    """The content of buckets first to last - 1 of a chunk."""
    offsets = np.frombuffer(folder.read_bytes(name, 8 * first, 8 * (last + 1)), "<i8")
    begin, end = int(offsets[0]), int(offsets[-1])
    return folder.read_bytes(name, begin, end) if end > begin else b""


def read_many(read: Callable[[Key], Content], keys: Iterable[Key]) -> list[Content]:
    """`read(key)` for every key (the name of a file, the number of a part) in their order, several at a time."""
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return list(pool.map(read, keys))


def write_tables(folder: Storage, name: str, tables: Sequence[pa.Table]) -> None:
    """Write a chunk with one table for each bucket; a table without rows is an empty bucket."""
    buckets = [_packed(table) for table in tables]
    write_chunk(folder, name, b"".join(buckets), [len(bucket) for bucket in buckets])


def read_table(folder: Storage, names: Sequence[str], bucket: int, schema: pa.Schema) -> pa.Table:
    """The rows of one bucket of every chunk, in the order of the chunks."""
    tables = read_many(partial(_read_table, folder, bucket, schema), names)
    return pa.concat_tables(tables or [schema.empty_table()])


def _read_table(folder: Storage, bucket: int, schema: pa.Schema, name: str) -> pa.Table:
    content = read_buckets(folder, name, bucket, bucket + 1)
    if not content:
        return schema.empty_table()
    with pa.CompressedInputStream(pa.BufferReader(content), "lz4") as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


def _packed(table: pa.Table) -> bytes:
    """An Arrow stream, compressed as a whole: in a table of few rows the schema is the larger part."""
    if not len(table):
        return b""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
