"""corpus: raw files in, clean documents out.

    files ─ read, clean ─▶ chunks ─ gather, drop equal texts ─▶ parts ─ find near-duplicates, mix, write ─▶ documents/
            (a task a piece)         (a task a partition)                (a task a partition)

Each half is made of idempotent tasks that meet in storage (`data/corpus/parts.py`), so what was done before a kill is
found there and not done again, and the bytes do not depend on how the work was cut or on who did it.

    documents/part-*.parquet   what is kept: id, source, text, metadata
    drops/part-*.parquet       what is not, with the reason and, of a duplicate, for whose sake
    origins/                   the file and offset of each document, for `raymill trace` and `raymill forget`
    quarantine/*.jsonl         records that could not be read, with place and reason
    parts.json                 digest and size of each part
    fairness.json              which steps would remove whose mentions (`data/cleaning/fairness.py`)

Counts close: of every source, records read = documents kept + dropped (by reason) + quarantined.
"""

import difflib
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, BinaryIO

import pyarrow as pa

from cluster.machine import tasks_at_once
from cluster.paths import list_files_with_sizes
from cluster.placement import TasksExecution
from cluster.plain import from_plain
from cluster.storage import Storage, json_line
from cluster.tasks import run_tasks
from data.cleaning.decontaminate import Decontaminate, check_files
from data.cleaning.duplicates import NearDuplicates
from data.cleaning.fairness import Row, check_budget, ledger
from data.cleaning.recipe import (
    Step,
    check_metadata,
    check_steps,
    chosen,
    drops_equal_texts,
    judges,
    near_duplicates_of,
    pin_files,
)
from data.corpus.clusters import MAX_BUCKETS, dropped, find_clusters, write_nodes
from data.corpus.forget import STAGED, Changes, Corpus, apply_changes, stage_changes
from data.corpus.parts import (
    MAX_PARTS,
    ROW_SCHEMA,
    ChunkWriter,
    bytes_by_source,
    clean_rows,
    drop,
    gather,
    kept_places,
    mix,
    mixture_shares,
    part_name,
    source_files,
    to_part,
    write_part,
)
from data.corpus.slices import read_tables, write_tables
from data.document import Document, Quarantined, ReadRange, Source
from data.sources.compression import is_compressed
from data.sources.readers import Other, check_sources, plan_ranges, read
from jobs.frame.artifact import RECORD, WORK, Artifact, open_for_change
from jobs.frame.fields import list_of_choices
from jobs.frame.kinds import CorpusSizes
from jobs.frame.stage import Context, Needs, Stage
from jobs.frame.work import Processes, Work
from jobs.report.corpus import report_corpus

PARTS = "parts.json"
FAIRNESS = "fairness.json"
FILES = "origins/files.json"
_CUT = f"{WORK}/cut.json"  # how the work was cut: without it nothing in work/ is trusted
_ANSWERS = f"{WORK}/answers"
_STAGED = f"{STAGED}/staged.json"  # written last, before anything changes that it tells of
_BATCH_DOCUMENTS = 512
_BATCH_BYTES = 16 << 20
_EXPANSION = 4  # bytes of text in a byte of a compressed file, about; only the number of parts rests on it
_READ_S_PER_MB = 0.22  # of Python, on the reference processor of `jobs.frame.forecast`
_STEP_S_PER_MB = 0.108  # the mean over the demo's steps
_KEPT_TEXT = 0.45  # of the bytes of source files that become text: the rest is other fields, markup, drops (the demo's)
_COMPRESSED = 0.6  # of text in Parquet
_MAX_PART_MIB = 1024  # a task holds a part several times over

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CorpusExecution(TasksExecution):
    task_mib: int = 32
    """About how much of the input one reading task takes."""
    partitions: int | None = None
    """Tasks that the parts are shared out to in the second half; one for each part unless given."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """`corpus.yaml`."""

    sources: list[Source]
    steps: list[Step] = list_of_choices()
    """The cleaning recipe, applied in order."""
    mixture: dict[str, float] | None = None
    """Weight of each source in the bytes that are kept; as much is kept as these weights allow, nothing is repeated.
    Duplicates go first: a text whose lowest id is in a source of weight 0 is lost, also where others have it."""
    fairness_budget: float | None = None
    """How much more often a step may remove a group's neutral mentions than the same text without one (a share)."""
    part_mib: int = 64
    """About how much text one output file holds; each later becomes one shard."""
    execution: CorpusExecution = field(default_factory=CorpusExecution)


