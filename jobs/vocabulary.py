"""vocabulary: learn the tokenizer from the corpus and measure it.

    documents/part-* ─ count ─▶ work/words/<part> ─ merge ─▶ work/merged/<bucket> ─ learn ─▶ tokenizer/ ─ measure
                     (a task for each part)        (a task for each bucket)      (driver)     (a task for each part)

Only the words' counts come together, and sums have no order, so the tokenizer is the same for any parts and workers.
"""

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from cluster.machine import tasks_at_once
from cluster.placement import TasksExecution
from cluster.progress import working
from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.chunk_files import read_table, write_tables
from data.document import unit_hash
from data.tokens.learning import count_words, learn_tokenizer
from data.tokens.tokenizer import fingerprint, load_encoder, save_tokenizer
from data.tokens.tokenizer_recipe import UNKNOWN, TokenizerRecipe
from jobs.frame.artifact import WORK, Artifact
from jobs.frame.fields import PREVIOUS, input_artifact
from jobs.frame.kinds import TokenizerSizes
from jobs.frame.stage import Context, Needs, Stage
from jobs.frame.work import Processes, Work
from jobs.report.tokens import report_tokenizer

REPORT_BYTES = 4 << 20  # how much text the measures at the end are taken on
_BUCKETS = 16  # files that a part's words are spread over, by hash, so that tasks can merge them side by side
_WORD_SCHEMA = pa.schema([("word", pa.large_string()), ("count", pa.int64())])
_COUNT_S_PER_MB = 1.1  # of Python, on the reference processor of `jobs.frame.forecast`
_LEARN_S_PER_TOKEN = 0.003
_DEFAULTS = TokenizerRecipe()


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """`vocabulary.yaml`."""

    corpus: str = input_artifact("corpus", default=PREVIOUS)
    size: int = 32768
    """Tokens, special ones included."""
    kind: Literal["bpe", "wordpiece", "unigram"] = _DEFAULTS.kind
    """bpe: on bytes, so that any text comes back. wordpiece: BERT's; it forgets white space. unigram: as sentencepiece
    learns it, on characters."""
    split_digits: bool = _DEFAULTS.split_digits
    """Digits stay single tokens, so that numbers of any length are spelt alike."""
    normalization: Literal["none", "NFC", "NFKC"] = _DEFAULTS.normalization
    lowercase: bool = _DEFAULTS.lowercase
    """For wordpiece."""
    byte_fallback: bool = _DEFAULTS.byte_fallback
    """For unigram: characters without a token are spelt in bytes instead of being unknown."""
    character_coverage: float = _DEFAULTS.character_coverage
    """For wordpiece and unigram: part of the text whose characters, the most frequent ones, have tokens."""
    sample_mib: int = 256
    """About how much text to learn from, chosen by a hash of the documents' ids."""
    held_out_fraction: float = 0.1
    """Part of the documents never learnt from, at the end of that hash from which `shards` takes its validation; at
    least the validation_fraction of the shards, so that no document that they hold out is seen."""
    execution: TasksExecution = field(default_factory=TasksExecution)


def check(config: VocabularyConfig) -> None:
    recipe = recipe_of(config)
    recipe.check()
    least = recipe.least_size
    if not least < config.size <= 2**20:
        what = "bytes and special tokens" if least > 256 else "special tokens"
        raise ValueError(f"size: {config.size} must be above {least} ({what}) and at most {2**20}")
    if config.sample_mib < 1:
        raise ValueError(f"sample_mib: {config.sample_mib} must be at least 1")
    if not 0 <= config.held_out_fraction < 1:
        raise ValueError(
            f"held_out_fraction: {config.held_out_fraction} must be at least 0 and below 1; take the "
            "validation_fraction of the shards or more"
        )


def recipe_of(config: VocabularyConfig) -> TokenizerRecipe:
    """The part of the config that says how text becomes tokens."""
    return TokenizerRecipe(
        kind=config.kind,
        split_digits=config.split_digits,
        normalization=config.normalization,
        lowercase=config.lowercase,
        byte_fallback=config.byte_fallback,
        character_coverage=config.character_coverage,
    )


def run(config: VocabularyConfig, context: Context) -> dict[str, Any]:
    """Write tokenizer/; return its size, fingerprint and measures."""
    corpus, output, workers = context.inputs["corpus"], context.output, config.execution.workers
    total = corpus.summary["bytes"]
    first = max(config.held_out_fraction, 1 - config.sample_mib * 2**20 / total)
    words, counts, taken = _count(corpus, output, recipe_of(config), first, workers)
    with working(f"learning {config.size:,} tokens from {len(words):,} words"):
        tokenizer = learn_tokenizer(words, counts, size=config.size, recipe=recipe_of(config))
    found = tokenizer.get_vocab_size()
    if found < config.size:
        raise ValueError(
            f"size: {taken['sampled_bytes']:,} bytes of text give only {found:,} tokens, not {config.size:,}; "
            "lower size, give more text, or hold less out (held_out_fraction)"
        )
    with tempfile.TemporaryDirectory() as temporary:
        save_tokenizer(tokenizer, Path(temporary))
        output.put_folder(Path(temporary), "tokenizer")
        identity = fingerprint(Path(temporary))
    measures = _measure(corpus, output, tokenizer, identity, min(1.0, REPORT_BYTES / total), workers)
    _remove_work(output)
    numbers = {name: value for name, value in measures.items() if not isinstance(value, dict)}
    context.tracker.log(0, {f"vocabulary/{name}": value for name, value in (taken | numbers).items()})
    return {"size": config.size, "kind": config.kind, "fingerprint": identity, **taken, **measures}


