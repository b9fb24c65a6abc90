"""The second half of the `corpus` stage: tasks read the rows of a part from all chunks and write the part's files.

    deduplicate ─▶ find near-duplicates (`clusters.py`) ─▶ count bytes ─▶ write

A row is a document that is kept or dropped (`rows.py`). A chunk is an intermediate file in which the first half of the
stage has written rows of all parts (`chunks.py`).

The phase "count bytes" counts the bytes of each source, which a mixture needs. It runs only if the recipe has the step
`near_duplicates` and the config has a `mixture`, because otherwise the bytes that the phase "deduplicate" counts are
enough. With neither of the two, a single phase deduplicates and writes the parts.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import pyarrow as pa

from cluster.tasks import run_tasks
from data.chunk_files import read_table, write_tables
from data.corpus.chunks import read_part_rows
from data.corpus.clusters import MAX_BUCKETS, PartNodes, find_clusters, kept_ids_of_near_duplicates, write_nodes
from data.corpus.mixture import apply_mixture, mixture_shares
from data.corpus.parts import WrittenPart, part_from_rows, write_part
from data.corpus.rows import ROW_SCHEMA, Drop, drop_rows, kept_bytes_by_source, kept_positions, kept_rows
from data.corpus.unique_ids import write_id_hashes
from data.corpus.work import CorpusWork

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class GatheredPart:
    """What the phases "deduplicate" and "count bytes" return for a part."""

    kept_bytes: dict[str, int]
    """Bytes of the kept texts of each source."""
    nodes: PartNodes | None = None
    """The number of nodes of the part. A node is a document in the search for near-duplicates (`clusters.py`). None if
    there is no such search. Also None in the results of the phase "count bytes", which runs after the search."""


class WrittenParts(NamedTuple):
    """The parts of a finished corpus."""

    parts: list[WrittenPart]
    mixture_shares: dict[str, float]
    """Share of each source's documents that the mixture keeps. Empty without a mixture."""


def write_parts(
    work: CorpusWork,
    chunks: Sequence[str],
    *,
    mixture: Mapping[str, float] | None,
    part_tasks: int | None,
    workers: int | None,
) -> WrittenParts:
    """Write all parts of a corpus from its chunks, whose names are `chunks`.

    `mixture` maps the name of each source to its weight. None means that all documents are kept.

    `part_tasks` is the number of tasks in each phase, over which the parts are divided. None, or more than the number
    of parts, means one task for each part. The search for near-duplicates has phases of its own. There the number of
    tasks is only used as the number of buckets, up to `MAX_BUCKETS` (`find_clusters`).
    """
    tasks = _split_parts(work.num_parts, part_tasks)

    def run_phase(function: Callable[..., list[Result]], result_type: type[Result], label: str) -> list[Result]:
        """Call the function with the part numbers of each task. Returns the results of all parts."""
        results = run_tasks(
            function,
            tasks,
            result_type=list[result_type],
            workers=workers,
            label=f"corpus: {label}",
            result_folder=work.result_folder(label.replace(" ", "-")),
        )
        return [result for task_results in results for result in task_results]

    settings = work.near_duplicate_settings
    if settings is None and mixture is None:
        label = "deduplicate and write"
        return WrittenParts(run_phase(partial(_write_parts_directly, work=work, chunks=chunks), WrittenPart, label), {})
    gathered = run_phase(partial(_gather_parts, work=work, chunks=chunks), GatheredPart, "deduplicate")
    if settings is not None:
        nodes = [part.nodes for part in gathered if part.nodes is not None]
        find_clusters(
            work.near_duplicates_folder, nodes, settings, num_buckets=min(len(tasks), MAX_BUCKETS), workers=workers
        )
    shares: dict[str, float] = {}
    if mixture is not None:
        if settings is not None:
            gathered = run_phase(partial(_count_bytes, work=work), GatheredPart, "count bytes")
        num_bytes: Counter[str] = Counter()
        for part in gathered:
            num_bytes.update(part.kept_bytes)
        if lost := [name for name, weight in mixture.items() if weight and not num_bytes[name]]:
            log.warning(
                "corpus: the steps kept no document of %s; the mixture consists of the other sources, in proportion to "
                "their weights",
                ", ".join(lost),
            )
        shares = mixture_shares(num_bytes, mixture)
    parts = run_phase(partial(_write_gathered_parts, work=work, shares=shares), WrittenPart, "write")
    return WrittenParts(parts, shares)


