"""Forgetting documents: which other documents a corpus then holds or lacks.

A duplicate was dropped because another document was kept. When that one goes, the next of them comes in, and a cluster
of near-duplicates may fall apart: so all documents that are connected by `kept_id` are read again and judged anew, and
nothing else is. The changed tables are first written beside the corpus (`stage_changes`), then over it
(`apply_changes`), which may be done again: a kill leaves the corpus as it was, or with the changes still staged.
"""

# pyarrow.compute makes its functions while it is imported, where no type checker sees them.
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
    """How a corpus was made."""

    output: Storage
    staging: Storage
    """Where changed tables are written before they replace the corpus's own."""
    sources: Sequence[Source]
    steps: Sequence[Step]
    num_parts: int
    mixture_shares: Mapping[str, float]
    """Share of each source's documents that the mixture kept; it stays as it was. Empty without a mixture."""
    file_urls: Sequence[Sequence[str]]
    """The URLs of each source's files, in the order in which origins number them."""
    fingerprints: Mapping[str, str]
    """Of every source file, by URL, when the corpus was made."""


class Changes(NamedTuple):
    """What is staged."""

    num_forgotten: dict[str, int]
    """Documents that go, by source."""
    num_unreadable: int
    """Documents that may have come in, but whose file is gone or another by now."""
    parts: list[WrittenPart]
    """Every changed part."""


class OriginRow(NamedTuple):
    """One row of a part's origins: a document that the part keeps or has dropped."""

    part: int
    id: str
    source: str
    file: int
    offset: int


class _FileDocument(NamedTuple):
    """A document and the number of its file among its source's files."""

    file: int
    document: Document


class _RereadDocuments(NamedTuple):
    documents: list[_FileDocument]
    unreadable: set[str]
    """Ids of the documents that could not be read: their file is gone or not what the corpus was made from."""


def stage_changes(corpus: Corpus, forgotten: Collection[str]) -> Changes | None:
    """Write the tables that change into `corpus.staging`, as they will be. None where the corpus holds none of the
    forgotten."""
    corpus.staging.remove()
    forgotten_rows = find_origin_rows(corpus.output, corpus.num_parts, forgotten)
    if not forgotten_rows:
        return None
    ids = {row.id for row in forgotten_rows}
    related_rows = find_origin_rows(
        corpus.output, corpus.num_parts, connected_ids(corpus.output, corpus.num_parts, ids) - ids
    )
    documents, unreadable = _reread_documents(corpus, related_rows)
    table = _clean_and_deduplicate(corpus, documents)
    leaving: dict[int, set[str]] = defaultdict(set)
    for row in (*forgotten_rows, *(row for row in related_rows if row.id not in unreadable)):
        leaving[row.part].add(row.id)
    parts: list[WrittenPart] = []
    for number, leaving_ids in sorted(leaving.items()):
        before = read_part(corpus.output, number)
        coming = table.filter(pc.equal(table["part"], number)).select(ROW_SCHEMA.names)
        after = before.without_ids(leaving_ids).with_rows_of(part_from_rows(coming))
        if after != before:
            parts.append(write_part(corpus.staging, number, after))
            _remove_unchanged(corpus.staging, number, before, after)
    return Changes(dict(Counter(row.source for row in forgotten_rows)), len(unreadable), parts)


def apply_changes(output: Storage, staged: Storage) -> None:
    """Copy the staged tables over those of the corpus."""
    for kind in Part._fields:
        for name in staged.glob(f"{kind}/*.parquet"):
            output.write_bytes(name, staged.read_bytes(name))


def _remove_unchanged(staged: Storage, number: int, before: Part, after: Part) -> None:
    for kind, table_before, table_after in zip(Part._fields, before, after, strict=True):
        if table_before == table_after:
            staged.remove(part_file(kind, number))


def connected_ids(output: Storage, num_parts: int, ids: Collection[str]) -> set[str]:
    """The ids, and those of every document that is connected to one of them by `kept_id`, directly or not.

    Each pass reads the ids in drops/ once; a cluster is complete after four at most, for its documents were dropped for
    one that is kept, or for one that was dropped for it.
    """
    connected: set[str] = set()
    new = set(ids)
    while new:
        connected |= new
        links = partial(_duplicate_pairs, output, ids=pa.array(sorted(new), pa.string()))
        new = {end for pairs in read_many(links, range(num_parts)) for pair in pairs for end in pair} - connected
    return connected