def check(config: CorpusConfig) -> None:
    """Raise ValueError for every mistake that the config shows."""
    if not 1 <= config.part_mib <= _MAX_PART_MIB:
        raise ValueError(f"part_mib: {config.part_mib} must be at least 1 and at most {_MAX_PART_MIB}")
    for name in ("task_mib", "partitions"):
        value = getattr(config.execution, name)
        if value is not None and value < 1:
            raise ValueError(f"execution.{name}: {value} must be at least 1; leave it out for the default")
    check_steps(config.steps)
    check_metadata(config.sources, config.steps)
    if config.mixture is not None:
        _check_mixture(config.mixture, [source.name for source in config.sources])
    if config.fairness_budget is not None and not 0 <= config.fairness_budget < 1:
        raise ValueError(f"fairness_budget: {config.fairness_budget} must be at least 0 and below 1")


def _check_mixture(mixture: Mapping[str, float], sources: Sequence[str]) -> None:
    for name, weight in mixture.items():
        if name not in sources:
            near = difflib.get_close_matches(name, sources, n=1)
            hint = f"did you mean {near[0]}?" if near else f"sources: {', '.join(sources)}"
            raise ValueError(f"mixture: {name!r} is no source; {hint}")
        if weight < 0:
            raise ValueError(f"mixture.{name}: {weight} must be at least 0")
    if missing := [name for name in sources if name not in mixture]:
        raise ValueError(f"mixture: {', '.join(missing)} has no weight; give every source one (0 leaves it out)")
    if not any(mixture.values()):
        raise ValueError("mixture: every weight is 0; give at least one source a weight above it")


def check_first_records(config: CorpusConfig) -> None:
    """Raise ValueError when the sources' first records lack a column, or a step breaks the fairness budget."""
    check_sources(config.sources)
    for position, step in enumerate(config.steps):
        name, rule = chosen(step)
        if isinstance(rule, Decontaminate):
            check_files(rule, f"steps[{position}].{name}")
    check_fairness(config)


def check_fairness(config: CorpusConfig) -> None:
    """Raise ValueError when a step removes a group's mentions more often than the budget allows."""
    if config.fairness_budget is not None:
        check_budget(_fairness(config.steps), config.fairness_budget)


def _fairness(steps: Sequence[Step]) -> Sequence[Row]:
    return _ledger(json.dumps([asdict(step) for step in steps]))


@lru_cache(maxsize=4)
def _ledger(recipe: str) -> Sequence[Row]:
    """The ledger of a recipe in JSON: seconds of work, of which a budget's check and the run after it need one."""
    return ledger(judges([from_plain(Step, step) for step in json.loads(recipe)]))


def run(config: CorpusConfig, context: Context) -> dict[str, Any]:
    """Write documents/, drops/, origins/, quarantine/ and what tells of them; return the counts."""
    output = context.output
    ranges = plan_ranges(config.sources, config.execution.task_mib << 20)
    files = source_files(config.sources, ranges)
    _begin(output, config, context.forgotten)
    parts = num_parts(text_bytes(config.sources, ranges), config.part_mib)
    work = PartsWork(output, replace(config, steps=pin_files(config.steps)), parts, context.forgotten)
    with ThreadPoolExecutor(1) as driver:
        fairness = driver.submit(_fairness, config.steps)  # while the workers clean
        cleaned = run_tasks(
            partial(_clean_piece, work=work),
            _pack(files, ranges, config.execution.task_mib << 20),
            workers=config.execution.workers,
            returns=dict[str, Any],
            label="corpus: read and clean",
            answers=output / _ANSWERS / "pieces",
        )
        chunks = [chunk for piece in cleaned for chunk in piece["chunks"]]
        written, shares = _write_parts(work, chunks)
    summary = summarize(config, cleaned, written) | {"parts": work.num_parts, "mixture": shares}
    names = {source.name: _file_names(list(own)) for source, own in zip(config.sources, files, strict=True)}
    output.write_json(PARTS, [part_record(answer) for answer in written])
    output.write_json(FAIRNESS, [row._asdict() for row in fairness.result()])
    output.write_json(FILES, {source: list(own.values()) for source, own in names.items()})
    _write_quarantine(output, names, cleaned)
    _remove_work(output)
    sizes = {f"corpus/{name}": summary[name] for name in ("read", "documents", "bytes", "quarantined")}
    context.tracker.log(0, sizes | {f"dropped/{reason}": number for reason, number in summary["dropped"].items()})
    return summary


