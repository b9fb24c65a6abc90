"""The second half of a corpus: tasks in which the documents of a part meet, and write its files.

    deduplicate ─▶ find near-duplicates (`clusters.py`) ─▶ weigh ─▶ write

Without near-duplicates and a mixture one pass over the parts does it all.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import pyarrow as pa

from cluster.tasks import run_tasks
from data.chunk_files import read_table, write_tables
from data.corpus.chunks import gather
from data.corpus.clusters import MAX_BUCKETS, PartNodes, find_clusters, near_duplicates, write_nodes
from data.corpus.mixture import mix, mixture_shares
from data.corpus.parts import WrittenPart, to_part, write_part
from data.corpus.rows import ROW_SCHEMA, Drop, bytes_by_source, drop, kept_positions, kept_rows
from data.corpus.work import CorpusWork

Result = TypeVar("Result")


@dataclass(frozen=True)
class GatheredPart:
    """A part whose rows are in the work folder."""

    bytes: dict[str, int]
    """Of the texts that each source has left in it."""
    nodes: PartNodes | None = None
    """What the search for near-duplicates has of it."""


class Parts(NamedTuple):
    written: list[WrittenPart]
    shares: dict[str, float]
    """The share of each source that the mixture keeps; empty without a mixture."""


def write_parts(
    work: CorpusWork,
    chunks: Sequence[str],
    *,
    mixture: Mapping[str, float] | None,
    partitions: int | None,
    workers: int | None,
) -> Parts:
    """Write every part of the chunks; a task takes several parts where there are fewer `partitions` than parts."""
    tasks = _partition(work.num_parts, partitions)

    def over_parts(function: Callable[..., list[Result]], result_type: type[Result], label: str) -> list[Result]:
        results = run_tasks(
            function,
            tasks,
            result_type=list[result_type],
            workers=workers,
            label=f"corpus: {label}",
            result_folder=work.result_folder(label.replace(" ", "-")),
        )
        return [result for partition in results for result in partition]

    rule = work.near_duplicates
    if rule is None and mixture is None:
        label = "deduplicate and write"
        return Parts(over_parts(partial(_gather_and_write, work=work, chunks=chunks), WrittenPart, label), {})
    gathered = over_parts(partial(_gather, work=work, chunks=chunks), GatheredPart, "deduplicate")
    if rule is not None:
        nodes = [part.nodes for part in gathered if part.nodes is not None]
        find_clusters(work.nodes, nodes, rule, num_buckets=min(len(tasks), MAX_BUCKETS), workers=workers)
    shares: dict[str, float] = {}
    if mixture is not None:
        if rule is not None:
            gathered = over_parts(partial(_weigh, work=work), GatheredPart, "weigh")
        num_bytes: Counter[str] = Counter()
        for part in gathered:
            num_bytes.update(part.bytes)
        shares = mixture_shares(num_bytes, mixture)
    return Parts(over_parts(partial(_finish, work=work, shares=shares), WrittenPart, "write"), shares)


def _partition(num_parts: int, partitions: int | None) -> list[list[int]]:
    """The parts' numbers in as many runs as there are partitions, none of them empty."""
    number = min(num_parts, partitions or num_parts)
    return [list(range(num_parts * n // number, num_parts * (n + 1) // number)) for n in range(number)]


def _gather_and_write(parts: Sequence[int], *, work: CorpusWork, chunks: Sequence[str]) -> list[WrittenPart]:
    return [
        write_part(work.output, part, to_part(gather(work.folder, chunks, part, deduplicate=work.deduplicates)))
        for part in parts
    ]


def _gather(parts: Sequence[int], *, work: CorpusWork, chunks: Sequence[str]) -> list[GatheredPart]:
    """Write every part's rows into the work folder, and what finds the near-duplicates among those that are kept."""
    gathered: list[GatheredPart] = []
    rule = work.near_duplicates
    for part in parts:
        rows = gather(work.folder, chunks, part, deduplicate=work.deduplicates)
        write_tables(work.folder, _rows_name(part), [rows])
        nodes = None
        if rule is not None:
            kept = kept_rows(rows)
            nodes = write_nodes(work.nodes, part, kept["id"].to_pylist(), kept["text"].to_pylist(), rule)
        gathered.append(GatheredPart(bytes_by_source(rows), nodes))
    return gathered


def _weigh(parts: Sequence[int], *, work: CorpusWork) -> list[GatheredPart]:
    """The bytes that each source has left in every part without its near-duplicates."""
    return [GatheredPart(bytes_by_source(_without_near_duplicates(work, part))) for part in parts]


def _finish(parts: Sequence[int], *, work: CorpusWork, shares: Mapping[str, float]) -> list[WrittenPart]:
    return [write_part(work.output, part, to_part(mix(_without_near_duplicates(work, part), shares))) for part in parts]


def _without_near_duplicates(work: CorpusWork, part: int) -> pa.Table:
    """The rows of a part after its near-duplicates are dropped."""
    rows = read_table(work.folder, [_rows_name(part)], 0, ROW_SCHEMA)
    if work.near_duplicates is None:
        return rows
    positions = kept_positions(rows)
    kept_ids = near_duplicates(work.nodes, part)
    return drop(rows, {int(positions[row]): Drop("near_duplicates", kept_id) for row, kept_id in kept_ids.items()})


def _rows_name(part: int) -> str:
    return f"rows/{part:05d}.arrow"
