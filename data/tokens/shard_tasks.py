"""Tasks that tokenize a corpus, one for each part. A part is an output file of a corpus.

Each task writes one shard of the train split and one shard of the validation split.
"""

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

_BATCH_DOCUMENTS = 256  # documents that are read and encoded at once


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A corpus part to tokenize.

    The task contains everything that the bytes of its shards depend on. `run_tasks` stores the result of a task under
    the hash of the task, so a run that resumes after a crash reuses a result only if the shards would be the same.
    """

    known: ExcludedDocuments | None
    """Documents to leave out, because older generations of shards contain them. None for a first generation."""
    validation_fraction: float
    """The documents with a `split_position` below this number go to the validation split."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    vocab_size: int
    begin: int
    """Id of the token that documents begin with."""
    separator: int
    """Id of the separator."""
    sources: tuple[str, ...]
    """Names of the sources (`ShardManifest.sources`)."""
    name: str
    """Name of both shards."""
    part: str
    """Name of the part's file in the corpus."""
    digest: str
    """Content digest of the part."""


class SplitShards(NamedTuple):
    """The two shards of one corpus part."""

    train: ShardInfo
    validation: ShardInfo


class CorpusPart(NamedTuple):
    """A file with documents of a corpus."""

    name: str
    digest: str
    """Content digest of the documents."""


def shard_tasks(
    parts: Sequence[CorpusPart],
    manifests: SplitManifests,
    *,
    excluded: ExcludedDocuments | None,
    validation_fraction: float,
) -> list[ShardTask]:
    """Return a task for each part. The new shards are numbered after the shards in the manifests."""
    manifest = manifests.train
    return [
        ShardTask(
            known=excluded,
            validation_fraction=validation_fraction,
            tokenizer=manifest.tokenizer,
            vocab_size=manifest.vocab_size,
            begin=manifest.begin,
            separator=manifest.separator,
            sources=manifest.sources,
            name=f"shard-{number:05d}",
            part=part.name,
            digest=part.digest,
        )
        for number, part in enumerate(parts, start=len(manifest.shards))
    ]


def unchanged_shards(task: ShardTask, finished: SplitManifests | None) -> SplitShards | None:
    """Return the shards in a finished output that the task would write again with the same bytes.

    `finished` has the manifests of the finished output. It is None if there is no finished output yet. Returns None in
    this case, and also if the task would write different shards.
    """
    if finished is None:
        return None
    shards: list[ShardInfo] = []
    for manifest in finished:
        newest = manifest.generations[-1]
        if (manifest.tokenizer, manifest.sources) != (task.tokenizer, task.sources):
            return None
        if newest.known != excluded_digest(task.known):
            return None
        identity = (task.name, task.part, task.digest)
        shards += [shard for shard in newest.shards if (shard.name, shard.part, shard.part_digest) == identity]
    return SplitShards(*shards) if len(shards) == len(SPLITS) else None


def excluded_digest(excluded: ExcludedDocuments | None) -> str:
    """Return the checksum of the list of excluded documents, as a generation records it (`Generation.known`)."""
    return excluded.sha256 if excluded else ""


def run_shard_tasks(
    tasks: Sequence[ShardTask],
    *,
    output: Storage,
    work: Storage,
    corpus: Storage,
    manifests: SplitManifests,
    workers: int | None,
) -> list[SplitShards]:
    """Run the tasks that have no result in `work` yet, and return the shards of all tasks.

    `output` is the folder of the shards artifact, and `work` is a temporary folder for the results of the tasks.
    """
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
    """Tokenize one part of the corpus. Writes a shard of each split and returns both."""
    with corpus.open(task.part, prefetch=True) as file:
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