def forget(config: CorpusConfig, context: Context, artifact: Artifact) -> dict[str, Any] | None:
    """Rewrite the tables that hold a forgotten document, or lack one for its sake; return the counts."""
    output = context.output
    if not output.exists(RECORD):  # a killed run of this has come so far
        staged = output.read_json(_STAGED)
    else:
        summary = artifact.summary
        corpus = Corpus(
            output=output,
            sources=config.sources,
            steps=pin_files(config.steps),
            num_parts=summary["parts"],
            mixture=summary["mixture"],
            files=[_file_urls(artifact, number) for number in range(len(config.sources))],
            fingerprints={url: own for files in artifact.record["sources"].values() for url, own in files.items()},
        )
        changes = stage_changes(corpus, context.forgotten)
        if changes is None:
            return None
        parts = {part["name"]: part for part in output.read_json(PARTS)}
        parts |= {part["name"]: part for part in map(part_record, changes.answers)}
        staged = {"parts": list(parts.values()), "summary": _summary_without(summary, changes, list(parts.values()))}
        output.write_json(_STAGED, staged)
        open_for_change(artifact)
    apply_changes(output)
    output.write_json(PARTS, staged["parts"])
    return staged["summary"]


def _file_urls(artifact: Artifact, source: int) -> list[str]:
    """The URLs of a source's files in the order in which they were read: the outermost archive's name counts first."""
    return sorted(artifact.record["sources"][f"sources.{source}.path"], key=lambda url: url.split("::")[::-1])


