"""Removes forgotten documents from a finished corpus, and adds documents that were dropped as their duplicates.

A duplicate was dropped because another document was kept. If the kept document is forgotten, one of its duplicates
takes its place. Without the forgotten document, a cluster of near-duplicates may also split into several clusters. So
all documents that are connected with a forgotten document by `Row.kept_id` are read from their source files again,
cleaned and deduplicated. No other document is cleaned again. In an uncompressed JSONL file, only these documents are
read. Other files are read as a whole.

The document that a cluster was reduced to is in the corpus, or the mixture dropped it afterwards. If it cannot be read
again, because its source file was removed or changed, only the forgotten documents of the cluster are removed. Its
other documents are neither added nor removed.

A forgotten id is in no file of the corpus afterwards. If a document stays dropped as a duplicate of a forgotten
document, its `kept_id` becomes the document that the forgotten one was a duplicate of. So a later call still finds all
documents of the cluster. If there is no such document, or if it is forgotten too, the `kept_id` becomes None.

The changed tables are first written to a staging folder (`stage_changes`) and then copied over those of the corpus
(`apply_changes`). If the process is killed, either the corpus is unchanged or the changes are still staged. Copying
them again is harmless.
"""

# pyarrow.compute creates its functions when it is imported, so type checkers cannot see them.
# pyright: reportAttributeAccessIssue=false

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.fingerprints import fingerprint
from cluster.storage import Storage
from data.chunk_files import read_many
from data.cleaning.duplicates import NearDuplicates
from data.cleaning.recipe import Step, drops_equal_texts, near_duplicate_settings
from data.corpus.chunks import PartRow, clean_rows
from data.corpus.exact_duplicates import sort_and_deduplicate
from data.corpus.links import representatives
from data.corpus.mixture import apply_mixture
from data.corpus.parts import Part, WrittenPart, part_file, part_from_rows, read_part, write_part
from data.corpus.rows import ROW_SCHEMA, Drop, drop_rows, kept_positions, to_table
from data.document import Document, Source
from data.sources.readers import read_documents_at

log = logging.getLogger(__name__)


class Corpus(NamedTuple):
    """A finished corpus and the settings that it was made with."""

    output: Storage
    """Folder of the corpus."""
    staging: Storage
    """Folder in which changed tables are written before they replace the tables of the corpus."""
    sources: Sequence[Source]
    steps: Sequence[Step]
    num_parts: int
    mixture_shares: Mapping[str, float]
    """Share of each source's documents that the mixture kept. The shares do not change. Empty without a mixture."""
    file_urls: Sequence[Sequence[str]]
    """URLs of the files of each source, in the order of the file numbers."""
    fingerprints: Mapping[str, str]
    """Fingerprint of every source file at the time when the corpus was made, by URL."""


class Changes(NamedTuple):
    """Describes the staged changes."""

    num_forgotten: dict[str, int]
    """Number of forgotten documents of each source. The keys are the names of the sources."""
    num_unreadable: int
    """Number of dropped duplicates that cannot take the place of a forgotten document, because their file was removed
    or changed. Duplicates of a document that stays because it cannot be read again are not counted."""
    parts: list[WrittenPart]
    """The changed parts."""


class OriginRow(NamedTuple):
    """A row of the table of origins of a part: a kept or dropped document."""

    part_number: int
    id: str
    source: str
    file: int
    """Number of the document's file among the source's files."""
    offset: int


class DuplicateRow(NamedTuple):
    """A row of the table of drops of a part: a document that was dropped as a duplicate."""

    part_number: int
    id: str
    kept_id: str
    """Id of the document of which this document is a duplicate (`Row.kept_id`). It is lower than `id`, or equal to
    `id` if a source has several documents with this id."""


class _FileDocument(NamedTuple):
    """A document and the number of its file among the source's files."""

    file: int
    document: Document


class _RereadDocuments(NamedTuple):
    """Documents that were read from their source files again."""

    documents: list[_FileDocument]
    unreadable_ids: set[str]
    """Ids of the documents that could not be read, because their file was removed or changed."""