def sizes(config: VocabularyConfig, needs: Needs) -> TokenizerSizes:
    """The sizes that the tokenizer will have."""
    corpus = needs.get("corpus")
    return TokenizerSizes(
        vocab_size=config.size,
        corpus_id=corpus.id if corpus else None,
        held_out_fraction=config.held_out_fraction,
    )


def work(config: VocabularyConfig, needs: Needs) -> Work:
    """What the forecast is made of: counting words, and learning from their counts."""
    from jobs.frame.sizes import corpus_sizes  # late: it imports torch, which the tasks need not load

    corpus = corpus_sizes(needs["corpus"])
    num_mb = min(corpus.num_bytes, config.sample_mib << 20) / 1e6
    workers = tasks_at_once(config.execution.workers, corpus.num_parts)
    return Work(
        processes=[Processes(kind="task", number=workers)],
        python_s=num_mb * _COUNT_S_PER_MB + config.size * _LEARN_S_PER_TOKEN,
        python_processes=workers,
        disk_gib=config.size * 100 / 2**30,
    )


STAGE = Stage(
    name="vocabulary",
    version=1,
    kind="tokenizer",
    config=VocabularyConfig,
    run=run,
    sizes=sizes,
    check=check,
    work=work,
    report=report_tokenizer,
)


def _remove_work(output: Storage) -> None:
    """Remove the tasks' answers, then the files that they speak of: an answer whose file is gone would be trusted."""
    for phase in ("count", "merge", "measure"):
        output.remove(f"{WORK}/{phase}")
    output.remove(WORK)


def _part_tasks(corpus: Artifact, **more: Any) -> list[dict[str, Any]]:
    """A task for each part. It names the corpus's bytes, so that an answer about another corpus is never taken."""
    parts = corpus.storage.glob("documents/*.parquet")
    return [{"corpus": corpus.digest, "part": part, **more} for part in parts]


# Counting: words of each part, in files of one slice per bucket; then the sums of each bucket.


def _count(
    corpus: Artifact, output: Storage, recipe: TokenizerRecipe, first: float, workers: int | None
) -> tuple[list[str], list[int], dict[str, int]]:
    """Distinct words of the sample, their counts, and the size of the sample."""
    count_task = partial(_count_part, corpus=corpus.storage, output=output, recipe=recipe)
    tasks = _part_tasks(corpus, first=first)
    counted = run_tasks(
        count_task,
        tasks,
        returns=dict[str, Any],
        workers=workers,
        label="vocabulary: count words",
        answers=output / WORK / "count",
    )
    files = [answer["words"] for answer in counted]
    merge_tasks = [{"corpus": corpus.digest, "bucket": bucket, "files": files} for bucket in range(_BUCKETS)]
    merged = run_tasks(
        partial(_merge_bucket, output=output),
        merge_tasks,
        returns=dict[str, Any],
        workers=workers,
        label="vocabulary: add counts",
        answers=output / WORK / "merge",
    )
    table = read_table(output, [answer["words"] for answer in merged], 0, _WORD_SCHEMA)
    taken = {name: sum(answer[name] for answer in counted) for name in ("sampled_documents", "sampled_bytes")}
    return table["word"].to_pylist(), table["count"].to_pylist(), taken


def _count_part(
    task: Mapping[str, Any], *, corpus: Storage, output: Storage, recipe: TokenizerRecipe
) -> dict[str, Any]:
    """Count the words of a part's documents whose split hash, in [0, 1), is at least `first`."""
    taken = {"sampled_documents": 0, "sampled_bytes": 0}

    def texts() -> Iterator[str]:
        for row in _rows(corpus, task["part"], ["id", "text"], lambda place: place >= task["first"]):
            taken["sampled_documents"] += 1
            taken["sampled_bytes"] += len(row["text"].encode())
            yield row["text"]

    buckets: list[list[tuple[str, int]]] = [[] for _ in range(_BUCKETS)]
    for word, count in sorted(count_words(texts(), recipe).items()):
        buckets[zlib.crc32(word.encode()) % _BUCKETS].append((word, count))
    name = f"{WORK}/words/{Path(task['part']).stem}.arrow"
    write_tables(output, name, [_word_table(bucket) for bucket in buckets])
    return {"words": name, **taken}


def _merge_bucket(task: Mapping[str, Any], *, output: Storage) -> dict[str, Any]:
    """Add the counts of one bucket over all parts; the words come sorted."""
    table = read_table(output, task["files"], task["bucket"], _WORD_SCHEMA)
    sums = table.group_by("word").aggregate([("count", "sum")]).sort_by("word")
    merged = pa.table([sums["word"], sums["count_sum"]], schema=_WORD_SCHEMA)
    name = f"{WORK}/merged/{task['bucket']:05d}.arrow"
    write_tables(output, name, [merged])
    return {"words": name, "distinct": merged.num_rows}


