"""shards: tokenizes the corpus into shards.

Shards are the files from which training reads any row (a training sample of consecutive tokens) by its index.

Each document is entirely in one split, train/ or validation/. A part is an output file of the corpus. Each part
becomes one shard of train/ and one shard of validation/. In a shard, documents are grouped by source, and within a
source they keep the part's order. So the shards are the same for any number of workers.

A shard records the digest of its part. When documents are forgotten, only the shards whose parts have changed are
written again (`rebuild_stale`). `data/tokens/shard_format.py` defines the format.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cluster.machine import num_parallel_tasks
from cluster.placement import TasksExecution
from cluster.storage import Storage
from data.corpus.accounting import CorpusSummary
from data.corpus.parts import read_part_records
from data.tokens.growth import copy_generations, write_excluded
from data.tokens.shard_format import (
    MANIFEST,
    SPLITS,
    Generation,
    ShardManifest,
    SplitManifests,
    read_manifest,
    shard_files,
    write_manifest,
)
from data.tokens.shard_reader import check_tokenizer
from data.tokens.shard_tasks import CorpusPart, excluded_digest, run_shard_tasks, shard_tasks, unchanged_shards
from data.tokens.shards_summary import ShardsSummary, summarize_shards
from data.tokens.tokenizer import DocumentTokens, declare_bos, document_tokens, fingerprint, vocab_size
from jobs.frame.artifact import WORK, Artifact, start_change
from jobs.frame.fields import PREVIOUS_STAGE, input_artifact
from jobs.frame.kinds import ShardsSizes
from jobs.frame.sizes import corpus_sizes, tokenizer_sizes
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.tokenizer_files import copy_tokenizer
from jobs.frame.workload import Processes, Workload
from jobs.report.tokens import report_shards

_ENCODE_S_PER_MB = 0.3
"""Seconds of one process to tokenize 1 MB of text on the reference processor (`jobs.frame.cost_model`)."""


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """`shards.yaml`."""

    corpus: str = input_artifact("corpus", default=PREVIOUS_STAGE)
    """Corpus to tokenize."""
    tokenizer: str = input_artifact("tokenizer", "model", default=PREVIOUS_STAGE)
    """Artifact or folder whose tokenizer is used: a vocabulary, or the model that will be trained on the shards."""
    validation_fraction: float = 0.01
    """Fraction of the documents that is held out for validation. Documents are chosen by a hash of their ids, so that a
    document is always in the same split."""
    grow: str | None = input_artifact("shards", default=None)
    """Existing shards to extend by a new generation. The new generation contains the documents of `corpus`, except
    documents that the existing shards contain and documents that have a duplicate in the existing shards."""
    execution: TasksExecution = field(default_factory=TasksExecution)


def check(config: ShardsConfig) -> None:
    """Raises ValueError for a field out of its range."""
    if not 0 < config.validation_fraction < 1:
        raise ValueError(f"validation_fraction: {config.validation_fraction} must be above 0 and below 1")


def check_planned_inputs(config: ShardsConfig, planned: PlannedInputs) -> None:
    """Raises ValueError if the tokenizer may be trained on documents that these shards hold out for validation."""
    if planned["tokenizer"].kind != "tokenizer":
        return
    tokenizer = tokenizer_sizes(planned["tokenizer"])
    if tokenizer.corpus_id == planned["corpus"].id and config.validation_fraction > tokenizer.held_out_fraction:
        raise ValueError(
            f"validation_fraction: {config.validation_fraction} is more than the vocabulary's held_out_fraction, which "
            f"is {tokenizer.held_out_fraction}, so the vocabulary may be trained on documents that these shards hold "
            "out; raise held_out_fraction, or lower validation_fraction"
        )


def check_inputs(config: ShardsConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError if an input cannot be used.

    The tokenizer must be a fast one with a separator, the corpus must have a parts.json, and the shards in `grow` must
    have been made with the same tokenizer.
    """
    folder = inputs["tokenizer"].tokenizer.local()
    around = document_tokens(folder)
    read_part_records(inputs["corpus"].storage)
    if config.grow is not None:
        for split in SPLITS:
            old = inputs["grow"].storage / split
            manifest = read_manifest(old)
            check_tokenizer(old, manifest, fingerprint(folder))
            _check_document_tokens(manifest, around)


