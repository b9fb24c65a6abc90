"""Chunk files, with which many tasks pass data to many later tasks.

A writing task writes one or more chunks. A chunk consists of buckets. A reading task reads the same bucket, or the same
few buckets, of many chunks. A chunk begins with the offsets of its buckets:

    int64 offsets of buckets 0, 1, … n and of the end ─ bucket 0 ─ bucket 1 ─ … ─ bucket n

To read a bucket, two ranged reads are necessary: 16 bytes of offsets, and the content unless the bucket is empty.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from cluster.storage import Storage

_NUM_READ_THREADS = 16  # May be more than the cores, because small reads mostly wait for an object store.

Key = TypeVar("Key")
Content = TypeVar("Content")


def write_chunk(folder: Storage, name: str, content: bytes, sizes: Sequence[int] | np.ndarray) -> None:
    """Write a chunk. `content` is the content of all buckets in order, and `sizes` is the number of bytes of each."""
    offsets = np.zeros(len(sizes) + 1, "<i8")
    np.cumsum(sizes, out=offsets[1:])
    folder.write_bytes(name, (offsets + offsets.nbytes).tobytes() + content)


def read_buckets(folder: Storage, name: str, first: int, stop: int) -> bytes:
    """Return the content of the buckets `first` to `stop` - 1 of a chunk, joined in order."""
    offsets = np.frombuffer(folder.read_bytes(name, 8 * first, 8 * (stop + 1)), "<i8")
    begin, end = int(offsets[0]), int(offsets[-1])
    return folder.read_bytes(name, begin, end) if end > begin else b""


def read_many(read: Callable[[Key], Content], keys: Iterable[Key]) -> list[Content]:
    """Call `read` for every key, such as a file name, in several threads. Returns the results in order of the keys."""
    with ThreadPoolExecutor(_NUM_READ_THREADS) as pool:
        return list(pool.map(read, keys))


def write_tables(folder: Storage, name: str, tables: Sequence[pa.Table]) -> None:
    """Write a chunk with one table in each bucket. A table without rows becomes an empty bucket."""
    buckets = [_serialize(table) for table in tables]
    write_chunk(folder, name, b"".join(buckets), [len(bucket) for bucket in buckets])


def read_table(folder: Storage, names: Sequence[str], bucket: int, schema: pa.Schema) -> pa.Table:
    """Read the tables in one bucket of every chunk and return their rows in the order of the chunks."""
    tables = read_many(partial(_read_table, folder, bucket, schema), names)
    return pa.concat_tables(tables or [schema.empty_table()])


def _read_table(folder: Storage, bucket: int, schema: pa.Schema, name: str) -> pa.Table:
    content = read_buckets(folder, name, bucket, bucket + 1)
    if not content:
        return schema.empty_table()
    with pa.CompressedInputStream(pa.BufferReader(content), "lz4") as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


def _serialize(table: pa.Table) -> bytes:
    """Serialize a table to a compressed Arrow stream. A table without rows becomes an empty string.

    The complete stream is compressed instead of each column, because most bytes of a small table are its schema.
    """
    if not len(table):
        return b""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
