"""Reads the documents of a finished corpus, one part at a time. A part is an output file of a corpus."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Storage
from data.document import unit_hash

_BATCH_ROWS = 1024  # documents that are read at once


@dataclass(frozen=True)
class CorpusText:
    """The documents of a finished corpus."""

    storage: Storage
    digest: str
    """Content digest of the corpus artifact. Tasks contain it, so that a result is never reused for another corpus."""

    @property
    def parts(self) -> list[str]:
        """Names of the parts' files, sorted."""
        return self.storage.glob("documents/*.parquet")


class CorpusDocument(NamedTuple):
    """A document as stored in a part."""

    id: str
    source: str
    text: str
    metadata: str
    """Metadata of the document as a JSON object."""


def split_position(document_id: str) -> float:
    """Return the hash of a document id as a number from 0 to 1, which decides how the document is used.

    Shards use the documents with the lowest numbers for validation. Tokenizers are trained on the documents with the
    highest numbers.
    """
    return unit_hash(document_id, "split")


def read_documents(corpus: Storage, part: str, accept: Callable[[float], bool]) -> Iterator[CorpusDocument]:
    """Yield the documents of a part for whose `split_position` the function `accept` returns True.

    Only the ids of the other documents are converted from Arrow to Python objects.
    """
    with corpus.open(part) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=list(CorpusDocument._fields), batch_size=_BATCH_ROWS):
            mask = [accept(split_position(document_id)) for document_id in batch.column("id").to_pylist()]
            accepted = batch.filter(pa.array(mask, pa.bool_()))
            columns = (accepted.column(name).to_pylist() for name in CorpusDocument._fields)
            yield from map(CorpusDocument._make, zip(*columns, strict=True))
