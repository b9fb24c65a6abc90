"""Parquet: the rows of row groups, in the columns that a source names."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data.document import BadRecord, ReadRange, Source, column_paths
from data.sources.compression import is_compressed, is_damage_error, open_file, supports_ranges
from data.sources.records import Records

_BATCH_ROWS = 1024
_BATCH_BYTES = 8 << 20
_READ_BYTES = 1 << 20  # of a column at once, so that a row group may be larger than memory


def parquet_records(source: Source, read_range: ReadRange) -> Records:
    wanted = {column.partition(".")[0].rstrip("[]") for column in column_paths(source)} | set(column_paths(source))
    with _open_parquet(read_range.url) as stored:
        try:
            file = pq.ParquetFile(stored, buffer_size=_READ_BYTES)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield 0, _unreadable_parquet(error, "file")
            return
        present = [name for name in file.schema_arrow.names if name in wanted]
        stop = file.num_row_groups if read_range.stop < 0 else min(read_range.stop, file.num_row_groups)
        sizes = [file.metadata.row_group(group).num_rows for group in range(stop)]
        for group in range(read_range.start, stop):
            index = sum(sizes[:group])
            rows = _rows_per_batch(file.metadata.row_group(group))
            try:
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=present):
                    for record in _rows_of_batch(batch):
                        yield index, record
                        index += 1
            except (pa.ArrowException, OSError) as error:
                yield index, _unreadable_parquet(error, f"from this row to the end of row group {group}")


def parquet_metadata(url: str) -> pq.FileMetaData | None:
    """The metadata of a Parquet file; None for a damaged one, which its reader reports."""
    try:
        with _open_parquet(url) as file:
            return pq.ParquetFile(file).metadata
    except Exception as error:
        if not is_damage_error(error):
            _unreadable_parquet(error, "file")
        return None


@contextmanager
def _open_parquet(url: str) -> Iterator[IO[bytes]]:
    if not supports_ranges(url):
        raise OSError(errno.ESPIPE, "this server sends files only whole, but Parquet is read in parts; copy it", url)
    with fsspec.open(url, "rb", compression="infer") if is_compressed(url) else open_file(url, _READ_BYTES) as file:
        yield cast(IO[bytes], file)


def _rows_per_batch(group: pq.RowGroupMetaData) -> int:
    """The number of rows in a batch of about 8 MiB."""
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))


def _rows_of_batch(batch: pa.RecordBatch) -> list[dict[str, Any] | BadRecord]:
    """The rows as dicts. A value that Python cannot hold (no UTF-8, the year 10,000) costs only its own row."""
    try:
        return cast(list[dict[str, Any] | BadRecord], batch.to_pylist())
    except (ValueError, OverflowError):
        return [_only_row(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _only_row(batch: pa.RecordBatch) -> dict[str, Any] | BadRecord:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return BadRecord(f"unreadable value: {error}")


def _unreadable_parquet(error: Exception, what: str) -> BadRecord:
    """The reason for quarantine of a damaged Parquet file. Re-raises the error of a failing file system."""
    if not isinstance(error, pa.ArrowException | OSError | ValueError):
        raise error
    if (
        not is_damage_error(error)
        and isinstance(error, OSError)
        and (type(error) is not OSError or error.errno is not None)
    ):
        raise error
    return BadRecord(f"unreadable Parquet, {what}: {error}")