def stage_changes(corpus: Corpus, forgotten: Collection[str]) -> Changes | None:
    """Write the changed tables to the staging folder. Returns None if no forgotten document is in the corpus.

    `forgotten` are the ids of the documents to forget.
    """
    corpus.staging.remove()
    forgotten_rows = find_origin_rows(corpus.output, corpus.num_parts, forgotten)
    if not forgotten_rows:
        return None
    forgotten_ids = {row.id for row in forgotten_rows}
    duplicates = find_duplicates(corpus.output, corpus.num_parts, forgotten_ids)
    related_ids = _connected_ids(forgotten_ids, duplicates) - forgotten_ids
    related_rows = find_origin_rows(corpus.output, corpus.num_parts, related_ids)
    documents, unreadable_ids = _reread_documents(corpus, related_rows)
    # The document that a cluster was reduced to stays if it cannot be read again. So its duplicates must stay dropped.
    unreadable_rows = [row for row in related_rows if row.id in unreadable_ids]
    unchanged_ids = _connected_ids(_find_roots(corpus.output, unreadable_rows), duplicates)
    new_rows = _clean_and_deduplicate(
        corpus, [file_document for file_document in documents if file_document.document.id not in unchanged_ids]
    )
    # The rows of documents that were read again are replaced. They are removed first and then added as new rows.
    removed_rows = [
        *forgotten_rows,
        *(row for row in related_rows if row.id not in unreadable_ids | unchanged_ids),
    ]
    parts = _write_changed_parts(
        corpus,
        removed_rows=removed_rows,
        new_rows=new_rows,
        duplicates=duplicates,
        new_kept_ids=_kept_ids_of_forgotten(forgotten_ids, duplicates),
    )
    num_forgotten = dict(Counter(row.source for row in forgotten_rows))
    return Changes(num_forgotten, len(unreadable_ids - unchanged_ids), parts)


def _write_changed_parts(
    corpus: Corpus,
    *,
    removed_rows: Sequence[OriginRow],
    new_rows: pa.Table,
    duplicates: Sequence[DuplicateRow],
    new_kept_ids: Mapping[str, str | None],
) -> list[WrittenPart]:
    """Write the tables that change to the staging folder. Returns the changed parts.

    The documents of `removed_rows` are removed and `new_rows` are added. Among the rows that stay, every `kept_id` that
    is a key of `new_kept_ids` is replaced by the value. `duplicates` contains all rows with such a `kept_id`.
    """
    # A part from which no row is removed may still have a duplicate whose kept_id changes.
    removed_ids = {duplicate.part_number: set[str]() for duplicate in duplicates if duplicate.kept_id in new_kept_ids}
    for row in removed_rows:
        removed_ids.setdefault(row.part_number, set()).add(row.id)
    parts: list[WrittenPart] = []
    for part_number, ids_of_part in sorted(removed_ids.items()):
        before = read_part(corpus.output, part_number)
        added_rows = new_rows.filter(pc.equal(new_rows["part"], part_number)).select(ROW_SCHEMA.names)
        remaining = before.without_ids(ids_of_part).with_kept_ids(new_kept_ids)
        after = remaining.with_rows_of(part_from_rows(added_rows))
        if after != before:
            parts.append(write_part(corpus.staging, part_number, after))
            _remove_unchanged_tables(corpus.staging, part_number, before, after)
    return parts


def apply_changes(output: Storage, staging: Storage) -> None:
    """Replace the tables of the corpus by the staged tables."""
    for kind in Part._fields:
        for name in staging.glob(f"{kind}/*.parquet"):
            output.write_bytes(name, staging.read_bytes(name))


def _remove_unchanged_tables(staging: Storage, part_number: int, before: Part, after: Part) -> None:
    """Remove, from the staging folder, the tables that are the same before and after the change."""
    for kind, table_before, table_after in zip(Part._fields, before, after, strict=True):
        if table_before == table_after:
            staging.remove(part_file(kind, part_number))


