"""Fixtures for the tests of the readers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from data.document import Document, Quarantined, SkippedRecord, Source
from data.sources.readers import plan_ranges, read_records


class Found(NamedTuple):
    """The documents and other records that were read from a source."""

    records: list[Document | Quarantined | SkippedRecord]

    @property
    def documents(self) -> list[Document]:
        return [record for record in self.records if isinstance(record, Document)]

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def bad(self) -> list[Quarantined]:
        return [record for record in self.records if isinstance(record, Quarantined)]

    @property
    def others(self) -> list[SkippedRecord]:
        return [record for record in self.records if isinstance(record, SkippedRecord)]


@pytest.fixture
def find() -> Callable[..., Found]:
    """A function that reads all records of a source. It reads each file in ranges of `range_bytes` bytes."""

    def find(path: Any, format: Any, *, range_bytes: int = 1 << 20, **fields: Any) -> Found:
        source = Source(name="s", path=path if isinstance(path, list) else str(path), format=format, **fields)
        return Found([record for piece in plan_ranges([source], range_bytes) for record in read_records(source, piece)])

    return find
