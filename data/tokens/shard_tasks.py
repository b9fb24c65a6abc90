"""Tasks that tokenize a corpus: each part becomes one shard of train/ and one of validation/."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import BinaryIO, NamedTuple

import pyarrow.parquet as pq

from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.tokens.documents import split_position
from data.tokens.encode import fast_encoder
from data.tokens.growth import ExcludedDocuments, without_excluded
from data.tokens.shard_format import SPLITS, ShardInfo, SplitManifests
from data.tokens.shard_writer import ShardWriter, TextDocument

_BATCH_DOCUMENTS = 256


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A part to tokenize, with all that its shards' bytes depend on: then a killed run's answer is the answer."""

    known: ExcludedDocuments | None
    validation_fraction: float
    tokenizer: str
    """Its fingerprint."""
    vocab_size: int
    separator: int
    sources: tuple[str, ...]
    name: str
    """Of the shards."""
    part: str
    digest: str
    """Of the part's documents."""


class SplitShards(NamedTuple):
    """The shards of one part."""

    train: ShardInfo
    validation: ShardInfo


class PartOfCorpus(NamedTuple):
    """The file of a part's documents, and their digest."""

    name: str
    digest: str


def shard_tasks(
    parts: Sequence[PartOfCorpus],
    manifests: SplitManifests,
    *,
    known: ExcludedDocuments | None,
    validation_fraction: float,
) -> list[ShardTask]:
    """A task for each part. Its shards are numbered after those that the manifests hold."""
    manifest = manifests.train
    return [
        ShardTask(
            known=known,
            validation_fraction=validation_fraction,
            tokenizer=manifest.tokenizer,
            vocab_size=manifest.vocab_size,
            separator=manifest.separator,
            sources=manifest.sources,
            name=f"shard-{number:05d}",
            part=part.name,
            digest=part.digest,
        )
        for number, part in enumerate(parts, start=len(manifest.shards))
    ]


def unchanged_shards(task: ShardTask, finished: SplitManifests | None) -> SplitShards | None:
    """The shards of a finished output that are what the task would write; None where it would write others."""
    if finished is None:
        return None
    shards: list[ShardInfo] = []
    for manifest in finished:
        newest = manifest.generations[-1]
        if (manifest.tokenizer, manifest.sources) != (task.tokenizer, task.sources):
            return None
        if newest.known != excluded_digest(task.known):
            return None
        wanted = (task.name, task.part, task.digest)
        shards += [shard for shard in newest.shards if (shard.name, shard.part, shard.part_digest) == wanted]
    return SplitShards(*shards) if len(shards) == len(SPLITS) else None


def excluded_digest(known: ExcludedDocuments | None) -> str:
    """What a generation says of the documents that were not added to it (`Generation.known`)."""
    return known.sha256 if known else ""


def run_shard_tasks(
    tasks: Sequence[ShardTask],
    *,
    output: Storage,
    work: Storage,
    corpus: Storage,
    manifests: SplitManifests,
    workers: int | None,
) -> list[SplitShards]:
    """Do every task that is not done yet."""
    return run_tasks(
        partial(write_shards, output=output, work=work, corpus=corpus, manifests=manifests),
        tasks,
        result_type=SplitShards,
        workers=workers,
        label="shards: tokenize",
        result_folder=work,
    )


def write_shards(
    task: ShardTask, *, output: Storage, work: Storage, corpus: Storage, manifests: SplitManifests
) -> SplitShards:
    """Tokenize one part of the corpus into a shard of each split."""
    with corpus.open(task.part, read_ahead=True) as file:
        batches = _document_batches(file)
        first = next(batches, [])
        encoder = fast_encoder((output / "tokenizer").local(), [document.text for document in first])
        writers = [ShardWriter(manifest, encoder) for manifest in manifests]
        for batch in chain([first], batches):
            train, validation = [], []
            for document in without_excluded(batch, work, task.known):
                is_held_out = split_position(document.id) < task.validation_fraction
                (validation if is_held_out else train).append(document)
            for writer, documents in zip(writers, (train, validation), strict=True):
                writer.add(documents)
    return SplitShards(
        *(
            writer.write(output / split, task.name, part=task.part, part_digest=task.digest)
            for split, writer in zip(SPLITS, writers, strict=True)
        )
    )


def _document_batches(file: BinaryIO) -> Iterator[list[TextDocument]]:
    for batch in pq.ParquetFile(file).iter_batches(_BATCH_DOCUMENTS, columns=list(TextDocument._fields)):
        columns = (batch.column(name).to_pylist() for name in TextDocument._fields)
        yield [TextDocument(*row) for row in zip(*columns, strict=True)]
