"""Reader of the format `parquet`. It reads only the columns that the source names.

Columns of bytes are read as text in the source's encoding, which is UTF-8 by default. Some programs write every string
in this way.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data.document import BadRecord, ReadRange, Source, column_paths
from data.sources.compression import is_compressed, is_damage_error, open_file, supports_ranges
from data.sources.encodings import decode_strictly, file_encoding
from data.sources.records import Records

_BATCH_ROWS = 1024
_BATCH_BYTES = 8 << 20
_READ_BYTES = 1 << 20  # bytes of a column per read, so that a row group may be larger than memory


def parquet_records(source: Source, read_range: ReadRange) -> Records:
    """Yield a record for each row of the row groups in the range. The offset is the number of rows before it.

    For a damaged file, and for the rows of a row group from the first unreadable row on, yields one BadRecord.
    """
    with _open_parquet(read_range.url) as stored:
        try:
            file = pq.ParquetFile(stored, buffer_size=_READ_BYTES)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield 0, _unreadable_parquet(error, "file")
            return
        present = _named_columns(source, file.schema_arrow)
        encoding = file_encoding(source) if reads_bytes(source, file.schema_arrow) else None
        stop = file.num_row_groups if read_range.stop < 0 else min(read_range.stop, file.num_row_groups)
        rows_per_group = [file.metadata.row_group(group).num_rows for group in range(stop)]
        for group in range(read_range.start, stop):
            row_number = sum(rows_per_group[:group])
            batch_size = _rows_per_batch(file.metadata.row_group(group))
            try:
                for batch in file.iter_batches(batch_size=batch_size, row_groups=[group], columns=present):
                    for record in _rows_of_batch(batch):
                        yield row_number, record if encoding is None else _with_text(record, encoding)
                        row_number += 1
            except (pa.ArrowException, OSError) as error:
                yield row_number, _unreadable_parquet(error, f"from this row to the end of row group {group}")


def parquet_metadata(url: str) -> pq.FileMetaData | None:
    """Return the metadata of a Parquet file. Returns None for a damaged file, which the reader reports later."""
    try:
        with _open_parquet(url) as file:
            return pq.ParquetFile(file).metadata
    except Exception as error:
        if not is_damage_error(error):
            _unreadable_parquet(error, "file")  # raises errors of the file system and of the network
        return None


@contextmanager
def _open_parquet(url: str) -> Iterator[IO[bytes]]:
    """Open a Parquet file, which may be compressed as a whole, so that it can be read at any position.

    Raises OSError if the file is on a server that sends only complete files.
    """
    if not supports_ranges(url):
        raise OSError(
            errno.ESPIPE,
            "this server sends only complete files, but Parquet is read in parts; copy the file to a disk",
            url,
        )
    with fsspec.open(url, "rb", compression="infer") if is_compressed(url) else open_file(url, _READ_BYTES) as file:
        yield cast(IO[bytes], file)


def _rows_per_batch(group: pq.RowGroupMetaData) -> int:
    """Return how many rows of this row group make a batch of about 8 MiB; at least 1 and at most 1024."""
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))


def _rows_of_batch(batch: pa.RecordBatch) -> list[dict[str, Any] | BadRecord]:
    """Return the rows of a batch as dicts.

    A BadRecord takes the place of a row with a value that Python cannot represent, such as invalid UTF-8 or a date in
    the year 10,000.
    """
    try:
        return cast(list[dict[str, Any] | BadRecord], batch.to_pylist())
    except (ValueError, OverflowError):
        return [_only_row(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _named_columns(source: Source, schema: pa.Schema) -> list[str]:
    """Return the columns of the file that the source names."""
    # A column path such as `meta.url` is in the column `meta`, unless a column has exactly that name.
    wanted = {column.partition(".")[0].rstrip("[]") for column in column_paths(source)} | set(column_paths(source))
    return [name for name in schema.names if name in wanted]


def reads_bytes(source: Source, schema: pa.Schema) -> bool:
    """Whether a column that the source names contains bytes, which must be decoded."""
    return any(_has_bytes(schema.field(name).type) for name in _named_columns(source, schema))


def _has_bytes(column: pa.DataType) -> bool:
    """Whether the values of a column of this type are bytes, or are lists or structures that contain bytes."""
    if isinstance(column, pa.DictionaryType):
        return _has_bytes(column.value_type)
    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(column) for is_kind in is_bytes) or any(
        _has_bytes(column.field(index).type) for index in range(column.num_fields)
    )


def _with_text(record: dict[str, Any] | BadRecord, encoding: str) -> dict[str, Any] | BadRecord:
    """Return the record with its bytes decoded. Returns a BadRecord if the bytes of a column are not in the encoding.

    `encoding` is the name of the encoding (`find_encoding`).
    """
    if isinstance(record, BadRecord):
        return record
    decoded: dict[str, Any] = {}
    for column, value in record.items():
        try:
            decoded[column] = _decode_bytes(value, encoding)
        except BadRecord as bad:
            return BadRecord(f"{column}: {bad}")
    return decoded


def _decode_bytes(value: Any, encoding: str) -> Any:
    """Return the value with all bytes in it decoded. Raises BadRecord if some are not in the encoding."""
    if isinstance(value, bytes):
        return decode_strictly(value, encoding)
    if isinstance(value, dict):
        return {key: _decode_bytes(member, encoding) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_decode_bytes(item, encoding) for item in value]
    return value


def _only_row(batch: pa.RecordBatch) -> dict[str, Any] | BadRecord:
    """Return the row of a batch of one row, or the BadRecord that takes its place."""
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return BadRecord(f"unreadable value: {error}")


def _unreadable_parquet(error: Exception, scope: str) -> BadRecord:
    """Return the BadRecord for a damaged Parquet file; `scope` says what part of the file cannot be read.

    Raises `error` again if it does not mean damage but comes from the file system, the network or our own code.
    """
    if not isinstance(error, pa.ArrowException | OSError | ValueError):
        raise error
    if (
        not is_damage_error(error)
        and isinstance(error, OSError)
        and (type(error) is not OSError or error.errno is not None)
    ):
        raise error
    return BadRecord(f"unreadable Parquet, {scope}: {error}")
