"""shards: the corpus as token ids, whole documents in training or validation, ready to be read by global index.

Each part of the corpus becomes one shard of train/ and one of validation/, source by source in the part's own order, so
the bytes do not depend on the workers. A shard tells the digest of its part: when documents are forgotten, the shards
of the parts that changed are made again and no others (`rebuild_stale`). The format is a contract:
`data/tokens/shard_format.py`.
"""

import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.machine import tasks_at_once
from cluster.placement import TasksExecution
from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.document import unit_hash
from data.tokens.encode import fast_encoder
from data.tokens.shard_cache import local_file
from data.tokens.shard_format import (
    MANIFEST,
    Generation,
    ShardFile,
    ShardInfo,
    ShardManifest,
    document_key,
    read_manifest,
    shard_files,
    shard_info,
    write_manifest,
)
from data.tokens.shard_reader import check_tokenizer, known_documents
from data.tokens.shard_writer import ShardWriter, TextDocument
from data.tokens.tokenizer import fingerprint, load_tokenizer, separator_id, vocab_size
from jobs.frame.artifact import WORK, Artifact, open_for_change
from jobs.frame.fields import PREVIOUS, input_artifact
from jobs.frame.kinds import ShardsSizes
from jobs.frame.stage import Context, Needs, Stage
from jobs.frame.work import Processes, Work
from jobs.report.tokens import report_shards

SPLITS = ("train", "validation")

_BATCH_DOCUMENTS = 256
_ENCODE_S_PER_MB = 0.3  # of Python, on the reference processor of `jobs.frame.forecast`


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """`shards.yaml`."""

    corpus: str = input_artifact("corpus", default=PREVIOUS)
    tokenizer: str = input_artifact("tokenizer", "model", default=PREVIOUS)
    """Where the tokenizer comes from: a vocabulary, or the model that will be trained further."""
    validation_fraction: float = 0.01
    """Part of the documents kept out of training, chosen by a hash of the id: a document never changes sides."""
    grow: str | None = input_artifact("shards", default=None)
    """Shards to add a generation to: those of this corpus's documents that are not in them yet, by their ids, nor are
    kept in the stead of a duplicate that is."""
    execution: TasksExecution = field(default_factory=TasksExecution)


def check(config: ShardsConfig) -> None:
    """Raise ValueError for a field out of its range."""
    if not 0 < config.validation_fraction < 1:
        raise ValueError(f"validation_fraction: {config.validation_fraction} must be above 0 and below 1")


def check_needs(config: ShardsConfig, needs: Needs) -> None:
    """Raise ValueError when the vocabulary may learn from documents that these shards hold out."""
    from jobs.frame.sizes import tokenizer_sizes  # late: it imports torch, which the tasks need not load

    if needs["tokenizer"].kind != "tokenizer":
        return
    tokenizer = tokenizer_sizes(needs["tokenizer"])
    if tokenizer.corpus_id == needs["corpus"].id and config.validation_fraction > tokenizer.held_out_fraction:
        raise ValueError(
            f"validation_fraction: {config.validation_fraction} is more than the held_out_fraction "
            f"{tokenizer.held_out_fraction} of the "
            "vocabulary, which may learn from some of these documents; raise that one, or lower this one"
        )


