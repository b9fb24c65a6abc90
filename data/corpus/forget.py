"""Forgetting documents: what else a corpus holds or lacks for their sake.

A duplicate was dropped for the sake of the one that is kept. When that one goes, the next of them comes in, and a
cluster of near-duplicates may fall apart: so all that hang together by `kept_id` are read again and judged anew, and
nothing else is. The changed tables are written beside the corpus first (`stage_changes`), then over it
(`apply_changes`), which may be done again: a kill leaves the corpus as it was, or on its way to what it shall be.
"""

# pyarrow.compute makes its functions while it is imported, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.fingerprints import fingerprint
from cluster.storage import Storage
from data.cleaning.duplicates import NearDuplicates
from data.cleaning.recipe import Step, drops_equal_texts, near_duplicates_of
from data.corpus.deduplication import representatives
from data.corpus.parts import (
    ROW_SCHEMA,
    Part,
    clean_rows,
    drop,
    kept_places,
    mix,
    part_name,
    read_part,
    settle,
    to_part,
    write_part,
)
from data.corpus.slices import read_each
from data.document import Document, Source
from data.sources.readers import read_at

STAGED = "work/forget"

log = logging.getLogger(__name__)


class Corpus(NamedTuple):
    """What a corpus was made of and how."""

    output: Storage
    sources: Sequence[Source]
    steps: Sequence[Step]
    num_parts: int
    mixture: Mapping[str, float]
    """Share of each source's documents that the mixture kept; it stays as it was. Empty where there was none."""
    files: Sequence[Sequence[str]]
    """The URLs of each source's files, in the order in which origins number them."""
    fingerprints: Mapping[str, str]
    """Of every source file, by URL, when the corpus was made."""


class Changes(NamedTuple):
    """What is staged."""

    forgotten: dict[str, int]
    """Documents that go, by source."""
    gaps: int
    """Documents that may have come in, but whose file is gone or another by now."""
    answers: list[dict[str, Any]]
    """Of every changed part, as `write_part` gives it."""


class Held(NamedTuple):
    """One row of a part's origins: a document that the part keeps or has dropped."""

    part: int
    id: str
    source: str
    file: int
    offset: int


def stage_changes(corpus: Corpus, forgotten: Collection[str]) -> Changes | None:
    """Write the tables that change, as they shall be, below `STAGED`. None where the corpus holds none of the
    forgotten."""
    corpus.output.remove(STAGED)
    gone = held(corpus.output, corpus.num_parts, forgotten)
    if not gone:
        return None
    ids = {row.id for row in gone}
    others = relatives(corpus.output, corpus.num_parts, ids) - ids
    rows = held(corpus.output, corpus.num_parts, others)
    documents, unreadable = _read_again(corpus, rows)
    table = _judged(corpus, documents)
    remove: dict[int, set[str]] = defaultdict(set)
    for row in (*gone, *(row for row in rows if row.id not in unreadable)):
        remove[row.part].add(row.id)
    staged = corpus.output / STAGED
    answers: list[dict[str, Any]] = []
    for number, leaving in sorted(remove.items()):
        before = read_part(corpus.output, number)
        more = table.filter(pc.equal(table["part"], number)).select(ROW_SCHEMA.names)
        after = before.without(leaving).joined(to_part(more))
        if after != before:
            answers.append(write_part(staged, number, after))
            _remove_unchanged(staged, number, before, after)
    return Changes(dict(Counter(row.source for row in gone)), len(unreadable), answers)


def apply_changes(output: Storage) -> None:
    """Put the staged tables in their places."""
    staged = output / STAGED
    for kind in Part._fields:
        for name in staged.glob(f"{kind}/*.parquet"):
            output.write_bytes(name, staged.read_bytes(name))


def _remove_unchanged(staged: Storage, number: int, before: Part, after: Part) -> None:
    for kind in Part._fields:
        if getattr(before, kind) == getattr(after, kind):
            staged.remove(part_name(kind, number))


def relatives(output: Storage, num_parts: int, ids: Collection[str]) -> set[str]:
    """The ids, and those of every document that was dropped for their sake or for whose sake they were, and so on.

    Each pass reads the ids in drops/ once; a cluster is closed after four at most, for its documents were dropped for
    one that is kept, or for one that was dropped for it.
    """
    found: set[str] = set()
    new = set(ids)
    while new:
        found |= new
        links = partial(_links, output, ids=pa.array(sorted(new), pa.string()))
        new = {own for pairs in read_each(links, range(num_parts)) for pair in pairs for own in pair} - found
    return found


