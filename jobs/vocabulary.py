"""vocabulary: learn the tokenizer from the corpus and measure it.

    documents/part-* ─ count ─▶ work/words/<part> ─ merge ─▶ work/merged/<bucket> ─ learn ─▶ tokenizer/ ─ measure
                     (a task for each part)        (a task for each bucket)      (driver)     (a task for each part)

Only the counts of words are merged, and sums have no order, so the tokenizer is the same for any parts and workers.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from cluster.machine import num_parallel_tasks
from cluster.placement import TasksExecution
from cluster.progress import working
from cluster.storage import Storage
from data.corpus.accounting import CorpusSummary
from data.tokens.documents import CorpusText
from data.tokens.measures import TokenizerMeasures, VocabularySummary, measure_tokenizer
from data.tokens.tokenizer import fingerprint, save_tokenizer
from data.tokens.tokenizer_recipe import TokenizerRecipe
from data.tokens.tokenizer_training import train_on_word_counts
from data.tokens.word_counts import WordCounts, count_sample
from jobs.frame.artifact import WORK
from jobs.frame.fields import PREVIOUS, input_artifact
from jobs.frame.kinds import TokenizerSizes
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.workload import Processes, Workload
from jobs.report.tokens import report_tokenizer

MEASURED_BYTES = 4 << 20  # about how much text the measures are taken on
_COUNT_S_PER_MB = 1.1  # of Python, on the reference processor of `jobs.frame.forecast`
_LEARN_S_PER_TOKEN = 0.003
_DEFAULTS = TokenizerRecipe()


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """`vocabulary.yaml`."""

    corpus: str = input_artifact("corpus", default=PREVIOUS)
    """The corpus whose documents the tokenizer is learned from."""
    size: int = 32768
    """Tokens, special ones included."""
    kind: Literal["bpe", "wordpiece", "unigram"] = _DEFAULTS.kind
    """bpe: on bytes, so that any text comes back. wordpiece: BERT's; it forgets white space. unigram: as sentencepiece
    learns it, on characters."""
    split_digits: bool = _DEFAULTS.split_digits
    """Digits stay single tokens, so that numbers of any length are spelled alike."""
    normalization: Literal["none", "NFC", "NFKC"] = _DEFAULTS.normalization
    """Unicode normalization of every text before it is tokenized."""
    lowercase: bool = _DEFAULTS.lowercase
    """For wordpiece."""
    byte_fallback: bool = _DEFAULTS.byte_fallback
    """For unigram: characters without a token are spelled in bytes instead of being unknown."""
    character_coverage: float = _DEFAULTS.character_coverage
    """For wordpiece and unigram: part of the text whose characters, the most frequent ones, have tokens."""
    sample_mib: int = 256
    """About how much text to learn from, chosen by a hash of the documents' ids."""
    held_out_fraction: float = 0.1
    """Share of the documents that are not learned from: those that `shards` would take for validation. At least the
    validation_fraction of the shards, so that no document is learned from that they hold out."""
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


def run(config: VocabularyConfig, context: Context) -> VocabularySummary:
    """Write tokenizer/; return its size, fingerprint and measures."""
    artifact, output, workers = context.inputs["corpus"], context.output, config.execution.workers
    corpus = CorpusText(artifact.storage, artifact.digest)
    num_bytes = artifact.read_summary(CorpusSummary).bytes
    first = max(config.held_out_fraction, 1 - config.sample_mib * 2**20 / num_bytes)
    sample = count_sample(corpus, output / WORK, recipe_of(config), first=first, workers=workers)
    with working(f"learning {config.size:,} tokens from {len(sample.words):,} words"):
        tokenizer = train_on_word_counts(sample.words, sample.counts, size=config.size, recipe=recipe_of(config))
    _check_size(tokenizer, config, sample)
    with tempfile.TemporaryDirectory() as temporary:
        save_tokenizer(tokenizer, Path(temporary))
        output.put_folder(Path(temporary), "tokenizer")
        identity = fingerprint(Path(temporary))
    share = min(1.0, MEASURED_BYTES / num_bytes)
    folder = output / "tokenizer"
    measures = measure_tokenizer(corpus, output / WORK, folder, tokenizer=identity, share=share, workers=workers)
    _remove_work(output)
    summary = _summarize(config, identity, sample, measures)
    context.tracker.log(0, metrics(summary))
    return summary


def _check_size(tokenizer: Tokenizer, config: VocabularyConfig, sample: WordCounts) -> None:
    """Raise ValueError when the sample gave fewer tokens than asked for."""
    if (size := tokenizer.get_vocab_size()) < config.size:
        raise ValueError(
            f"size: {sample.sampled_bytes:,} bytes of text give only {size:,} tokens, not {config.size:,}; "
            "lower size, give more text, or hold less out (held_out_fraction)"
        )


def _remove_work(output: Storage) -> None:
    """Remove the tasks' answers, then the files that they describe: an answer whose file is gone would be trusted."""
    for name in ("count", "merge", "measure", ""):
        (output / WORK).remove(name)


def _summarize(
    config: VocabularyConfig, identity: str, sample: WordCounts, measures: TokenizerMeasures
) -> VocabularySummary:
    return VocabularySummary(
        size=config.size,
        kind=config.kind,
        fingerprint=identity,
        sampled_documents=sample.sampled_documents,
        sampled_bytes=sample.sampled_bytes,
        bytes_per_token=measures.total.bytes_per_token,
        fertility=measures.total.fertility,
        bytes_per_token_by_source={name: sizes.bytes_per_token for name, sizes in measures.by_source.items()},
        fertility_by_source={name: sizes.fertility for name, sizes in measures.by_source.items()},
        bytes_per_token_by_language={name: sizes.bytes_per_token for name, sizes in measures.by_language.items()},
        fertility_by_language={name: sizes.fertility for name, sizes in measures.by_language.items()},
        measured_documents=measures.documents,
        unused_tokens=measures.unused_tokens,
        unknown_tokens=measures.unknown_tokens,
        round_trip_failures=measures.round_trip_failures,
    )


def metrics(summary: VocabularySummary) -> dict[str, float]:
    """What the metrics log says of a vocabulary."""
    return {
        "vocabulary/sampled_documents": summary.sampled_documents,
        "vocabulary/sampled_bytes": summary.sampled_bytes,
        "vocabulary/bytes_per_token": summary.bytes_per_token,
        "vocabulary/fertility": summary.fertility,
        "vocabulary/measured_documents": summary.measured_documents,
        "vocabulary/unused_tokens": summary.unused_tokens,
        "vocabulary/unknown_tokens": summary.unknown_tokens,
        "vocabulary/round_trip_failures": summary.round_trip_failures,
    }


def sizes(config: VocabularyConfig, planned: PlannedInputs) -> TokenizerSizes:
    """The sizes that the tokenizer will have."""
    corpus = planned.get("corpus")
    return TokenizerSizes(
        vocab_size=config.size,
        corpus_id=corpus.id if corpus else None,
        held_out_fraction=config.held_out_fraction,
    )


def workload(config: VocabularyConfig, planned: PlannedInputs) -> Workload:
    """What the forecast is made of: counting words, and learning from their counts."""
    from jobs.frame.sizes import corpus_sizes  # late: it imports torch, which the tasks need not load

    corpus = corpus_sizes(planned["corpus"])
    num_mb = min(corpus.num_bytes, config.sample_mib << 20) / 1e6
    workers = num_parallel_tasks(config.execution.workers, corpus.num_parts)
    return Workload(
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
    output_sizes=sizes,
    check=check,
    workload=workload,
    report=report_tokenizer,
)