def check_inputs(config: ShardsConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raise ValueError when there is no usable tokenizer, or another one than that of the shards to grow."""
    folder = inputs["tokenizer"].tokenizer.local()
    separator_id(load_tokenizer(folder))
    _corpus_parts(inputs["corpus"])
    if config.grow is not None:
        for split in SPLITS:
            old = inputs["grow"].storage / split
            check_tokenizer(old, read_manifest(old), fingerprint(folder))


def run(config: ShardsConfig, context: Context) -> dict[str, Any]:
    """Write train/, validation/ and tokenizer/; return the counts of both splits."""
    return _make(config, context, standing={})


def rebuild_stale(config: ShardsConfig, context: Context) -> dict[str, Any]:
    """Make those shards of a finished output again whose part of the corpus changed; returns what `run` returns.

    The output is then the same, byte for byte, as one made from the changed corpus anew. A shard keeps its name; the
    manifests are written last, so until then a reader may find a shard that is not what its manifest says.
    """
    standing = {split: read_manifest(context.output / split) for split in SPLITS}
    return _make(config, context, standing=standing)


def forget(config: ShardsConfig, context: Context, artifact: Artifact) -> dict[str, Any] | None:
    """Make the shards again whose documents have changed since; None where no input has."""
    before = artifact.record.inputs
    if all(before[name].digest == need.digest for name, need in context.inputs.items()):
        return None
    open_for_change(artifact)
    return rebuild_stale(config, context)


def _make(config: ShardsConfig, context: Context, *, standing: Mapping[str, ShardManifest]) -> dict[str, Any]:
    """Write the shards that do not stand already, then the manifests."""
    output, corpus = context.output, context.inputs["corpus"]
    source = context.inputs["tokenizer"].tokenizer
    _copy_tokenizer(source, output / "tokenizer")
    manifests, known = _empty_manifests(source.local(), corpus), None
    if config.grow is not None:
        old = context.inputs["grow"].storage
        manifests = {split: _copy_old(old / split, output / split, manifests[split]) for split in SPLITS}
        known = _write_known(old, output, corpus.storage)
    tasks = _tasks(corpus, config, known, manifests["train"])
    whole = [_standing_shards(task, standing, manifests) for task in tasks]
    missing = [task for task, shards in zip(tasks, whole, strict=True) if shards is None]
    write = partial(
        _write_shards, output=output, corpus=corpus.storage, manifests=manifests, fraction=config.validation_fraction
    )
    workers = config.execution.workers
    answers = iter(
        run_tasks(
            write, missing, returns=dict[str, Any], workers=workers, label="shards: tokenise", answers=output / WORK
        )
    )
    made = [shards or {split: shard_info(raw) for split, raw in next(answers).items()} for shards in whole]
    for split in SPLITS:
        new = Generation(
            corpus=corpus.summary["content_digest"],
            shards=tuple(shards[split] for shards in made),
            known=_known_digest(known),
        )
        manifests[split] = replace(manifests[split], generations=(*manifests[split].generations, new))
        if not manifests[split].num_documents and not standing:
            raise ValueError(
                f"validation_fraction: {config.validation_fraction} leaves no document for {split}; "
                "change it or add documents"
            )
    for split in SPLITS:
        write_manifest(output / split, manifests[split])
        _remove_leftovers(output / split, manifests[split])
    output.remove(WORK)
    summary = _summary(manifests)
    context.tracker.log(0, {f"{split}/{name}": value for split in SPLITS for name, value in summary[split].items()})
    return summary


def sizes(config: ShardsConfig, needs: Needs) -> ShardsSizes:
    """The sizes that the shards will have."""
    from jobs.frame.sizes import corpus_sizes, tokenizer_sizes  # late: it imports torch, which the tasks need not load

    num_bytes = corpus_sizes(needs["corpus"]).num_bytes
    return ShardsSizes(
        vocab_size=tokenizer_sizes(needs["tokenizer"]).vocab_size,
        num_bytes=num_bytes,
        validation_bytes=num_bytes * config.validation_fraction,
    )


def work(config: ShardsConfig, needs: Needs) -> Work:
    """What the forecast is made of: encoding the text, two or four bytes a token."""
    from jobs.frame.sizes import corpus_sizes  # late: it imports torch, which the tasks need not load

    corpus = corpus_sizes(needs["corpus"])
    num_mb = corpus.num_bytes / 1e6
    workers = tasks_at_once(config.execution.workers, corpus.num_parts)
    return Work(
        processes=[Processes(kind="task", number=workers)],
        python_s=num_mb * _ENCODE_S_PER_MB,
        python_processes=workers,
        disk_gib=num_mb / 1000,
    )


STAGE = Stage(
    name="shards",
    version=2,
    kind="shards",
    config=ShardsConfig,
    run=run,
    sizes=sizes,
    check=check,
    check_needs=check_needs,
    check_inputs=check_inputs,
    work=work,
    report=report_shards,
    forget=forget,
)


def _copy_tokenizer(source: Storage, target: Storage) -> None:
    """Copy what `source` holds of a tokenizer. Raises ValueError when that is none of the fast kind."""
    from model.huggingface import TOKENIZER_FILES  # late: it brings torch, which the tokenising workers need not load

    if not source.exists("tokenizer.json"):
        raise ValueError(
            f"tokenizer: {source.url} holds no tokenizer.json; give a folder with a tokenizer of the fast kind"
        )
    for name in TOKENIZER_FILES:
        if source.exists(name):
            target.write_bytes(name, source.read_bytes(name))


def _empty_manifests(tokenizer: Path, corpus: Artifact) -> dict[str, ShardManifest]:
    empty = ShardManifest(
        tokenizer=fingerprint(tokenizer),
        vocab_size=vocab_size(tokenizer),
        separator=separator_id(load_tokenizer(tokenizer)),
        sources=tuple(corpus.summary["sources"]),
        generations=(),
    )
    return dict.fromkeys(SPLITS, empty)


def _corpus_parts(corpus: Artifact) -> list[dict[str, str]]:
    """Name and content digest of every part of a corpus, in their order."""
    try:
        return corpus.storage.read_json("parts.json")
    except FileNotFoundError as error:
        raise ValueError(f"corpus: {corpus.storage.url} holds no parts.json; make the corpus again") from error


def _tasks(
    corpus: Artifact, config: ShardsConfig, known: Mapping[str, Any] | None, manifest: ShardManifest
) -> list[dict[str, Any]]:
    """One for each part: all that its shards' bytes depend on, so that what a killed run answered is the answer."""
    common = {
        "known": known,
        "validation_fraction": config.validation_fraction,
        "tokenizer": manifest.tokenizer,
        "vocab_size": manifest.vocab_size,
        "separator": manifest.separator,
        "sources": manifest.sources,
    }
    return [
        {"name": f"shard-{number:05d}", "part": part["name"], "digest": part["digest"], **common}
        for number, part in enumerate(_corpus_parts(corpus), start=len(manifest.shards))
    ]


def _standing_shards(
    task: Mapping[str, Any], standing: Mapping[str, ShardManifest], manifests: Mapping[str, ShardManifest]
) -> dict[str, ShardInfo] | None:
    """The shards that a task would write as they stand already, or None."""
    found: dict[str, ShardInfo] = {}
    for split, manifest in standing.items():
        wanted, newest = manifests[split], manifest.generations[-1]
        if (manifest.tokenizer, manifest.sources) != (wanted.tokenizer, wanted.sources):
            return None
        if newest.known != _known_digest(task["known"]):
            return None
        for shard in newest.shards:
            if (shard.name, shard.part, shard.part_digest) == (task["name"], task["part"], task["digest"]):
                found[split] = shard
    return found if len(found) == len(SPLITS) else None


def _remove_leftovers(split: Storage, manifest: ShardManifest) -> None:
    """Remove shards that the manifest does not name, of a corpus that had more parts."""
    for name in sorted(set(split.files()) - {MANIFEST, *_files(manifest)}):
        split.remove(name)


def _files(manifest: ShardManifest) -> list[str]:
    return [file.name for shard in manifest.shards for file in shard_files(manifest, shard)]


# Growth.


def _copy_old(old: Storage, new: Storage, empty: ShardManifest) -> ShardManifest:
    """Bring the old generations' files over; their manifest, open for the new corpus's sources."""
    manifest = read_manifest(old)
    for shard in manifest.shards:
        for file in shard_files(manifest, shard):
            if not _stands(old, new, file):
                _copy_file(old, new, file.name)
    return replace(manifest, sources=tuple(dict.fromkeys([*manifest.sources, *empty.sources])))


def _stands(source: Storage, target: Storage, file: ShardFile) -> bool:
    """Whether the target has the whole file already: as the same file, or by its checksum."""
    if not target.exists(file.name):
        return False
    if source.is_local and target.is_local and os.path.samefile(source.path(file.name), target.path(file.name)):
        return True
    with target.open(file.name, read_ahead=True) as reading:
        return hashlib.file_digest(reading, "sha256").hexdigest() == file.sha256


def _copy_file(source: Storage, target: Storage, name: str) -> None:
    """The same file in another place, at once: by a hard link where both are on one disk, else a copy.

    A shard is never written in place, so that files may be shared.
    """
    if source.is_local and target.is_local and _link(source.path(name), target.path(name)):
        return
    source.copy(name, target)


def _link(source: str, target: str) -> bool:
    """Put a hard link in the target's place; False where the disks do not allow one."""
    partial_path = f"{target}.{uuid.uuid4().hex[:8]}.partial"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(source, partial_path)
    except OSError:  # another disk, or one without links
        return False
    os.replace(partial_path, target)
    return True


def _write_known(old: Storage, output: Storage, corpus: Storage) -> dict[str, Any]:
    """Write the sorted keys of the documents that are not to come again, for the tasks to search: those in the old
    shards, and those that the corpus kept in the stead of one of them. Returns the file's name, checksum and size."""
    keys = [known_documents(old / split, read_manifest(old / split)) for split in SPLITS]
    data = _with_kept_twins(np.unique(np.concatenate(keys)), corpus).astype("<u8").tobytes()
    name = f"{WORK}/known.bin"
    output.write_bytes(name, data)
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}


