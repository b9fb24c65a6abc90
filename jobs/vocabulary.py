"""vocabulary: learn the tokenizer from the corpus and measure it."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.storage import Storage
from data.document import unit_hash
from data.tokenizer import MIN_SIZE, fingerprint, load_encoder, save_tokenizer, train_tokenizer
from jobs.job import Context, Stage, input_artifact

REPORT_BYTES = 4 << 20  # how much text the measures at the end are taken on


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """`vocabulary.yaml`."""

    corpus: str = input_artifact("corpus")
    size: int = 32768
    """Tokens, special ones included."""
    sample_mib: int = 256
    """About how much text to learn from, chosen by a hash of the documents' ids."""
    held_out_fraction: float = 0.1
    """Part of the documents never learnt from, at the end of that hash from which `shards` takes its validation; at
    least the validation_fraction of the shards, so that no document that they hold out is seen."""


def check(config: VocabularyConfig) -> None:
    if not MIN_SIZE < config.size <= 2**20:
        raise ValueError(f"size: {config.size} must be above {MIN_SIZE} (bytes and special tokens) and at most {2**20}")
    if config.sample_mib < 1:
        raise ValueError(f"sample_mib: {config.sample_mib} must be at least 1")
    if not 0 <= config.held_out_fraction < 1:
        raise ValueError(
            f"held_out_fraction: {config.held_out_fraction} must be at least 0 and below 1; take the "
            "validation_fraction of the shards or more"
        )


def run(config: VocabularyConfig, context: Context) -> dict[str, Any]:
    """Write tokenizer/; return its size, fingerprint and measures."""
    corpus = context.inputs["corpus"]
    total = corpus.summary["bytes"]
    taken = {"sampled_documents": 0, "sampled_bytes": 0}
    first = max(config.held_out_fraction, 1 - config.sample_mib * 2**20 / total)
    tokenizer = train_tokenizer(_sample(corpus.storage, first, taken), size=config.size)
    found = tokenizer.get_vocab_size()
    if found < config.size:
        raise ValueError(
            f"size: {taken['sampled_bytes']:,} bytes of text give only {found:,} tokens, not {config.size:,}; "
            "lower size, give more text, or hold less out (held_out_fraction)"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_tokenizer(tokenizer, folder)
        context.output.put_folder(folder, "tokenizer")
        measures = _measure(corpus.storage, folder, min(1.0, REPORT_BYTES / total))
        identity = fingerprint(folder)
    numbers = {name: value for name, value in measures.items() if not isinstance(value, dict)}
    context.tracker.log(0, {f"vocabulary/{name}": value for name, value in (taken | numbers).items()})
    return {"size": config.size, "fingerprint": identity, **taken, **measures}


STAGE = Stage(name="vocabulary", version=1, config=VocabularyConfig, run=run, check=check)


def read_documents(corpus: Storage) -> Iterator[tuple[str, str, str]]:
    """(id, text, source) of every document of a corpus artifact, in the order of its parts."""
    for name in corpus.glob("documents/*.parquet"):
        with corpus.open(name) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=["id", "text", "source"]):
                yield from zip(*(batch.column(column).to_pylist() for column in ("id", "text", "source")), strict=True)


def _sample(corpus: Storage, first: float, taken: dict[str, int]) -> Iterator[str]:
    """Texts of the documents whose split hash, in [0, 1), is at least `first`; `taken` counts them."""
    for document, text, _ in read_documents(corpus):
        if unit_hash(document, "split") >= first:
            taken["sampled_documents"] += 1
            taken["sampled_bytes"] += len(text.encode())
            yield text


def _measure(corpus: Storage, folder: Path, share: float) -> dict[str, Any]:
    """Bytes per token over all and by source, tokens that never occur, and texts that do not come back, on a sample."""
    encoder = load_encoder(folder)
    num_bytes: dict[str, int] = {}
    num_tokens: dict[str, int] = {}
    seen: set[int] = set()
    failures = documents = 0
    for document, text, source in read_documents(corpus):
        if unit_hash(document, "split") >= share:
            continue
        ids = encoder.encode(text, add_special_tokens=False).ids
        documents += 1
        failures += encoder.decode(ids, skip_special_tokens=False) != text
        seen.update(ids)
        num_bytes[source] = num_bytes.get(source, 0) + len(text.encode())
        num_tokens[source] = num_tokens.get(source, 0) + len(ids)
    return {
        "bytes_per_token": sum(num_bytes.values()) / max(1, sum(num_tokens.values())),
        "bytes_per_token_by_source": {
            source: num_bytes[source] / max(1, num_tokens[source]) for source in sorted(num_bytes)
        },
        "measured_documents": documents,
        "unused_tokens": encoder.get_vocab_size() - len(seen),
        "round_trip_failures": failures,
    }
