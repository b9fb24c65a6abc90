"""The command `raymill trace STORE ID`. It prints where a document was read from, whether it was kept, and the place of
its tokens in the shards."""

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
    """Yield lines of text about the document with the id `id` in each corpus and each `shards` artifact of a store.

    Raises ValueError if no corpus of the store has read the document, unless the document was removed by
    `raymill forget`.
    """
    folders = [store / name.partition("/")[0] for name in store.glob(f"*/{RECORD}")]
    artifacts = [Artifact(folder, read_record(folder)) for folder in folders]
    is_found = False
    for artifact in artifacts:
        if artifact.kind == "corpus" and not artifact.record.is_current:
            yield f"{artifact.id} cannot be searched: it was made by a different version of the stage corpus"
        elif artifact.kind == "corpus":
            for row in find_origin_rows(artifact.storage, artifact.read_summary(CorpusSummary).parts, [id]):
                is_found = True
                yield from _corpus_lines(artifact, row)
    for artifact in artifacts:
        if artifact.kind == "shards":
            yield from _shards_lines(artifact, id)
    if id in read_forgotten(store):
        yield f"{id} was forgotten with `raymill forget`: artifacts in {store.url} must not contain it"
    elif not is_found:
        raise ValueError(
            f"trace: no corpus in {store.url} has read a document with the id {id!r}; an id has the form "
            "SOURCE/…, where SOURCE is the name of a source in the corpus config"
        )


def _corpus_lines(corpus: Artifact, row: OriginRow) -> Iterator[str]:
    """Yield lines with the document's source file, and with the part of the corpus that contains the document or the
    reason why the corpus dropped the document. `row` says where the document was read."""
    file_name = corpus.storage.read_json(FILE_NAMES_JSON)[row.source][row.file]
    yield corpus.id
    yield f"  read from     {row.source}: {file_name}, at {row.offset:,}"
    for table, columns in (("documents", ["id", "text"]), ("drops", ["id", "reason", "kept_id"])):
        with corpus.storage.open(part_file(table, row.part_number)) as file:
            rows = pq.read_table(file, columns=columns, filters=pc.field("id") == row.id)
        for entry in rows.to_pylist():
            if table == "documents":
                yield f"  kept in       {part_file(table, row.part_number)}, {len(entry['text'].encode()):,} bytes"
            else:
                duplicate = f", a duplicate of {entry['kept_id']}" if entry["kept_id"] else ""
                yield f"  dropped by    {entry['reason']}{duplicate}"


def _shards_lines(shards: Artifact, id: str) -> Iterator[str]:
    """Yield lines with the shard that contains the document, the number of its tokens, and the index of the first one.

    Yields nothing if the shards do not contain the document.
    """
    for split in SPLITS:
        folder = shards.storage / split
        location = find_document(folder, read_manifest(folder), id)
        if location is not None:
            yield shards.id
            yield f"  tokens in     {split}/{location.shard}, {location.num_tokens:,} from {location.first:,}"