def _links(output: Storage, part: int, ids: pa.Array) -> list[tuple[str, str]]:
    """(id, kept id) of every duplicate that is, or was dropped for, one of `ids`."""
    with output.open(part_name("drops", part)) as file:
        table = pq.read_table(file, columns=["id", "kept_id"])
    own, kept = table["id"], table["kept_id"]
    table = table.filter(pc.and_(kept.is_valid(), pc.or_(pc.is_in(own, ids), pc.is_in(kept, ids))))
    return list(zip(table["id"].to_pylist(), table["kept_id"].to_pylist(), strict=True))


def held(output: Storage, num_parts: int, ids: Collection[str]) -> list[Held]:
    """Every row that the parts have of these ids, kept or dropped."""
    if not ids:
        return []
    rows = partial(_held, output, ids=sorted(ids))
    return [row for rows_of_part in read_each(rows, range(num_parts)) for row in rows_of_part]


def _held(output: Storage, part: int, ids: list[str]) -> list[Held]:
    with output.open(part_name("origins", part)) as file:  # ordered by id, so most of it need not be read
        table = pq.read_table(file, filters=pc.field("id").isin(ids))
    return [Held(part, **row) for row in table.to_pylist()]


def _read_again(corpus: Corpus, rows: Sequence[Held]) -> tuple[list[tuple[int, Document]], set[str]]:
    """(number of its file, document) of every row, read from its source file; and the ids of those that cannot be read
    because the file is gone or not what the corpus was made from."""
    wanted: dict[tuple[int, int], set[int]] = defaultdict(set)
    index = {source.name: number for number, source in enumerate(corpus.sources)}
    for row in rows:
        wanted[index[row.source], row.file].add(row.offset)
    found: list[tuple[int, Document]] = []
    for (number, file), offsets in sorted(wanted.items()):
        url = corpus.files[number][file]
        if _is_unchanged(corpus, url):
            found += [(file, document) for document in read_at(corpus.sources[number], url, offsets)]
    places = {(document.source, file, document.offset) for file, document in found}
    unreadable = {row.id for row in rows if (row.source, row.file, row.offset) not in places}
    return [(file, document) for file, document in found if document.id not in unreadable], unreadable


def _is_unchanged(corpus: Corpus, url: str) -> bool:
    try:
        same = corpus.fingerprints.get(url) == fingerprint(url)
    except FileNotFoundError:
        same = False
    if not same:
        log.warning("%s is gone or not what the corpus was made from: nothing can come in from it", url)
    return same


def _judged(corpus: Corpus, documents: Sequence[tuple[int, Document]]) -> pa.Table:
    """The rows of these documents, with a column `part`, as the whole corpus would have them."""
    rows: list[dict[str, Any]] = []
    for source in corpus.sources:
        own = [(file, document) for file, document in documents if document.source == source.name]
        made, _ = clean_rows(
            [document for _, document in own],
            corpus.steps,
            fraction=source.fraction,
            files={document.file: file for file, document in own},
            num_parts=corpus.num_parts,
        )
        rows += [row | {"part": part} for part, row in made]
    schema = ROW_SCHEMA.append(pa.field("part", pa.int64()))
    table = judge_anew(
        pa.Table.from_pylist(rows, schema=schema),
        deduplicate=drops_equal_texts(corpus.steps),
        near=near_duplicates_of(corpus.steps),
    )
    return mix(table, corpus.mixture)


def judge_anew(rows: pa.Table, *, deduplicate: bool, near: NearDuplicates | None) -> pa.Table:
    """The rows (of all parts together) with the duplicates among them dropped, as the whole corpus drops them."""
    rows = settle(rows, deduplicate=deduplicate)
    if near is None:
        return rows
    places = kept_places(rows)
    ids = rows["id"].take(places).to_pylist()
    kept = representatives(ids, rows["text"].take(places).to_pylist(), near)
    again = {int(places[own]): ids[first] for own, first in enumerate(kept) if first != own}
    return drop(rows, {place: ("near_duplicates", first) for place, first in again.items()})