def _check_document_tokens(grown: ShardManifest, around: DocumentTokens) -> None:
    """Raises ValueError unless the documents of the shards in `grow` begin and end with the tokenizer's tokens."""
    if (grown.begin, grown.separator) != around:
        raise ValueError(
            f"grow: its documents begin with token {grown.begin} and end with token {grown.separator}, but with this "
            f"tokenizer they begin with {around.begin} and end with {around.end}; set the bos_token and eos_token in "
            "its tokenizer_config.json to those of the shards, or make new shards without `grow`"
        )


def run(config: ShardsConfig, context: Context) -> ShardsSummary:
    """Write train/, validation/ and tokenizer/. Returns the counts of both splits."""
    return _write(config, context, finished=None)


def rebuild_stale(config: ShardsConfig, context: Context) -> ShardsSummary:
    """Rewrite those shards of a finished output whose corpus parts have changed. Returns what `run` returns.

    Afterwards, the output has the same bytes as an output that `run` makes from the changed corpus. A rewritten shard
    keeps its name. The manifests are written last, so until then a manifest may contradict a rewritten shard.
    """
    manifests = (read_manifest(context.output / split) for split in SPLITS)
    return _write(config, context, finished=SplitManifests(*manifests))


def forget(config: ShardsConfig, context: Context, artifact: Artifact) -> ShardsSummary | None:
    """Rewrite the shards whose corpus parts have changed, because documents were forgotten.

    Returns the new summary, or None when no input has changed.
    """
    before = artifact.record.inputs
    if all(before[name].digest == current.digest for name, current in context.inputs.items()):
        return None
    start_change(artifact)
    return rebuild_stale(config, context)


def _write(config: ShardsConfig, context: Context, *, finished: SplitManifests | None) -> ShardsSummary:
    """Write the shards, then the manifests. Returns the counts of both splits.

    `finished` is None if the output is new. Otherwise the output was finished before, and `finished` has its manifests.
    The unchanged shards of that output are then kept.
    """
    output, corpus = context.output, context.inputs["corpus"]
    tokenizer = context.inputs["tokenizer"].tokenizer
    _write_tokenizer(tokenizer, output)
    corpus_summary = corpus.read_summary(CorpusSummary)
    # `excluded` describes the file that lists the documents to leave out: those in the shards of `grow`, and duplicates
    # of those. It is None if `grow` is not set.
    manifests, excluded = _empty_manifests(tokenizer.local(), corpus_summary), None
    if config.grow is not None:
        old = context.inputs["grow"].storage
        manifests = copy_generations(old, output, manifests)
        excluded = write_excluded(old, output / WORK, corpus.storage)
    tasks = shard_tasks(
        [CorpusPart(part.name, part.digest) for part in read_part_records(corpus.storage)],
        manifests,
        excluded=excluded,
        validation_fraction=config.validation_fraction,
    )
    unchanged = [unchanged_shards(task, finished) for task in tasks]
    written = run_shard_tasks(
        [task for task, shards in zip(tasks, unchanged, strict=True) if shards is None],
        output=output,
        work=output / WORK,
        corpus=corpus.storage,
        manifests=manifests,
        workers=config.execution.workers,
    )
    # For each task, take its unchanged shards, or else the next written ones, which are in the order of the tasks.
    next_written = iter(written)
    shards = [kept if kept is not None else next(next_written) for kept in unchanged]
    generations = (
        Generation(corpus=corpus_summary.content_digest, shards=of_split, known=excluded_digest(excluded))
        for of_split in zip(*shards, strict=True)
    )
    manifests = SplitManifests(*map(_with_generation, manifests, generations))
    if finished is None:
        _check_not_empty(manifests, config.validation_fraction)
    for split, manifest in zip(SPLITS, manifests, strict=True):
        write_manifest(output / split, manifest)
        _remove_leftovers(output / split, manifest)
    output.remove(WORK)
    summary = summarize_shards(manifests)
    context.tracker.log(0, metrics(summary))
    return summary


