"""`raymill trace STORE ID`: where a document came from, what became of it, and where its tokens are."""

from collections.abc import Iterator

import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.storage import Storage
from data.corpus.accounting import CorpusSummary
from data.corpus.forget import OriginRow, find_origin_rows
from data.corpus.origins import FILE_NAMES_JSON
from data.corpus.parts import part_file
from data.tokens.shard_format import SPLITS, read_manifest
from data.tokens.shard_reader import find_document
from jobs.frame.artifact import RECORD, Artifact, read_record
from jobs.frame.forgetting import read_forgotten


def trace(store: Storage, id: str) -> Iterator[str]:
    """Lines about a document in every corpus of a store, then in every shard.

    Raises ValueError when no corpus of the store has read it.
    """
    folders = [store / name.partition("/")[0] for name in store.glob(f"*/{RECORD}")]
    artifacts = [Artifact(folder, read_record(folder)) for folder in folders]
    is_known = False
    for artifact in artifacts:
        if artifact.kind == "corpus" and not artifact.record.is_current:
            yield f"{artifact.id} was made by an older version, which kept no origins"
        elif artifact.kind == "corpus":
            for row in find_origin_rows(artifact.storage, artifact.read_summary(CorpusSummary).parts, [id]):
                is_known = True
                yield from _in_corpus(artifact, row)
    for artifact in artifacts:
        if artifact.kind == "shards":
            yield from _in_shards(artifact, id)
    if id in read_forgotten(store):
        yield f"{id} is forgotten: no artifact in {store.url} may hold it"
    elif not is_known:
        raise ValueError(f"trace: no corpus in {store.url} has read a document {id!r}; ids look like SOURCE/…")


def _in_corpus(corpus: Artifact, row: OriginRow) -> Iterator[str]:
    """Lines about the document in one corpus: its source file, and whether it was kept or dropped."""
    file_name = corpus.storage.read_json(FILE_NAMES_JSON)[row.source][row.file]
    yield corpus.id
    yield f"  read from     {row.source}: {file_name}, at {row.offset:,}"
    for table, columns in (("documents", ["id", "text"]), ("drops", ["id", "reason", "kept_id"])):
        with corpus.storage.open(part_file(table, row.part)) as file:
            rows = pq.read_table(file, columns=columns, filters=pc.field("id") == row.id)
        for entry in rows.to_pylist():
            if table == "documents":
                yield f"  kept in       {part_file(table, row.part)}, {len(entry['text'].encode()):,} bytes"
            else:
                kept = f", a duplicate of {entry['kept_id']}" if entry["kept_id"] else ""
                yield f"  dropped by    {entry['reason']}{kept}"


def _in_shards(shards: Artifact, id: str) -> Iterator[str]:
    """Lines about the document in one artifact of shards: the range of its tokens."""
    for split in SPLITS:
        folder = shards.storage / split
        location = find_document(folder, read_manifest(folder), id)
        if location is not None:
            yield shards.id
            yield f"  tokens in     {split}/{location.shard}, {location.num_tokens:,} from {location.first:,}"
