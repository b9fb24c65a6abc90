"""Documents of a finished corpus, part by part, as the tasks of the tokenizer and of the shards read them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Storage
from data.document import unit_hash

_BATCH_ROWS = 1024


@dataclass(frozen=True)
class CorpusText:
    """A finished corpus."""

    storage: Storage
    digest: str
    """Of the whole artifact: a task names it, so that no answer about another corpus is taken for its own."""

    @property
    def parts(self) -> list[str]:
        """The files of its documents, in their order."""
        return self.storage.glob("documents/*.parquet")


class CorpusDocument(NamedTuple):
    """A row of a part's documents."""

    id: str
    source: str
    text: str
    metadata: str
    """As JSON."""


def split_position(document_id: str) -> float:
    """Where a document is in the order, from 0 to 1, from whose beginning shards take their validation documents."""
    return unit_hash(document_id, "split")


def read_documents(corpus: Storage, part: str, accept: Callable[[float], bool]) -> Iterator[CorpusDocument]:
    """The documents of a part whose `split_position` is accepted; of any other nothing but the id leaves Arrow."""
    with corpus.open(part) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=list(CorpusDocument._fields), batch_size=_BATCH_ROWS):
            mask = [accept(split_position(document_id)) for document_id in batch.column("id").to_pylist()]
            accepted = batch.filter(pa.array(mask, pa.bool_()))
            columns = (accepted.column(name).to_pylist() for name in CorpusDocument._fields)
            yield from map(CorpusDocument._make, zip(*columns, strict=True))