def metrics(summary: ShardsSummary) -> dict[str, float]:
    """Return the counts of both splits by metric key, such as `train/documents`."""
    splits = zip(SPLITS, (summary.train, summary.validation), strict=True)
    return {f"{split}/{name}": value for split, counts in splits for name, value in asdict(counts).items()}


def _empty_manifests(tokenizer: Path, corpus: CorpusSummary) -> SplitManifests:
    """Return a manifest without shards for each split.

    Both manifests name the tokenizer in the folder `tokenizer` and the sources of the corpus.
    """
    begin, separator = document_tokens(tokenizer)
    empty = ShardManifest(
        tokenizer=fingerprint(tokenizer),
        vocab_size=vocab_size(tokenizer),
        begin=begin,
        separator=separator,
        sources=tuple(corpus.sources),
        generations=(),
    )
    return SplitManifests(empty, empty)


def _with_generation(manifest: ShardManifest, generation: Generation) -> ShardManifest:
    return replace(manifest, generations=(*manifest.generations, generation))


def _check_not_empty(manifests: SplitManifests, validation_fraction: float) -> None:
    """Raises ValueError when a split has no document."""
    for split, manifest in zip(SPLITS, manifests, strict=True):
        if not manifest.num_documents:
            raise ValueError(
                f"validation_fraction: {validation_fraction} leaves no document for {split}; change the fraction or "
                "add documents"
            )


def _remove_leftovers(split: Storage, manifest: ShardManifest) -> None:
    """Remove shards that the manifest does not name. They are left over from a corpus that had more parts."""
    named = {file.name for shard in manifest.shards for file in shard_files(manifest, shard)}
    for name in sorted(set(split.files()) - {MANIFEST, *named}):
        split.remove(name)


def _write_tokenizer(source: Storage, output: Storage) -> None:
    """Copy the tokenizer files of the folder `source` to the folder `tokenizer` of the artifact.

    The copy begins every text with the token that the documents begin with, if this is the tokenizer's bos token. The
    models that are trained on the shards get the copy.

    Raises ValueError if `source` has no fast tokenizer.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy_tokenizer(source, Storage(temporary))
        declare_bos(Path(temporary))
        output.put_folder(Path(temporary), "tokenizer")


def output_sizes(config: ShardsConfig, planned: PlannedInputs) -> ShardsSizes:
    """Estimate the sizes of the shards."""
    num_bytes = corpus_sizes(planned["corpus"]).num_bytes
    return ShardsSizes(
        vocab_size=tokenizer_sizes(planned["tokenizer"]).vocab_size,
        num_bytes=num_bytes,
        validation_bytes=num_bytes * config.validation_fraction,
    )


def workload(config: ShardsConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from.

    The encoding time is in proportion to the bytes of text. The shards are assumed to be as large as the text.
    """
    corpus = corpus_sizes(planned["corpus"])
    num_mb = corpus.num_bytes / 1e6
    workers = num_parallel_tasks(config.execution.workers, corpus.num_parts)
    return Workload(
        processes=[Processes(kind="task", number=workers)],
        python_s=num_mb * _ENCODE_S_PER_MB,
        python_processes=workers,
        disk_gib=num_mb / 1000,
    )


STAGE = Stage(
    name="shards",
    version=4,
    kind="shards",
    config=ShardsConfig,
    run=run,
    output_sizes=output_sizes,
    check=check,
    check_planned_inputs=check_planned_inputs,
    check_inputs=check_inputs,
    workload=workload,
    report=report_shards,
    forget=forget,
)