def _split_parts(num_parts: int, part_tasks: int | None) -> list[list[int]]:
    """Divide the part numbers evenly over tasks. There are no more tasks than parts, so no task is empty."""
    num_tasks = min(num_parts, part_tasks or num_parts)
    return [list(range(num_parts * n // num_tasks, num_parts * (n + 1) // num_tasks)) for n in range(num_tasks)]


def _write_parts_directly(part_numbers: Sequence[int], *, work: CorpusWork, chunks: Sequence[str]) -> list[WrittenPart]:
    """Read the rows of each part from the chunks, drop exact duplicates, and write the part's files."""
    written: list[WrittenPart] = []
    for part_number in part_numbers:
        rows = read_part_rows(work.folder, chunks, part_number, deduplicate=work.drops_exact_duplicates)
        written.append(_write_part(work, part_number, rows))
    return written


def _write_part(work: CorpusWork, part_number: int, rows: pa.Table) -> WrittenPart:
    """Write the files of a part, and the hashes of its ids for `check_unique_ids`."""
    part = part_from_rows(rows)
    write_id_hashes(work.folder, part_number, part.documents, work.sources)
    return write_part(work.output, part_number, part)


def _gather_parts(part_numbers: Sequence[int], *, work: CorpusWork, chunks: Sequence[str]) -> list[GatheredPart]:
    """Drop exact duplicates, and write the rows of each part to the work folder.

    Also writes the files with which the search for near-duplicates begins (`write_nodes`).
    """
    gathered: list[GatheredPart] = []
    settings = work.near_duplicate_settings
    for part_number in part_numbers:
        rows = read_part_rows(work.folder, chunks, part_number, deduplicate=work.drops_exact_duplicates)
        write_tables(work.folder, _rows_file(part_number), [rows])
        nodes = None
        if settings is not None:
            kept = kept_rows(rows)
            ids, texts = kept["id"].to_pylist(), kept["text"].to_pylist()
            nodes = write_nodes(work.near_duplicates_folder, part_number, ids, texts, settings)
        gathered.append(GatheredPart(kept_bytes_by_source(rows), nodes))
    return gathered


def _count_bytes(part_numbers: Sequence[int], *, work: CorpusWork) -> list[GatheredPart]:
    """Count the bytes of each source in each part after its near-duplicates are dropped."""
    return [GatheredPart(kept_bytes_by_source(_without_near_duplicates(work, number))) for number in part_numbers]


def _write_gathered_parts(
    part_numbers: Sequence[int], *, work: CorpusWork, shares: Mapping[str, float]
) -> list[WrittenPart]:
    """Drop the near-duplicates of each part, apply the mixture, and write the part's files.

    `shares` comes from `mixture_shares`. It is empty if there is no mixture.
    """
    written: list[WrittenPart] = []
    for part_number in part_numbers:
        rows = apply_mixture(_without_near_duplicates(work, part_number), shares)
        written.append(_write_part(work, part_number, rows))
    return written


def _without_near_duplicates(work: CorpusWork, part_number: int) -> pa.Table:
    """Read the rows of a part from the work folder and drop the near-duplicates."""
    rows = read_table(work.folder, [_rows_file(part_number)], 0, ROW_SCHEMA)
    if work.near_duplicate_settings is None:
        return rows
    # Position among the rows that are not dropped so far -> id of the document that is kept instead.
    replacement_ids = kept_ids_of_near_duplicates(work.near_duplicates_folder, part_number)
    positions = kept_positions(rows)
    drops = {int(positions[n]): Drop("near_duplicates", kept_id=id) for n, id in replacement_ids.items()}
    return drop_rows(rows, drops)


def _rows_file(part_number: int) -> str:
    return f"rows/{part_number:05d}.arrow"
