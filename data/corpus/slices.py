"""Files in slices: what meets in a later task was written by many, each of which wrote one file for all that follow.

    int64 offsets of slices 0, 1, … n and the end ─ slice 0 ─ slice 1 ─ … ─ slice n

A slice takes two ranged reads, 16 bytes of offsets and then its own; an empty one takes the first alone.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from cluster.storage import Storage

_READS_AT_ONCE = 16  # small reads, each of which waits for the answer of an object store

S = TypeVar("S")
T = TypeVar("T")


def write_slices(folder: Storage, name: str, content: bytes, sizes: Sequence[int] | np.ndarray) -> None:
    """Write the slices, of so many bytes each, that stand one after another in `content`."""
    offsets = np.zeros(len(sizes) + 1, "<i8")
    np.cumsum(sizes, out=offsets[1:])
    folder.write_bytes(name, (offsets + offsets.nbytes).tobytes() + content)


def read_slices(folder: Storage, name: str, first: int, last: int) -> bytes:
    """Slices first to last - 1 of a file."""
    offsets = np.frombuffer(folder.read_bytes(name, 8 * first, 8 * (last + 1)), "<i8")
    begin, end = int(offsets[0]), int(offsets[-1])
    return folder.read_bytes(name, begin, end) if end > begin else b""


def read_each(read: Callable[[S], T], places: Iterable[S]) -> list[T]:
    """`read(place)` of every place (the name of a file, the number of a part) in their order, several at a time."""
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return list(pool.map(read, places))


def write_tables(folder: Storage, name: str, tables: Sequence[pa.Table]) -> None:
    """Write one table a slice; one without rows is an empty slice."""
    slices = [_packed(table) for table in tables]
    write_slices(folder, name, b"".join(slices), [len(own) for own in slices])


def read_tables(folder: Storage, names: Sequence[str], number: int, schema: pa.Schema) -> pa.Table:
    """The rows of one slice of every file, in the files' order."""
    return pa.concat_tables(read_each(partial(_read_table, folder, number, schema), names) or [schema.empty_table()])


def _read_table(folder: Storage, number: int, schema: pa.Schema, name: str) -> pa.Table:
    content = read_slices(folder, name, number, number + 1)
    if not content:
        return schema.empty_table()
    with pa.CompressedInputStream(pa.BufferReader(content), "lz4") as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


def _packed(table: pa.Table) -> bytes:
    """An Arrow stream, compressed as a whole: of a table of few rows the schema is the greater part."""
    if not len(table):
        return b""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
