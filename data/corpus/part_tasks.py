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
from data.corpus.chunks import read_part_rows
from data.corpus.clusters import MAX_BUCKETS, PartNodes, find_clusters, kept_ids_of_near_duplicates, write_nodes
from data.corpus.mixture import apply_mixture, mixture_shares
from data.corpus.parts import WrittenPart, part_from_rows, write_part
from data.corpus.rows import ROW_SCHEMA, Drop, drop_rows, kept_bytes_by_source, kept_positions, kept_rows
from data.corpus.work import CorpusWork

Result = TypeVar("Result")


@dataclass(frozen=True)
class GatheredPart:
    """A part whose rows are in the work folder."""

    bytes: dict[str, int]
    """Of the texts that each source has left in it."""
    nodes: PartNodes | None = None
    """What the search for near-duplicates has of it."""


class WrittenParts(NamedTuple):
    parts: list[WrittenPart]
    mixture_shares: dict[str, float]
    """The share of each source that the mixture keeps; empty without a mixture."""


def write_parts(
    work: CorpusWork,
    chunks: Sequence[str],
    *,
    mixture: Mapping[str, float] | None,
    partitions: int | None,
    workers: int | None,
) -> WrittenParts:
    """Write every part of the chunks; a task takes several parts where there are fewer `partitions` than parts."""
    tasks = _split_parts(work.num_parts, partitions)

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

    settings = work.near_duplicate_settings
    if settings is None and mixture is None:
        label = "deduplicate and write"
        return WrittenParts(over_parts(partial(_gather_and_write, work=work, chunks=chunks), WrittenPart, label), {})
    gathered = over_parts(partial(_gather_parts, work=work, chunks=chunks), GatheredPart, "deduplicate")
    if settings is not None:
        nodes = [part.nodes for part in gathered if part.nodes is not None]
        find_clusters(
            work.near_duplicates_folder, nodes, settings, num_buckets=min(len(tasks), MAX_BUCKETS), workers=workers
        )
    shares: dict[str, float] = {}
    if mixture is not None:
        if settings is not None:
            gathered = over_parts(partial(_count_bytes, work=work), GatheredPart, "weigh")
        num_bytes: Counter[str] = Counter()
        for part in gathered:
            num_bytes.update(part.bytes)
        shares = mixture_shares(num_bytes, mixture)
    return WrittenParts(over_parts(partial(_write_mixed_parts, work=work, shares=shares), WrittenPart, "write"), shares)


def _split_parts(num_parts: int, partitions: int | None) -> list[list[int]]:
    """The parts' numbers in as many runs as there are partitions, none of them empty."""
    number = min(num_parts, partitions or num_parts)
    return [list(range(num_parts * n // number, num_parts * (n + 1) // number)) for n in range(number)]


def _gather_and_write(parts: Sequence[int], *, work: CorpusWork, chunks: Sequence[str]) -> list[WrittenPart]:
    return [
        write_part(
            work.output,
            part,
            part_from_rows(read_part_rows(work.folder, chunks, part, deduplicate=work.drops_exact_duplicates)),
        )
        for part in parts
    ]


def _gather_parts(parts: Sequence[int], *, work: CorpusWork, chunks: Sequence[str]) -> list[GatheredPart]:
    """Write every part's rows into the work folder, and what finds the near-duplicates among those that are kept."""
    gathered: list[GatheredPart] = []
    settings = work.near_duplicate_settings
    for part in parts:
        rows = read_part_rows(work.folder, chunks, part, deduplicate=work.drops_exact_duplicates)
        write_tables(work.folder, _rows_file(part), [rows])
        nodes = None
        if settings is not None:
            kept = kept_rows(rows)
            nodes = write_nodes(
                work.near_duplicates_folder, part, kept["id"].to_pylist(), kept["text"].to_pylist(), settings
            )
        gathered.append(GatheredPart(kept_bytes_by_source(rows), nodes))
    return gathered


def _count_bytes(parts: Sequence[int], *, work: CorpusWork) -> list[GatheredPart]:
    """The bytes that each source has left in every part without its near-duplicates."""
    return [GatheredPart(kept_bytes_by_source(_without_near_duplicates(work, part))) for part in parts]


def _write_mixed_parts(parts: Sequence[int], *, work: CorpusWork, shares: Mapping[str, float]) -> list[WrittenPart]:
    return [
        write_part(work.output, part, part_from_rows(apply_mixture(_without_near_duplicates(work, part), shares)))
        for part in parts
    ]


def _without_near_duplicates(work: CorpusWork, part: int) -> pa.Table:
    """The rows of a part after its near-duplicates are dropped."""
    rows = read_table(work.folder, [_rows_file(part)], 0, ROW_SCHEMA)
    if work.near_duplicate_settings is None:
        return rows
    positions = kept_positions(rows)
    kept_ids = kept_ids_of_near_duplicates(work.near_duplicates_folder, part)
    return drop_rows(rows, {int(positions[row]): Drop("near_duplicates", kept_id) for row, kept_id in kept_ids.items()})


def _rows_file(part: int) -> str:
    return f"rows/{part:05d}.arrow"