def _word_table(rows: Sequence[tuple[str, int]]) -> pa.Table:
    columns = [[word for word, _ in rows], [count for _, count in rows]]
    return pa.table(columns, schema=_WORD_SCHEMA)


def _rows(
    corpus: Storage, part: str, columns: list[str], is_taken: Callable[[float], bool]
) -> Iterator[dict[str, Any]]:
    """The rows of a part whose split hash, in [0, 1), is taken; nothing but the id of any other leaves Arrow."""
    with corpus.open(part) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=columns, batch_size=1024):
            mask = [is_taken(unit_hash(own, "split")) for own in batch.column("id").to_pylist()]
            yield from batch.filter(pa.array(mask, pa.bool_())).to_pylist()


# Measuring, on a sample of the documents.


def _measure(
    corpus: Artifact, output: Storage, tokenizer: Tokenizer, identity: str, share: float, workers: int | None
) -> dict[str, Any]:
    """Bytes per token and tokens per word (over all, by source, by language), tokens that never occur, unknown ones,
    and texts that do not come back."""
    task = partial(_measure_part, corpus=corpus.storage, folder=output / "tokenizer")
    answers = run_tasks(
        task,
        _part_tasks(corpus, tokenizer=identity, share=share),
        returns=dict[str, Any],
        workers=workers,
        label="vocabulary: measure",
        answers=output / WORK / "measure",
    )
    used = np.zeros(tokenizer.get_vocab_size(), dtype=np.bool_)
    for answer in answers:
        used |= _unpacked(answer["used"], len(used))
    sums = {by: _summed([answer[by] for answer in answers]) for by in ("source", "language")}
    everything = [sum(column) for column in zip(*sums["source"].values(), strict=True)] or [0, 0, 0]
    return {
        **_rates(*everything),
        **{
            f"{rate}_by_{by}": {name: _rates(*sums[by][name])[rate] for name in sorted(sums[by])}
            for by in ("source", "language")
            for rate in ("bytes_per_token", "fertility")
        },
        "measured_documents": sum(answer["documents"] for answer in answers),
        "unused_tokens": int(len(used) - used.sum()),
        "unknown_tokens": sum(answer["unknown"] for answer in answers),
        "round_trip_failures": sum(answer["failures"] for answer in answers),
    }


def _measure_part(task: Mapping[str, Any], *, corpus: Storage, folder: Storage) -> dict[str, Any]:
    """Sums over the documents of a part whose split hash is below `share`: [bytes, tokens, words] by source and by
    language (of documents whose metadata name one), and the tokens that occur, as hexadecimal bits."""
    encoder = load_encoder(folder.local())
    unknown = encoder.token_to_id(UNKNOWN)
    used = np.zeros(encoder.get_vocab_size(), dtype=np.bool_)
    sums: dict[str, list[tuple[str, list[int]]]] = {"source": [], "language": []}
    documents = failures = unknowns = 0
    columns = ["id", "text", "source", "metadata"]
    for row in _rows(corpus, task["part"], columns, lambda place: place < task["share"]):
        ids = encoder.encode(row["text"], add_special_tokens=False).ids
        sizes = [len(row["text"].encode()), len(ids), len(row["text"].split())]
        sums["source"].append((row["source"], sizes))
        if language := json.loads(row["metadata"]).get("language"):
            sums["language"].append((language, sizes))
        documents += 1
        failures += not _comes_back(encoder, row["text"], ids)
        unknowns += 0 if unknown is None else ids.count(unknown)
        used[ids] = True
    groups = {by: _summed([{name: sizes} for name, sizes in found]) for by, found in sums.items()}
    bits = np.packbits(used).tobytes().hex()
    return {"documents": documents, "failures": failures, "unknown": unknowns, "used": bits, **groups}


def _comes_back(encoder: Tokenizer, text: str, ids: list[int]) -> bool:
    """Whether the tokens spell the text, in the form that the tokenizer's normalisation gives it; for wordpiece apart
    from white space, which it forgets."""
    meant = encoder.normalizer.normalize_str(text) if encoder.normalizer else text
    found = encoder.decode(ids, skip_special_tokens=False)
    if isinstance(encoder.model, WordPiece):
        return "".join(found.split()) == "".join(meant.split())
    return found == meant


def _unpacked(bits: str, length: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8), count=length).astype(np.bool_)


def _summed(parts: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    """Sizes by name, added up."""
    total: dict[str, list[int]] = {}
    for part in parts:
        for name, sizes in part.items():
            total[name] = [a + b for a, b in zip(total.get(name, [0, 0, 0]), sizes, strict=True)]
    return total


def _rates(num_bytes: int, num_tokens: int, num_words: int) -> dict[str, float]:
    """Fertility is tokens per word between white space."""
    return {"bytes_per_token": num_bytes / max(1, num_tokens), "fertility": num_tokens / max(1, num_words)}