def _known_digest(known: Mapping[str, Any] | None) -> str:
    return known["sha256"] if known else ""


def _with_kept_twins(known: np.ndarray, corpus: Storage) -> np.ndarray:
    """The sorted keys, and those of the documents for whose sake the corpus dropped a known one.

    For of duplicates a corpus keeps the one of the lowest id, which a new source may bring: its text stands already.
    An exact duplicate may have been dropped for a near one, so each pass reads drops/ once, until one finds no more.
    """
    drops = corpus.glob("drops/part-*.parquet")
    while True:
        found = [_kept_keys(corpus, name, known) for name in drops]
        grown = np.union1d(known, np.concatenate([known[:0], *found]))
        if len(grown) == len(known):
            return known
        known = grown


def _kept_keys(corpus: Storage, name: str, known: np.ndarray) -> np.ndarray:
    """uint64 keys of the documents for whose sake the known documents among the dropped ones of a part were dropped."""
    kept: list[int] = []
    with corpus.open(name, read_ahead=True) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["id", "kept_id"]):
            batch = batch.filter(batch.column("kept_id").is_valid())
            ids, kept_ids = (batch.column(column).to_pylist() for column in ("id", "kept_id"))
            kept += [document_key(kept_ids[place]) for place in np.flatnonzero(_is_known(ids, known))]
    return np.array(kept, dtype=np.uint64)