def _summary_without(
    summary: Mapping[str, Any], changes: Changes, parts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The summary after the changes. What cleaning changed in texts stays as it was counted when that was done."""
    sources: dict[str, dict[str, Any]] = {}
    for name, own in summary["sources"].items():
        forgotten = own["dropped"].get("forgotten", 0) + changes.forgotten.get(name, 0)
        sources[name] = dict(own) | {"kept": 0, "bytes": 0, "dropped": {"forgotten": forgotten}}
    for part in parts:
        for name, own in part["counts"].items():
            add_counts(sources[name], own)
    if changes.gaps:
        log.warning("%d documents could have come in, but their files are gone or changed", changes.gaps)
    digest = content_digest(part["digest"] for part in parts)
    return dict(summary) | close_accounts(sources) | {"content_digest": digest}


def sizes(config: CorpusConfig, needs: Needs) -> CorpusSizes:
    """About the sizes that the corpus will have, by its source files."""
    num_bytes = _KEPT_TEXT * sum(
        size or 0 for _, size in list_files_with_sizes([source.path for source in config.sources])
    )
    return CorpusSizes(num_bytes=num_bytes, num_parts=max(1, math.ceil(num_bytes / (config.part_mib << 20))))


def work(config: CorpusConfig, needs: Needs) -> Work:
    """What the forecast is made of: reading and each step take their time of every byte of text."""
    sizes = [(url, size or 0) for source in config.sources for url, size in list_files_with_sizes([source.path])]
    num_mb = sum(size * (_EXPANSION if is_compressed(url) else 1) for url, size in sizes) / 1e6
    # Reading takes whole tasks of task_mib: a task and a little more take as long as two.
    tasks = max(1, math.floor(num_mb / config.execution.task_mib))
    workers = tasks_at_once(config.execution.workers, tasks)
    held_gib = 3 * min(num_mb * 1e6 / workers, config.execution.task_mib << 20) / 2**30
    return Work(
        processes=[Processes(kind="task", number=workers, own_gib=held_gib)],
        python_s=num_mb * (_READ_S_PER_MB + _STEP_S_PER_MB * len(config.steps)),
        python_processes=workers,
        disk_gib=_COMPRESSED * num_mb / 1000,
    )


STAGE = Stage(
    name="corpus",
    version=3,
    kind="corpus",
    config=CorpusConfig,
    run=run,
    sizes=sizes,
    check=check,
    check_sources=check_first_records,
    work=work,
    report=report_corpus,
    forget=forget,
)


@dataclass(frozen=True)
class PartsWork:
    """What every task is given."""

    output: Storage
    config: CorpusConfig
    num_parts: int
    forgotten: frozenset[str]

    @property
    def near_duplicates(self) -> NearDuplicates | None:
        return near_duplicates_of(self.config.steps)

    @property
    def deduplicates(self) -> bool:
        return drops_equal_texts(self.config.steps)

    @property
    def nodes(self) -> Storage:
        return self.output / WORK / "nodes"


def _begin(output: Storage, config: CorpusConfig, forgotten: frozenset[str]) -> None:
    """Remove what a killed run has left when it was cut in other tasks, or did not know of all that is forgotten."""
    cut = {"execution": asdict(config.execution) | {"workers": None}, "forgotten": sorted(forgotten)}
    if not output.exists(_CUT) or output.read_json(_CUT) != cut:
        _remove_work(output)
        output.write_json(_CUT, cut)


def text_bytes(sources: Sequence[Source], ranges: Iterable[ReadRange]) -> int:
    """About how many bytes of text the files hold: a function of their names, formats and sizes alone."""
    packed = [source.format == "parquet" for source in sources]
    return sum(
        place.num_bytes * (_EXPANSION if packed[place.source] or is_compressed(place.url) else 1) for place in ranges
    )


def num_parts(num_bytes: int, part_mib: int) -> int:
    """How many parts of about `part_mib` so much text makes; at most `MAX_PARTS`, which are then larger."""
    wanted = max(1, -(-num_bytes // (part_mib << 20)))
    if wanted > MAX_PARTS:
        log.warning(
            "corpus: about %d GiB of text make %d parts, the most there may be, of %d MiB instead of part_mib: %d",
            num_bytes >> 30,
            MAX_PARTS,
            num_bytes // MAX_PARTS >> 20,
            part_mib,
        )
    return min(MAX_PARTS, wanted)


def _pack(files: Sequence[Mapping[str, int]], ranges: Sequence[ReadRange], task_bytes: int) -> list[Any]:
    """Runs of consecutive (file number, range) of about `task_bytes` together, so that many small files make few
    tasks. A file counts at least 1 KiB, for opening it takes as long as reading so much."""
    pieces: list[list[list[Any]]] = []
    size = 0
    for place in ranges:
        num_bytes = max(place.num_bytes, 1 << 10)
        if not pieces or size + num_bytes > task_bytes:
            pieces.append([])
            size = 0
        pieces[-1].append([files[place.source][place.url], place])
        size += num_bytes
    return pieces


# First half: read and clean one piece of the input.


def _clean_piece(piece: Sequence[tuple[int, Sequence[Any]]], *, work: PartsWork) -> dict[str, Any]:
    """Read and clean some ranges of files into chunks; return their names, the quarantine's and counts by source."""
    places = [(file, ReadRange(*place)) for file, place in piece]
    key = hashlib.sha256(repr(places).encode()).hexdigest()[:16]
    chunks = ChunkWriter(work.output, f"{WORK}/chunks/{key}", work.num_parts, deduplicate=work.deduplicates)
    name = f"{WORK}/quarantine/{key}.jsonl"
    quarantine: BinaryIO | None = None
    counts: dict[str, dict[str, Any]] = {}
    with ExitStack() as files_to_close:
        for source, batch in _batches(places, work.config.sources):
            bad = [record for _, record in batch if isinstance(record, Quarantined)]
            if bad:
                quarantine = quarantine or files_to_close.enter_context(work.output.writing(name))
                quarantine.writelines(json_line(record._asdict()) for record in bad)
            rows, own = _clean_batch(source, batch, work)
            add_counts(counts.setdefault(source.name, {}), own)
            chunks.add(rows)
    return {"chunks": chunks.close(), "quarantine": name if quarantine else None, "counts": counts}


def _clean_batch(
    source: Source, batch: Sequence[tuple[int, "_Record"]], work: PartsWork
) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, Any]]:
    """(part, row) of every document of a batch, and the counts of its records."""
    good = [record for _, record in batch if isinstance(record, Document)]
    remembered = [document for document in good if document.id not in work.forgotten]
    files = {record.file: file for file, record in batch if isinstance(record, Document)}
    rows, changed = clean_rows(
        remembered, work.config.steps, fraction=source.fraction, files=files, num_parts=work.num_parts
    )
    num_bad = sum(isinstance(record, Quarantined) for _, record in batch)
    counts: dict[str, Any] = {
        "read": num_bad + len(good),
        "quarantined": num_bad,
        "others": len(batch) - num_bad - len(good),
        "bytes_read": sum(len(document.text.encode()) for document in good),
        "changed": dict(changed),
    }
    if len(remembered) < len(good):
        counts["dropped"] = {"forgotten": len(good) - len(remembered)}
    return rows, counts


_Record = Document | Quarantined | Other