def find_duplicates(output: Storage, num_parts: int, ids: Collection[str]) -> list[DuplicateRow]:
    """Find the dropped duplicates that are connected with the documents with these ids by `kept_id`.

    They are connected directly or indirectly. Each round reads the ids of all dropped documents once. At most four
    rounds find documents, because each document of a cluster was dropped in favor of the kept document, or in favor of
    a document that was itself dropped in favor of the kept document. The last round, at most the fifth, finds nothing
    new.
    """
    duplicates: list[DuplicateRow] = []
    known_ids: set[str] = set()
    new_ids = set(ids)
    while new_ids:
        find_in_part = partial(_find_duplicates_in_part, output, ids=pa.array(sorted(new_ids), pa.string()))
        found = [row for rows in read_many(find_in_part, range(num_parts)) for row in rows]
        # An earlier round has found the rows with one of the ids that were known before it.
        duplicates += [row for row in found if row.id not in known_ids and row.kept_id not in known_ids]
        known_ids |= new_ids
        new_ids = {document_id for row in found for document_id in (row.id, row.kept_id)} - known_ids
    return duplicates


def _find_duplicates_in_part(output: Storage, part_number: int, ids: pa.Array) -> list[DuplicateRow]:
    """Return the dropped duplicates of a part whose `id` or `kept_id` is among `ids`."""
    with output.open(part_file("drops", part_number)) as file:
        table = pq.read_table(file, columns=["id", "kept_id"])
    dropped_ids, kept_ids = table["id"], table["kept_id"]
    is_wanted = pc.or_(pc.is_in(dropped_ids, ids), pc.is_in(kept_ids, ids))
    table = table.filter(pc.and_(kept_ids.is_valid(), is_wanted))
    return [DuplicateRow(part_number, **row) for row in table.to_pylist()]


def _connected_ids(ids: Collection[str], duplicates: Sequence[DuplicateRow]) -> set[str]:
    """Return these ids, and all ids that `duplicates` connect with them, directly or indirectly."""
    connected = set(ids)
    while True:
        pairs = [(row.id, row.kept_id) for row in duplicates if row.id in connected or row.kept_id in connected]
        new_ids = {document_id for pair in pairs for document_id in pair} - connected
        if not new_ids:
            return connected
        connected |= new_ids


def _find_roots(output: Storage, rows: Sequence[OriginRow]) -> set[str]:
    """Return the ids of those of these documents to which a cluster was reduced.

    These are the documents that the corpus keeps, and those that the mixture dropped afterwards.
    """
    ids_by_part: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        ids_by_part[row.part_number].add(row.id)
    roots: set[str] = set()
    for part_number, ids in ids_by_part.items():
        with output.open(part_file("documents", part_number)) as file:
            roots |= ids & set(pq.read_table(file, columns=["id"])["id"].to_pylist())
        with output.open(part_file("drops", part_number)) as file:
            dropped = pq.read_table(file, columns=["id"], filters=pc.field("reason") == "mixture")
        roots |= ids & set(dropped["id"].to_pylist())
    return roots


def _kept_ids_of_forgotten(forgotten_ids: Collection[str], duplicates: Sequence[DuplicateRow]) -> dict[str, str | None]:
    """Return, for each forgotten id, the id of the document of which the forgotten document is a duplicate.

    If that document is forgotten too, the document of which it is a duplicate is used instead. The value is None if
    there is none.
    """
    kept_ids: dict[str, list[str]] = defaultdict(list)
    for row in duplicates:
        if row.kept_id != row.id:
            kept_ids[row.id].append(row.kept_id)
    result: dict[str, str | None] = {}
    for document_id in sorted(forgotten_ids):  # a kept_id is lower than the id, so its own result exists already
        candidates = [result.get(kept_id, kept_id) for kept_id in kept_ids[document_id]]
        result[document_id] = min((kept_id for kept_id in candidates if kept_id is not None), default=None)
    return result


