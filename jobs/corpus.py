"""corpus: raw files in, clean documents out.

    files ─ read, clean ─▶ documents in buckets by text hash ─ deduplicate, sort ─▶ documents/part-*.parquet
            (a task for each piece of input)                   (a task for each part)

Documents with the same text meet in one bucket whatever file they came from, and a bucket is sorted by id, so the parts
have the same bytes for any number of tasks and workers and after any kill. The shuffle goes through storage: both
halves are idempotent tasks, and what was done before a kill is found by its files and not done again.

Counts close: of every source, records read = documents kept + dropped (by reason) + quarantined.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Storage
from data.clean import Step, check_steps, chosen, clean
from data.dedup import duplicates, text_key
from data.document import (
    Document,
    Quarantined,
    ReadRange,
    Source,
    check_sources,
    plan_ranges,
    read,
    unit_hash,
)
from data.parallel import run_tasks
from jobs.job import Context, Stage

WORK = "work"  # files between the two halves; removed at the end
_BATCH_DOCUMENTS = 512
_CHUNK_BYTES = 64 << 20

_WORK_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("metadata", pa.string()),
        ("reason", pa.string()),
    ]
)
DOCUMENT_SCHEMA = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("metadata", pa.string())]
)
DROP_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True, kw_only=True)
class CorpusExecution:
    workers: int | None = None
    """Tasks at once, one CPU each; all CPUs of the cluster unless given."""
    task_mib: int = 32
    """About how much of the input one reading task takes."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """`corpus.yaml`."""

    sources: list[Source]
    steps: list[Step] = field(default_factory=list)
    """The cleaning recipe, applied in order."""
    parts: int = 16
    """Number of output files; each later becomes one shard."""
    execution: CorpusExecution = field(default_factory=CorpusExecution)


def check(config: CorpusConfig) -> None:
    """Raise ValueError for every mistake that the config shows."""
    if config.parts < 1:
        raise ValueError(f"parts: {config.parts} must be at least 1")
    if config.execution.task_mib < 1:
        raise ValueError(f"execution.task_mib: {config.execution.task_mib} must be at least 1")
    if config.execution.workers is not None and config.execution.workers < 1:
        raise ValueError(f"execution.workers: {config.execution.workers} must be at least 1; leave it out for all CPUs")
    check_steps(config.steps)


def check_first_records(config: CorpusConfig) -> None:
    """Raise ValueError when the first records of a source lack a column."""
    check_sources(config.sources)


def run(config: CorpusConfig, context: Context) -> dict[str, Any]:
    """Write documents/, drops/ and quarantine/; return the counts."""
    output, workers = context.output, config.execution.workers
    ranges = plan_ranges(config.sources, config.execution.task_mib << 20)
    pieces = _pack(ranges, config.execution.task_mib << 20)
    clean_task = partial(_clean_piece, output=output, config=config)
    cleaned = run_tasks(clean_task, pieces, workers=workers, label="corpus: read and clean")
    chunks = [chunk for piece in cleaned for chunk in piece["chunks"]]
    merge_task = partial(_merge_bucket, output=output, config=config, chunks=chunks)
    merged = run_tasks(merge_task, list(range(config.parts)), workers=workers, label="corpus: deduplicate and sort")
    summary = _summary(config, cleaned, merged)
    _write_quarantine(output, config.sources, ranges, cleaned)
    _remove_work(output)
    sizes = {f"corpus/{name}": summary[name] for name in ("read", "documents", "bytes", "quarantined")}
    context.tracker.log(0, sizes | {f"dropped/{reason}": number for reason, number in summary["dropped"].items()})
    return summary


STAGE = Stage(name="corpus", version=2, config=CorpusConfig, run=run, check=check, check_sources=check_first_records)


def _pack(ranges: Sequence[ReadRange], task_bytes: int) -> list[list[ReadRange]]:
    """Runs of consecutive ranges of about `task_bytes` together, so that many small files make few tasks."""
    pieces: list[list[ReadRange]] = []
    size = 0
    for piece in ranges:
        if not pieces or size + piece.num_bytes > task_bytes:
            pieces.append([])
            size = 0
        pieces[-1].append(piece)
        size += piece.num_bytes
    return pieces


# First half: read and clean one piece of the input.


def _clean_piece(piece: list[list[Any]], *, output: Storage, config: CorpusConfig) -> dict[str, Any]:
    """Read and clean some ranges of files into chunk files of one record batch per bucket.

    Returns the chunks' names, the quarantine file's name and the counts by source; the same from a file when a run
    before this one got that far.
    """
    key = hashlib.sha256(json.dumps(piece).encode()).hexdigest()[:16]
    done = f"{WORK}/piece-{key}.json"
    if output.exists(done):
        return output.read_json(done)
    counts: dict[str, dict[str, Any]] = {}
    quarantined: list[Quarantined] = []
    chunks: list[str] = []
    rows: list[tuple[int, dict[str, Any]]] = []
    num_bytes = 0
    for item in piece:
        place = ReadRange(*item)
        source = config.sources[place.source]
        own = counts.setdefault(source.name, {"read": 0, "quarantined": 0, "bytes_read": 0, "changed": {}})
        for batch in _batches(read(source, place)):
            documents = [record for record in batch if isinstance(record, Document)]
            own["read"] += len(batch)
            own["quarantined"] += len(batch) - len(documents)
            own["bytes_read"] += sum(len(document.text.encode()) for document in documents)
            quarantined += [record for record in batch if isinstance(record, Quarantined)]
            for bucket, row in _clean_batch(documents, source, config, own["changed"]):
                rows.append((bucket, row))
                num_bytes += len(row["text"] or "")
            if num_bytes > _CHUNK_BYTES:
                chunks.append(_write_chunk(output, f"{WORK}/{key}-{len(chunks):05d}.arrow", rows, config.parts))
                rows, num_bytes = [], 0
    chunks.append(_write_chunk(output, f"{WORK}/{key}-{len(chunks):05d}.arrow", rows, config.parts))
    output.write_jsonl(f"{WORK}/{key}.quarantine.jsonl", (record._asdict() for record in quarantined))
    answer = {"chunks": chunks, "quarantine": f"{WORK}/{key}.quarantine.jsonl", "counts": counts}
    output.write_json(done, answer)
    return answer


def _batches(records: Iterator[Document | Quarantined]) -> Iterator[list[Document | Quarantined]]:
    while batch := list(islice(records, _BATCH_DOCUMENTS)):
        yield batch


def _clean_batch(
    documents: list[Document], source: Source, config: CorpusConfig, changed: dict[str, int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(bucket, row) of every document, kept (a text and no reason) or dropped (a reason and no text)."""
    taken = [document for document in documents if unit_hash(document.id, "fraction") < source.fraction]
    result = clean(taken, config.steps)
    _add(changed, result.counts)
    for document in result.kept:
        bucket = int.from_bytes(text_key(document.text)[:8], "big") % config.parts
        metadata = json.dumps(document.metadata, sort_keys=True, ensure_ascii=False, default=str)
        yield (
            bucket,
            {"id": document.id, "text": document.text, "source": document.source, "metadata": metadata},
        )
    left_out = [document for document in documents if unit_hash(document.id, "fraction") >= source.fraction]
    for document, reason in [*result.dropped, *((document, "fraction") for document in left_out)]:
        bucket = int(unit_hash(document.id, "bucket") * config.parts)
        yield bucket, {"id": document.id, "text": None, "source": document.source, "reason": reason}


