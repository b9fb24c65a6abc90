"""shards: the corpus as token ids, whole documents in training or validation, ready to be read by global index.

Each part of the corpus becomes one shard of train/ and one of validation/, in the part's own order, so the bytes do not
depend on the workers. The format is a contract: `data/shards.py`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.storage import Storage
from data.document import unit_hash
from data.parallel import run_tasks
from data.shards import (
    MANIFEST,
    Generation,
    ShardInfo,
    ShardManifest,
    TextDocument,
    check_tokenizer,
    document_key,
    known_documents,
    read_manifest,
    write_manifest,
    write_shard,
)
from data.tokenizer import (
    fingerprint,
    load_encoder,
    load_tokenizer,
    separator_id,
    vocab_size,
)
from jobs.job import Artifact, Context, Job, Needs, Stage, input_artifact

WORK = "work"  # what each finished task answered; removed at the end
SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class ShardsExecution:
    workers: int | None = None
    """Tasks at once, one CPU each; all CPUs of the cluster unless given."""


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """`shards.yaml`."""

    corpus: str = input_artifact("corpus", default="corpus")
    tokenizer: str = input_artifact("vocabulary", "pretrain", "sft", "rlhf", default="vocabulary")
    """Where the tokenizer comes from: a vocabulary, or the model that will be trained further."""
    validation_fraction: float = 0.01
    """Part of the documents kept out of training, chosen by a hash of the id: a document never changes sides."""
    grow: str | None = input_artifact("shards", default=None)
    """Shards to add a generation to: those of this corpus's documents whose ids are not in them yet."""
    execution: ShardsExecution = field(default_factory=ShardsExecution)


def check(config: ShardsConfig) -> None:
    """Raise ValueError for a field out of its range."""
    if not 0 < config.validation_fraction < 1:
        raise ValueError(f"validation_fraction: {config.validation_fraction} must be above 0 and below 1")
    if config.execution.workers is not None and config.execution.workers < 1:
        raise ValueError(f"execution.workers: {config.execution.workers} must be at least 1; leave it out for all CPUs")


def check_needs(config: ShardsConfig, needs: Needs) -> None:
    """Raise ValueError when the vocabulary may learn from documents that these shards hold out."""
    tokenizer, corpus = needs["tokenizer"], needs["corpus"]
    if isinstance(tokenizer, Job):
        if tokenizer.stage.name != "vocabulary" or tokenizer.needs["corpus"].id != corpus.id:
            return
        held_out = tokenizer.config.held_out_fraction
    else:
        if tokenizer.stage != "vocabulary" or tokenizer.record["inputs"]["corpus"]["id"] != corpus.id:
            return
        held_out = tokenizer.record["config"]["held_out_fraction"]
    if config.validation_fraction > held_out:
        raise ValueError(
            f"validation_fraction: {config.validation_fraction} is more than the held_out_fraction {held_out} of the "
            "vocabulary, which may learn from some of these documents; raise that one, or lower this one"
        )


def check_inputs(config: ShardsConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raise ValueError when there is no usable tokenizer, or another one than that of the shards to grow."""
    folder = _tokenizer_folder(inputs["tokenizer"]).local()
    separator_id(load_tokenizer(folder))
    if config.grow is not None:
        for split in SPLITS:
            old = inputs["grow"].storage / split
            check_tokenizer(old, read_manifest(old), fingerprint(folder))


def run(config: ShardsConfig, context: Context) -> dict[str, Any]:
    """Write train/, validation/ and tokenizer/; return the counts of both splits."""
    output, corpus = context.output, context.inputs["corpus"]
    source = _tokenizer_folder(context.inputs["tokenizer"])
    _copy_tokenizer(source, output / "tokenizer")
    manifests = _empty_manifests(source.local(), corpus)
    if config.grow is not None:
        manifests = {
            split: _copy_old(context.inputs["grow"].storage / split, output / split, manifests[split])
            for split in SPLITS
        }
    first = len(manifests["train"].shards)
    tasks = [
        {"name": f"shard-{first + number:05d}", "part": part}
        for number, part in enumerate(corpus.storage.glob("documents/*.parquet"))
    ]
    task = partial(
        _write_shards,
        output=output,
        corpus=corpus.storage,
        manifests=manifests,
        fraction=config.validation_fraction,
    )
    answers = run_tasks(task, tasks, workers=config.execution.workers, label="shards: tokenise")
    summary: dict[str, Any] = {}
    for split in SPLITS:
        shards = tuple(ShardInfo(**answer[split]) for answer in answers)
        new = Generation(corpus=corpus.summary["content_digest"], shards=shards)
        manifest = replace(manifests[split], generations=(*manifests[split].generations, new))
        if not manifest.num_documents:
            raise ValueError(
                f"validation_fraction: {config.validation_fraction} leaves no document for {split}; "
                "change it or add documents"
            )
        write_manifest(output / split, manifest)
        summary[split] = _counts(manifest)
    output.remove(WORK)
    shared = manifests["train"]
    summary |= {"tokenizer": shared.tokenizer, "vocab_size": shared.vocab_size, "dtype": shared.dtype.name}
    context.tracker.log(0, {f"{split}/{name}": value for split in SPLITS for name, value in summary[split].items()})
    return summary


STAGE = Stage(
    name="shards",
    version=1,
    config=ShardsConfig,
    run=run,
    check=check,
    check_needs=check_needs,
    check_inputs=check_inputs,
)


def _tokenizer_folder(artifact: Artifact) -> Storage:
    return artifact.storage / "tokenizer" if artifact.stage == "vocabulary" else artifact.model


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


def _copy_old(old: Storage, new: Storage, empty: ShardManifest) -> ShardManifest:
    """Copy the old generations' files; their manifest, open for the new corpus's sources."""
    manifest = read_manifest(old)
    for name in old.files():
        if name != MANIFEST:
            new.write_bytes(name, old.read_bytes(name))
    return replace(manifest, sources=tuple(dict.fromkeys([*manifest.sources, *empty.sources])))


def _write_shards(
    task: Mapping[str, str],
    *,
    output: Storage,
    corpus: Storage,
    manifests: Mapping[str, ShardManifest],
    fraction: float,
) -> dict[str, Any]:
    """Tokenise one part of the corpus into a shard of each split; return their infos."""
    done = f"{WORK}/{task['name']}.json"
    if output.exists(done):
        return output.read_json(done)
    known: set[int] = set()
    if manifests["train"].generations:
        known = {int(key) for split in SPLITS for key in known_documents(output / split, manifests[split])}
    chosen: dict[str, list[TextDocument]] = {split: [] for split in SPLITS}
    with corpus.open(task["part"]) as file:
        for row in pq.read_table(file, columns=["id", "text", "source"]).to_pylist():
            split = "validation" if unit_hash(row["id"], "split") < fraction else "train"
            if not known or document_key(row["id"]) not in known:
                chosen[split].append(TextDocument(**row))
    encoder = load_encoder((output / "tokenizer").local())
    answer = {
        split: asdict(write_shard(output / split, task["name"], documents, encoder, manifests[split]))
        for split, documents in chosen.items()
    }
    output.write_json(done, answer)
    return answer


def _counts(manifest: ShardManifest) -> dict[str, int | float]:
    return {
        "documents": manifest.num_documents,
        "tokens": manifest.num_targets,
        "bytes": manifest.num_bytes,
        "bytes_per_token": manifest.num_bytes / manifest.num_targets,
        "shards": len(manifest.shards),
        "generations": len(manifest.generations),
    }