def find_origin_rows(output: Storage, num_parts: int, ids: Collection[str]) -> list[OriginRow]:
    """Find the origins of the documents with these ids in all parts. A document may be kept or dropped."""
    if not ids:
        return []
    find_in_part = partial(_find_origin_rows_in_part, output, ids=sorted(ids))
    return [row for rows in read_many(find_in_part, range(num_parts)) for row in rows]


def _find_origin_rows_in_part(output: Storage, part_number: int, ids: list[str]) -> list[OriginRow]:
    """Find the origins of the documents with these ids in one part."""
    # The rows of the file are sorted by id, so only some row groups are read.
    with output.open(part_file("origins", part_number)) as file:
        table = pq.read_table(file, filters=pc.field("id").isin(ids))
    return [OriginRow(part_number, **row) for row in table.to_pylist()]


def _reread_documents(corpus: Corpus, rows: Sequence[OriginRow]) -> _RereadDocuments:
    """Read the documents of these rows from their source files, unless a file was removed or changed."""
    offsets_by_file: dict[tuple[int, int], set[int]] = defaultdict(set)
    source_index = {source.name: index for index, source in enumerate(corpus.sources)}
    for row in rows:
        offsets_by_file[source_index[row.source], row.file].add(row.offset)
    reread: list[_FileDocument] = []
    for (index, file), offsets in sorted(offsets_by_file.items()):
        url = corpus.file_urls[index][file]
        if _is_unchanged(corpus, url):
            documents = read_documents_at(corpus.sources[index], url, offsets)
            reread += [_FileDocument(file, document) for document in documents]
    origins = {(document.source, file, document.offset) for file, document in reread}
    unreadable_ids = {row.id for row in rows if (row.source, row.file, row.offset) not in origins}
    readable = [file_document for file_document in reread if file_document.document.id not in unreadable_ids]
    return _RereadDocuments(readable, unreadable_ids)


def _is_unchanged(corpus: Corpus, url: str) -> bool:
    """Whether a source file is still the file that the corpus was made from. Logs a warning if it is not."""
    try:
        is_unchanged = corpus.fingerprints.get(url) == fingerprint(url)
    except FileNotFoundError:
        is_unchanged = False
    if not is_unchanged:
        log.warning(
            "%s was removed or changed after the corpus was made, so none of its documents can replace a forgotten one",
            url,
        )
    return is_unchanged


def _clean_and_deduplicate(corpus: Corpus, documents: Sequence[_FileDocument]) -> pa.Table:
    """Return the rows that these documents have in the new corpus, with the part number in a column `part`."""
    rows: list[PartRow] = []
    for source in corpus.sources:
        source_documents = [
            file_document for file_document in documents if file_document.document.source == source.name
        ]
        rows += clean_rows(
            [document for _, document in source_documents],
            corpus.steps,
            fraction=source.fraction,
            files={document.file: file for file, document in source_documents},
            num_parts=corpus.num_parts,
        ).rows
    part_numbers = pa.array([part_number for part_number, _ in rows], pa.int64())
    table = to_table([row for _, row in rows]).append_column("part", part_numbers)
    deduplicate, settings = drops_equal_texts(corpus.steps), near_duplicate_settings(corpus.steps)
    return apply_mixture(
        drop_duplicates(table, deduplicate=deduplicate, near_duplicate_settings=settings), corpus.mixture_shares
    )


def drop_duplicates(rows: pa.Table, *, deduplicate: bool, near_duplicate_settings: NearDuplicates | None) -> pa.Table:
    """Drop the duplicates among the rows, which may be from several parts.

    The result is the same as in a corpus that consists of these rows.
    """
    rows = sort_and_deduplicate(rows, deduplicate=deduplicate)
    if near_duplicate_settings is None:
        return rows
    positions = kept_positions(rows)
    ids = rows["id"].take(positions).to_pylist()
    texts = rows["text"].take(positions).to_pylist()
    drops = {
        int(positions[index]): Drop("near_duplicates", ids[kept_index])
        for index, kept_index in enumerate(representatives(ids, texts, near_duplicate_settings))
        if kept_index != index
    }
    return drop_rows(rows, drops)