def _write_chunk(output: Storage, name: str, rows: list[tuple[int, dict[str, Any]]], parts: int) -> str:
    """Write rows as an Arrow file whose record batch number b holds bucket b, so that a bucket is one ranged read."""
    buckets: list[list[dict[str, Any]]] = [[] for _ in range(parts)]
    for bucket, row in rows:
        buckets[bucket].append(row)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _WORK_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for bucket_rows in buckets:
            writer.write_batch(pa.RecordBatch.from_pylist(bucket_rows, schema=_WORK_SCHEMA))
    output.write_bytes(name, sink.getvalue().to_pybytes())
    return name


# Second half: one bucket of every chunk becomes one part.


def _merge_bucket(bucket: int, *, output: Storage, config: CorpusConfig, chunks: list[str]) -> dict[str, Any]:
    """Write documents/part and drops/part of one bucket; return their counts by source and a digest."""
    done = f"{WORK}/bucket-{bucket:05d}.json"
    if output.exists(done):
        return output.read_json(done)
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    for name in chunks:
        with output.open(name) as file:
            for row in pa.ipc.open_file(file).get_batch(bucket).to_pylist():
                (kept if row["reason"] is None else dropped).append(row)
    kept.sort(key=lambda row: (row["id"], row["text"], row["metadata"]))
    if any(chosen(step)[0] == "exact_duplicates" for step in config.steps):
        later = duplicates([text_key(row["text"]) for row in kept], [row["id"] for row in kept])
        dropped += [row | {"reason": "exact_duplicates"} for row, again in zip(kept, later, strict=True) if again]
        kept = [row for row, again in zip(kept, later, strict=True) if not again]
    dropped.sort(key=lambda row: (row["id"], row["reason"]))
    _write_parquet(output, f"documents/part-{bucket:05d}.parquet", kept, DOCUMENT_SCHEMA)
    _write_parquet(output, f"drops/part-{bucket:05d}.parquet", dropped, DROP_SCHEMA)
    digest = hashlib.sha256()
    counts: dict[str, dict[str, Any]] = {}
    for row in kept:
        digest.update(f"{row['id']}\0{row['text']}\0{row['metadata']}\n".encode())
        own = counts.setdefault(row["source"], {"kept": 0, "bytes": 0, "dropped": {}})
        own["kept"] += 1
        own["bytes"] += len(row["text"].encode())
    for row in dropped:
        reasons = counts.setdefault(row["source"], {"kept": 0, "bytes": 0, "dropped": {}})["dropped"]
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    answer = {"counts": counts, "digest": digest.hexdigest()}
    output.write_json(done, answer)
    return answer