def _is_known(ids: Sequence[str], known: np.ndarray) -> np.ndarray:
    """bool [number of ids], whether the keys, sorted, hold each."""
    keys = np.array([document_key(name) for name in ids], dtype=np.uint64)
    if not len(known):
        return np.zeros(len(keys), dtype=np.bool_)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return known[places] == keys


@lru_cache(maxsize=1)
def _known_keys(output: Storage, name: str, sha256: str, num_bytes: int) -> np.ndarray:
    return np.memmap(local_file(output, name, sha256=sha256, num_bytes=num_bytes), dtype="<u8", mode="r")


# One part.


def _write_shards(
    task: Mapping[str, Any],
    *,
    output: Storage,
    corpus: Storage,
    manifests: Mapping[str, ShardManifest],
    fraction: float,
) -> dict[str, Any]:
    """Tokenise one part of the corpus into a shard of each split; return their infos."""
    with corpus.open(task["part"], read_ahead=True) as file:
        batches = _document_batches(file)
        first = next(batches, [])
        encoder = fast_encoder((output / "tokenizer").local(), [document.text for document in first])
        writers = {split: ShardWriter(manifests[split], encoder) for split in SPLITS}
        for batch in chain([first], batches):
            sides: dict[str, list[TextDocument]] = {split: [] for split in SPLITS}
            for document in _unknown(batch, output, task["known"]):
                sides["validation" if unit_hash(document.id, "split") < fraction else "train"].append(document)
            for split, documents in sides.items():
                writers[split].add(documents)
    origin = {"part": task["part"], "part_digest": task["digest"]}
    return {split: asdict(writer.write(output / split, task["name"], **origin)) for split, writer in writers.items()}


def _document_batches(file: Any) -> Iterator[list[TextDocument]]:
    for batch in pq.ParquetFile(file).iter_batches(_BATCH_DOCUMENTS, columns=list(TextDocument._fields)):
        columns = (batch.column(name).to_pylist() for name in TextDocument._fields)
        yield [TextDocument(*row) for row in zip(*columns, strict=True)]


def _unknown(
    documents: Sequence[TextDocument], output: Storage, known: Mapping[str, Any] | None
) -> Sequence[TextDocument]:
    """The documents that no older generation holds, under this id or another one."""
    if known is None:
        return documents
    old = _is_known([document.id for document in documents], _known_keys(output, **known))
    return [document for document, is_old in zip(documents, old, strict=True) if not is_old]


# The account.


def _summary(manifests: Mapping[str, ShardManifest]) -> dict[str, Any]:
    """Counts of both splits, tokens by source, and how many parts were encoded by which route."""
    train = manifests["train"]
    sources = {split: manifest.targets_by_source for split, manifest in manifests.items()}
    return {
        **{split: _counts(manifests[split]) for split in SPLITS},
        "tokens_by_source": {name: {split: sources[split][name] for split in SPLITS} for name in train.sources},
        "encoder": dict(sorted(Counter(shard.encoder for shard in train.shards).items())),
        "tokenizer": train.tokenizer,
        "vocab_size": train.vocab_size,
        "dtype": train.dtype.name,
    }


def _counts(manifest: ShardManifest) -> dict[str, int | float]:
    return {
        "documents": manifest.num_documents,
        "tokens": manifest.num_targets,
        "bytes": manifest.num_bytes,
        "bytes_per_token": manifest.num_bytes / max(1, manifest.num_targets),
        "shards": len(manifest.shards),
        "generations": len(manifest.generations),
    }