def _batches(
    places: Iterable[tuple[int, ReadRange]], sources: Sequence[Source]
) -> Iterator[tuple[Source, list[tuple[int, _Record]]]]:
    """Records with the number of their file, in batches of one source that are bounded in number and in bytes."""
    batch: list[tuple[int, _Record]] = []
    num_bytes = 0
    current: int | None = None
    for file, place in places:
        if batch and place.source != current:
            yield sources[current or 0], batch
            batch, num_bytes = [], 0
        current = place.source
        for record in read(sources[place.source], place):
            batch.append((file, record))
            num_bytes += len(record.text) if isinstance(record, Document) else 0
            if len(batch) == _BATCH_DOCUMENTS or num_bytes > _BATCH_BYTES:
                yield sources[place.source], batch
                batch, num_bytes = [], 0
    if batch and current is not None:
        yield sources[current], batch


# Second half: what belongs to a part meets there.


def _write_parts(work: PartsWork, chunks: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Make every part of the chunks; return an answer for each part and the mixture's shares."""
    rule, mixture, workers = work.near_duplicates, work.config.mixture, work.config.execution.workers
    partitions = _partitions(work.num_parts, work.config.execution.partitions)

    def over_parts(task: Any, label: str) -> list[dict[str, Any]]:
        folder = work.output / _ANSWERS / label.replace(" ", "-")
        made = run_tasks(
            task, partitions, returns=dict[str, Any], workers=workers, label=f"corpus: {label}", answers=folder
        )
        return [answer for partition in made for answer in partition["parts"]]

    if rule is None and mixture is None:
        return over_parts(partial(_gather_and_write, work=work, chunks=chunks), "deduplicate and write"), {}
    gathered = over_parts(partial(_gather, work=work, chunks=chunks), "deduplicate")
    shares: dict[str, float] = {}
    if rule is not None:
        nodes = [answer["nodes"] for answer in gathered]
        find_clusters(work.nodes, nodes, rule, num_buckets=min(len(partitions), MAX_BUCKETS), workers=workers)
    if mixture is not None:
        if rule is not None:
            gathered = over_parts(partial(_weigh, work=work), "weigh")
        left: Counter[str] = Counter()
        for answer in gathered:
            left.update(answer["bytes"])
        shares = mixture_shares(left, mixture)
    return over_parts(partial(_finish, work=work, shares=shares), "write"), shares


def _partitions(parts: int, partitions: int | None) -> list[list[int]]:
    """The parts in as many runs as there are partitions, none of them empty."""
    number = min(parts, partitions or parts)
    return [list(range(parts * n // number, parts * (n + 1) // number)) for n in range(number)]


def _gather_and_write(parts: Sequence[int], *, work: PartsWork, chunks: Sequence[str]) -> dict[str, Any]:
    return {
        "parts": [
            write_part(work.output, part, to_part(gather(work.output, chunks, part, deduplicate=work.deduplicates)))
            for part in parts
        ]
    }


def _gather(parts: Sequence[int], *, work: PartsWork, chunks: Sequence[str]) -> dict[str, Any]:
    """Leave every part's rows in work/; of those that are kept, what finds their near-duplicates."""
    answers: list[dict[str, Any]] = []
    rule = work.near_duplicates
    for part in parts:
        rows = gather(work.output, chunks, part, deduplicate=work.deduplicates)
        write_tables(work.output, _rows_name(part), [rows])
        kept = rows.filter(rows["reason"].is_null())
        answer: dict[str, Any] = {"part": part, "bytes": bytes_by_source(rows)}
        if rule is not None:
            answer["nodes"] = write_nodes(work.nodes, part, kept["id"].to_pylist(), kept["text"].to_pylist(), rule)
        answers.append(answer)
    return {"parts": answers}


def _weigh(parts: Sequence[int], *, work: PartsWork) -> dict[str, Any]:
    """Bytes that each source has left in every part."""
    return {"parts": [{"part": part, "bytes": bytes_by_source(_without_near(work, part))} for part in parts]}


def _finish(parts: Sequence[int], *, work: PartsWork, shares: Mapping[str, float]) -> dict[str, Any]:
    return {"parts": [write_part(work.output, part, to_part(mix(_without_near(work, part), shares))) for part in parts]}


def _without_near(work: PartsWork, part: int) -> pa.Table:
    """The rows of a part, near-duplicates dropped."""
    rows = read_tables(work.output, [_rows_name(part)], 0, ROW_SCHEMA)
    if work.near_duplicates is None:
        return rows
    places = kept_places(rows)
    found = dropped(work.nodes, part)
    return drop(rows, {int(places[node]): ("near_duplicates", kept) for node, kept in found.items()})


def _rows_name(part: int) -> str:
    return f"{WORK}/rows/{part:05d}.arrow"


# The end: quarantine files and the account.


def part_record(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What parts.json says of a part."""
    counts = answer["counts"].values()
    return {
        "name": part_name("documents", answer["part"]),
        "digest": answer["digest"],
        "documents": sum(own["kept"] for own in counts),
        "bytes": sum(own["bytes"] for own in counts),
        "counts": answer["counts"],
    }


def _write_quarantine(
    output: Storage, names: Mapping[str, Mapping[str, str]], cleaned: Sequence[Mapping[str, Any]]
) -> None:
    """One file per source with bad records, in the order of files and offsets. `names` are its files' by their URLs.

    A file is told by its name in its source and not by its path, for the same files read from another place must give
    the same bytes.
    """
    for source, records in groupby(_quarantined(output, cleaned), key=lambda record: record["source"]):
        with output.writing(f"quarantine/{source}.jsonl") as file:
            for record in records:
                file.write(json_line(record | {"file": names[source][record["file"]]}))


def _quarantined(output: Storage, cleaned: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every quarantined record as it was read, so in the order of sources, files and offsets."""
    for name in (piece["quarantine"] for piece in cleaned if piece["quarantine"]):
        with output.open(name, read_ahead=True) as file:
            yield from map(json.loads, file)


def _file_names(urls: Sequence[str]) -> dict[str, str]:
    """The last part of each file's path; with its place in the source where two files end alike."""
    names = {url: url.partition("::")[0].rpartition("/")[2] for url in urls}
    again = Counter(names.values())
    return {
        url: name if again[name] == 1 else f"{name} (file {number} of {len(names)})"
        for number, (url, name) in enumerate(names.items(), start=1)
    }


def _remove_work(output: Storage) -> None:
    """Remove the files between the halves, and before them whatever would have the next run trust them.

    A kill in between must not leave an answer whose files are gone: it would not be worked for again.
    """
    for name in (_CUT, _ANSWERS, WORK):
        output.remove(name)


def summarize(
    config: CorpusConfig, cleaned: Sequence[Mapping[str, Any]], written: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The counts over all tasks. Raises ValueError naming the filter when nothing is left."""
    sources: dict[str, dict[str, Any]] = {}
    zero = {"read": 0, "quarantined": 0, "others": 0, "bytes_read": 0, "kept": 0, "bytes": 0}
    for source in config.sources:
        sources[source.name] = {**zero, "dropped": {}, "changed": {}}
    for answer in (*cleaned, *written):
        for name, counts in answer["counts"].items():
            add_counts(sources[name], counts)
    summary = close_accounts(sources)
    if not summary["documents"]:
        _raise_empty(summary)
    return summary | {"content_digest": content_digest(answer["digest"] for answer in written)}


def close_accounts(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of the counts by source, which are proved to add up."""
    dropped: dict[str, int] = {}
    for name, own in sources.items():
        closed = own["kept"] + sum(own["dropped"].values()) + own["quarantined"]
        assert own["read"] == closed, f"{name}: {own['read']} records read, but {closed} accounted for: {own}"
        add_counts(dropped, own["dropped"])
    names = ("read", "quarantined", "others", "bytes_read", "kept", "bytes")
    totals = {name: sum(own[name] for own in sources.values()) for name in names}
    return {
        "documents": totals.pop("kept"),
        **totals,
        "dropped": _sorted(dropped),
        "sources": {name: {key: _sorted(value) for key, value in own.items()} for name, own in sources.items()},
    }


def _sorted(value: Any) -> Any:
    """Counts in the order of their names, those left out that nothing was counted for; any other value as it is."""
    return {name: number for name, number in sorted(value.items()) if number} if isinstance(value, Mapping) else value


def content_digest(digests: Iterable[str]) -> str:
    """Identity of all documents, from the digests of the parts in their order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def add_counts(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add counts, nested ones likewise, into `total`."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            add_counts(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value


def _raise_empty(summary: Mapping[str, Any]) -> None:
    took = sorted({**summary["dropped"], "quarantine": summary["quarantined"]}.items(), key=lambda item: -item[1])
    account = ", ".join(f"{reason} {number:,}" for reason, number in took if number)
    remedy = (
        "see quarantine for the reasons" if took[0][0] == "quarantine" else f"loosen {took[0][0].partition('/')[0]}"
    )
    raise ValueError(
        f"corpus: no document is left of {summary['read']:,} read; most went to {took[0][0]} ({account}); {remedy}"
    )