def _write_parquet(output: Storage, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """A Parquet file whose bytes depend on the rows alone: every setting that a default could change is fixed."""
    rows = [{column: row[column] for column in schema.names} for row in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema),
        sink,
        compression="zstd",
        compression_level=3,
        row_group_size=4096,
        version="2.6",
        use_dictionary=False,
        write_statistics=True,
    )
    output.write_bytes(name, sink.getvalue().to_pybytes())


# The end: quarantine files and the account.


def _write_quarantine(
    output: Storage, sources: Sequence[Source], ranges: Sequence[ReadRange], cleaned: Sequence[Mapping[str, Any]]
) -> None:
    """One file per source with bad records, in the order of files and offsets.

    A file is told by its name in its source and not by its path, for the same files read from another place must give
    the same bytes.
    """
    records: dict[str, list[dict[str, Any]]] = {source.name: [] for source in sources}
    for piece in cleaned:
        for record in output.read_jsonl(piece["quarantine"]):
            records[record["source"]].append(record)
    for index, source in enumerate(sources):
        names = _file_names([place.url for place in ranges if place.source == index])
        order = {url: number for number, url in enumerate(names)}
        own = sorted(records[source.name], key=lambda record: (order[record["file"]], record["offset"]))
        if own:
            named = (record | {"file": names[record["file"]]} for record in own)
            output.write_jsonl(f"quarantine/{source.name}.jsonl", named)


def _file_names(urls: Sequence[str]) -> dict[str, str]:
    """The last part of each file's path; with its place in the source where two files end alike."""
    names = {url: url.partition("::")[0].rpartition("/")[2] for url in urls}
    again = Counter(names.values())
    return {
        url: name if again[name] == 1 else f"{name} (file {number} of {len(names)})"
        for number, (url, name) in enumerate(names.items(), start=1)
    }


def _remove_work(output: Storage) -> None:
    """Remove the files between the halves, the records of pieces first.

    A kill in between must not leave a record whose chunks are gone: the next run would trust it and not clean again.
    """
    for name in output.glob(f"{WORK}/piece-*.json"):
        output.remove(name)
    output.remove(WORK)


def _summary(
    config: CorpusConfig, cleaned: Sequence[Mapping[str, Any]], merged: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The counts over all tasks. Raises ValueError naming the filter when nothing is left."""
    sources: dict[str, dict[str, Any]] = {}
    zero = {"read": 0, "quarantined": 0, "bytes_read": 0, "kept": 0, "bytes": 0}
    for source in config.sources:
        sources[source.name] = {**zero, "dropped": {}, "changed": {}}
    for answer in (*cleaned, *merged):
        for name, counts in answer["counts"].items():
            _add(sources[name], counts)
    dropped: dict[str, int] = {}
    for name, own in sources.items():
        closed = own["kept"] + sum(own["dropped"].values()) + own["quarantined"]
        assert own["read"] == closed, f"{name}: {own['read']} records read, but {closed} accounted for: {own}"
        _add(dropped, own["dropped"])
    totals = {name: sum(own[name] for own in sources.values()) for name in zero}
    if totals["kept"] == 0:
        _raise_empty(totals, dropped)
    digest = hashlib.sha256("".join(answer["digest"] for answer in merged).encode()).hexdigest()
    return {
        "documents": totals["kept"],
        "bytes": totals["bytes"],
        "read": totals["read"],
        "bytes_read": totals["bytes_read"],
        "quarantined": totals["quarantined"],
        "dropped": dict(sorted(dropped.items())),
        "content_digest": digest,
        "sources": {
            name: {key: dict(sorted(value.items())) if isinstance(value, dict) else value for key, value in own.items()}
            for name, own in sources.items()
        },
    }


def _add(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add counts, nested ones likewise, into `total`."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value


def _raise_empty(totals: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    took = sorted({**dropped, "quarantine": totals["quarantined"]}.items(), key=lambda item: -item[1])
    account = ", ".join(f"{reason} {number:,}" for reason, number in took if number)
    remedy = (
        "see quarantine for the reasons" if took[0][0] == "quarantine" else f"loosen {took[0][0].partition('/')[0]}"
    )
    raise ValueError(
        f"corpus: no document is left of {totals['read']:,} read; most went to {took[0][0]} ({account}); {remedy}"
    )