def _duplicate_pairs(output: Storage, part: int, ids: pa.Array) -> list[tuple[str, str]]:
    """(id, kept id) of every duplicate that is, or was dropped for, one of `ids`."""
    with output.open(part_file("drops", part)) as file:
        table = pq.read_table(file, columns=["id", "kept_id"])
    dropped, kept = table["id"], table["kept_id"]
    table = table.filter(pc.and_(kept.is_valid(), pc.or_(pc.is_in(dropped, ids), pc.is_in(kept, ids))))
    return list(zip(table["id"].to_pylist(), table["kept_id"].to_pylist(), strict=True))


def find_origin_rows(output: Storage, num_parts: int, ids: Collection[str]) -> list[OriginRow]:
    """Every row that the parts have of these ids, kept or dropped."""
    if not ids:
        return []
    rows = partial(_find_origin_rows_in_part, output, ids=sorted(ids))
    return [row for rows_of_part in read_many(rows, range(num_parts)) for row in rows_of_part]


def _find_origin_rows_in_part(output: Storage, part: int, ids: list[str]) -> list[OriginRow]:
    with output.open(part_file("origins", part)) as file:  # ordered by id, so most of it need not be read
        table = pq.read_table(file, filters=pc.field("id").isin(ids))
    return [OriginRow(part, **row) for row in table.to_pylist()]


def _reread_documents(corpus: Corpus, rows: Sequence[OriginRow]) -> _RereadDocuments:
    """The documents of these rows, read from their source files."""
    wanted: dict[tuple[int, int], set[int]] = defaultdict(set)
    index = {source.name: number for number, source in enumerate(corpus.sources)}
    for row in rows:
        wanted[index[row.source], row.file].add(row.offset)
    read: list[_FileDocument] = []
    for (number, file), offsets in sorted(wanted.items()):
        url = corpus.file_urls[number][file]
        if _is_unchanged(corpus, url):
            documents = read_documents_at(corpus.sources[number], url, offsets)
            read += [_FileDocument(file, document) for document in documents]
    origins = {(document.source, file, document.offset) for file, document in read}
    unreadable = {row.id for row in rows if (row.source, row.file, row.offset) not in origins}
    return _RereadDocuments([one for one in read if one.document.id not in unreadable], unreadable)


def _is_unchanged(corpus: Corpus, url: str) -> bool:
    try:
        same = corpus.fingerprints.get(url) == fingerprint(url)
    except FileNotFoundError:
        same = False
    if not same:
        log.warning("%s is gone or not what the corpus was made from: no document can come in from it", url)
    return same


def _clean_and_deduplicate(corpus: Corpus, documents: Sequence[_FileDocument]) -> pa.Table:
    """The rows of these documents, with a column `part`, as the whole corpus would have them."""
    rows: list[PartRow] = []
    for source in corpus.sources:
        of_source = [one for one in documents if one.document.source == source.name]
        rows += clean_rows(
            [document for _, document in of_source],
            corpus.steps,
            fraction=source.fraction,
            files={document.file: file for file, document in of_source},
            num_parts=corpus.num_parts,
        ).rows
    table = to_table([row for _, row in rows]).append_column("part", pa.array([part for part, _ in rows], pa.int64()))
    deduplicate, near = drops_equal_texts(corpus.steps), near_duplicate_settings(corpus.steps)
    return apply_mixture(drop_duplicates(table, deduplicate=deduplicate, near=near), corpus.mixture_shares)


def drop_duplicates(rows: pa.Table, *, deduplicate: bool, near: NearDuplicates | None) -> pa.Table:
    """The rows (of all parts together) after the duplicates among them are dropped, as the whole corpus drops them."""
    rows = sort_and_deduplicate(rows, deduplicate=deduplicate)
    if near is None:
        return rows
    positions = kept_positions(rows)
    ids = rows["id"].take(positions).to_pylist()
    kept = representatives(ids, rows["text"].take(positions).to_pylist(), near)
    drops = {
        int(positions[number]): Drop("near_duplicates", ids[first])
        for number, first in enumerate(kept)
        if first != number
    }
    return drop_rows(rows, drops)
