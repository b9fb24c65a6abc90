"""vocabulary: trains a tokenizer on the corpus and measures it.

    documents/part-* ─ count ─▶ work/words/<part> ─ merge ─▶ work/merged/<bucket> ─ learn ─▶ tokenizer/ ─ measure
                     (a task for each part)        (a task for each bucket)      (driver)     (a task for each part)

A part is an output file of the corpus. A bucket holds the words whose hashes are equal modulo the number of buckets
(`data/tokens/word_counts.py`).
Only the counts of words are merged, and sums do not depend on the order of their terms. So the tokenizer is the same
for any number of parts and workers.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from tokenizers import Tokenizer

from cluster.machine import num_parallel_tasks
from cluster.paths import list_files
from cluster.placement import TasksExecution
from cluster.plain import to_plain
from cluster.progress import show_activity
from cluster.storage import Storage
from data.cleaning.extract_html import ExtractHTML, extract_html
from data.corpus.accounting import CorpusSummary
from data.sources.compression import open_file
from data.tokens.certificate import Certificate, LanguageLimit, find_breaches
from data.tokens.documents import CorpusText
from data.tokens.measures import (
    TextMeasures,
    TokenizerMeasures,
    TokenizerMeter,
    VocabularySummary,
    measure_tokenizer,
    sum_by_name,
)
from data.tokens.pre_tokenizer import PreTokenizerName
from data.tokens.tokenizer import fingerprint, save_tokenizer
from data.tokens.tokenizer_recipe import TokenizerRecipe
from data.tokens.tokenizer_training import train_on_word_counts
from data.tokens.word_counts import WordCounts, count_sample
from jobs.frame.artifact import WORK
from jobs.frame.fields import PREVIOUS_STAGE, input_artifact, source_files
from jobs.frame.kinds import TokenizerSizes
from jobs.frame.sizes import corpus_sizes
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.workload import Processes, Workload
from jobs.report.tokens import CERTIFICATE, report_tokenizer

_MAX_NAMED_BREACHES = 20  # breaches of limits that an error names; certificate.json has all measures
MEASURED_BYTES = 4 << 20  # approximate size of the text on which the tokenizer is measured
_COUNT_S_PER_MB = 1.1  # seconds to count the words of 1 MB on the reference processor (`jobs.frame.cost_model`)
_LEARN_S_PER_TOKEN = 0.003  # seconds of training for each token of the vocabulary, on the same processor
_DEFAULTS = TokenizerRecipe()

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CertificateConfig:
    """The language certificate: certificate.json, and a table in the report."""

    texts: list[str] = source_files([])
    """Text or HTML files in UTF-8, one per language, such as the Universal Declaration of Human Rights. A file is named
    after its language (`hin.html`). Several files of one name are measured together."""
    limits: list[LanguageLimit] = field(default_factory=list)
    """What the tokenizer may need at most. If it needs more for a language, the stage fails. Its folder keeps the
    tokenizer and the certificate."""


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """`vocabulary.yaml`."""

    corpus: str = input_artifact("corpus", default=PREVIOUS_STAGE)
    """Corpus on whose documents the tokenizer is trained."""
    size: int = 32768
    """Number of tokens, special tokens included."""
    kind: Literal["bpe", "wordpiece", "unigram"] = _DEFAULTS.kind
    """bpe: byte-level BPE, with which decoding gives back exactly the original text, after `normalization`. wordpiece:
    BERT's algorithm, which does not keep white space. unigram: sentencepiece's Unigram on characters."""
    pre_tokenizer: PreTokenizerName = _DEFAULTS.pre_tokenizer
    """For bpe: rule that splits a text into words, whose borders no token crosses. words: combining marks, such as the
    vowel signs of Indic and Southeast Asian scripts, belong to words. gpt2, llama3: the published rules of these
    models, which cut a word at every mark, so that these scripts need up to twice as many tokens."""
    split_digits: bool = _DEFAULTS.split_digits
    """Whether each digit is a token of its own. If not, bpe keeps the digits of a number together, and with
    `pre_tokenizer: llama3` up to three of them."""
    normalization: Literal["none", "NFC", "NFKC"] = _DEFAULTS.normalization
    """Unicode normalization that is applied to every text before it is tokenized."""
    lowercase: bool = _DEFAULTS.lowercase
    """For wordpiece: whether texts are converted to lower case."""
    byte_fallback: bool = _DEFAULTS.byte_fallback
    """For unigram: whether characters without a token are encoded as bytes instead of as unknown."""
    character_coverage: float = _DEFAULTS.character_coverage
    """For wordpiece and unigram: fraction of the text's characters that must have a token. The rarest characters,
    beyond this fraction, have none."""
    sample_mib: int = 256
    """Approximate MiB of text to train on. Documents are chosen by a hash of their ids."""
    held_out_fraction: float = 0.1
    """Fraction of the documents to keep out of the training of the tokenizer. They include the validation documents of
    `shards` if the fraction is at least the validation_fraction there, which is required for shards of the same
    corpus."""
    certificate: CertificateConfig = field(default_factory=CertificateConfig)
    """Languages that the tokenizer is measured on, beside those of the corpus, and what it may need for them."""
    execution: TasksExecution = field(default_factory=TasksExecution)


def check(config: VocabularyConfig) -> None:
    """Raises ValueError for a field out of its range, and for a field that is set although `kind` does not use it."""
    recipe = recipe_of(config)
    recipe.check()
    least = recipe.min_size
    if not least < config.size <= 2**20:
        what = "bytes and special tokens" if least > 256 else "special tokens"
        raise ValueError(f"size: {config.size} must be above {least} ({what}) and at most {2**20}")
    if config.sample_mib < 1:
        raise ValueError(f"sample_mib: {config.sample_mib} must be at least 1")
    if not 0 <= config.held_out_fraction < 1:
        raise ValueError(
            f"held_out_fraction: {config.held_out_fraction} must be at least 0 and below 1; use the "
            "validation_fraction of the shards or more"
        )
    for number, limit in enumerate(config.certificate.limits):
        limit.check(f"certificate.limits[{number}]")


def check_sources(config: VocabularyConfig) -> None:
    """Raises ValueError if a file in `certificate.texts` does not exist or is not a text in UTF-8."""
    for _ in _read_files(config):
        pass


def _read_files(config: VocabularyConfig) -> Iterator[tuple[PurePosixPath, str]]:
    """Yield (path, content) of every file in `certificate.texts`. Raises ValueError for content that is not UTF-8."""
    for url in list_files(config.certificate.texts):
        path = PurePosixPath(url.partition("::")[0])
        with open_file(url) as file:
            content: bytes = file.read()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"certificate.texts: {url} is not UTF-8 (byte {error.start:,}); convert it, or leave it out"
            ) from error
        yield path, text


def _read_texts(config: VocabularyConfig) -> Iterator[tuple[str, str]]:
    """Yield (language, text) of every file in `certificate.texts`. Of HTML, the text is that of the whole page."""
    for path, text in _read_files(config):
        if path.suffix.lower() in (".html", ".htm", ".xhtml"):
            (text,) = extract_html([text], ExtractHTML(main_content=False)).texts
        yield path.stem, text


def recipe_of(config: VocabularyConfig) -> TokenizerRecipe:
    """Return the settings of the config that determine the tokenizer, except the size of its vocabulary."""
    return TokenizerRecipe(
        kind=config.kind,
        pre_tokenizer=config.pre_tokenizer,
        split_digits=config.split_digits,
        normalization=config.normalization,
        lowercase=config.lowercase,
        byte_fallback=config.byte_fallback,
        character_coverage=config.character_coverage,
    )


def run(config: VocabularyConfig, context: Context) -> VocabularySummary:
    """Train the tokenizer and write tokenizer/. Returns its size, fingerprint and measures."""
    artifact, output, workers = context.inputs["corpus"], context.output, config.execution.workers
    corpus = CorpusText(artifact.storage, artifact.digest)
    num_bytes = artifact.read_summary(CorpusSummary).bytes
    # The tokenizer is trained on the documents whose `split_position` is at least `first`. This leaves out the held-out
    # documents, and more documents if the rest of the corpus is larger than sample_mib.
    first = max(config.held_out_fraction, 1 - config.sample_mib * 2**20 / num_bytes)
    sample = count_sample(
        corpus, output / WORK, recipe_of(config), first=first, num_bytes=round(num_bytes * (1 - first)), workers=workers
    )
    _warn_if_sampled(sample)
    with show_activity(f"training a tokenizer of {config.size:,} tokens on {len(sample.words):,} words"):
        tokenizer = train_on_word_counts(sample.words, sample.counts, size=config.size, recipe=recipe_of(config))
    _check_size(tokenizer, config, sample)
    with tempfile.TemporaryDirectory() as temporary:
        save_tokenizer(tokenizer, Path(temporary))
        output.put_folder(Path(temporary), "tokenizer")
        identity = fingerprint(Path(temporary))
    share = min(1.0, MEASURED_BYTES / num_bytes)
    folder = output / "tokenizer"
    measures = measure_tokenizer(corpus, output / WORK, folder, tokenizer=identity, share=share, workers=workers)
    certificate = Certificate(measures.by_language, _measure_texts(config, folder))
    output.write_json(CERTIFICATE, to_plain(certificate))
    _check_limits(config, certificate, output)
    _remove_work(output)
    summary = _summarize(config, identity, sample, measures, certificate)
    context.tracker.log(0, metrics(summary))
    return summary


def _warn_if_sampled(sample: WordCounts) -> None:
    """Log a warning if the tokenizer is trained on a sample of the words."""
    if sample.threshold > 1:
        log.warning(
            "vocabulary: the tokenizer is trained on %s of %s distinct words, because more would not fit into memory; "
            "words that occur less than %d times are sampled, in such a way that the expected counts stay the same",
            f"{len(sample.words):,}",
            f"{sample.distinct:,}",
            sample.threshold,
        )


def _check_size(tokenizer: Tokenizer, config: VocabularyConfig, sample: WordCounts) -> None:
    """Raises ValueError when the sample was too small for the configured number of tokens."""
    if (size := tokenizer.get_vocab_size()) < config.size:
        raise ValueError(
            f"size: {sample.sampled_bytes:,} bytes of text give only {size:,} tokens, not {config.size:,}; "
            "lower size, give more text, or hold less out (held_out_fraction)"
        )


def _measure_texts(config: VocabularyConfig, folder: Storage) -> dict[str, TextMeasures]:
    """Return the measures of the tokenizer in `folder` on the texts of the config, by language."""
    if not config.certificate.texts:
        return {}
    meter = TokenizerMeter(folder.local())
    with show_activity("measuring the tokenizer on the texts of certificate.texts"):
        return sum_by_name({language: meter.measure(text)[1]} for language, text in _read_texts(config))


def _check_limits(config: VocabularyConfig, certificate: Certificate, output: Storage) -> None:
    """Raises ValueError if the tokenizer needs more for a language than a limit allows."""
    if breaches := find_breaches(certificate, config.certificate.limits):
        named = "; ".join(breaches[:_MAX_NAMED_BREACHES])
        others = f" (and {len(breaches) - _MAX_NAMED_BREACHES} more)" if len(breaches) > _MAX_NAMED_BREACHES else ""
        raise ValueError(
            f"certificate: {named}{others}; add text in these languages to the corpus, raise size, or change the "
            f"limit. The tokenizer is kept in {(output / 'tokenizer').url}, and all measures in "
            f"{output.url}/{CERTIFICATE}"
        )


def _remove_work(output: Storage) -> None:
    """Remove the folder of intermediate files: the stored task results first, and then the files that they name.

    The reason for this order is that in the other order, a kill in between would leave results that name missing files.
    """
    for name in ("count", "merge", "measure", ""):  # the empty name is the folder itself
        (output / WORK).remove(name)


def _summarize(
    config: VocabularyConfig,
    identity: str,
    sample: WordCounts,
    measures: TokenizerMeasures,
    certificate: Certificate,
) -> VocabularySummary:
    return VocabularySummary(
        size=config.size,
        kind=config.kind,
        fingerprint=identity,
        sampled_documents=sample.sampled_documents,
        sampled_bytes=sample.sampled_bytes,
        distinct_words=sample.distinct,
        trained_words=len(sample.words),
        bytes_per_token=measures.total.bytes_per_token,
        fertility=measures.total.fertility,
        bytes_per_token_by_source={name: sizes.bytes_per_token for name, sizes in measures.by_source.items()},
        fertility_by_source={name: sizes.fertility for name, sizes in measures.by_source.items()},
        bytes_per_token_by_language={name: sizes.bytes_per_token for name, sizes in measures.by_language.items()},
        fertility_by_language={name: sizes.fertility for name, sizes in measures.by_language.items()},
        measured_documents=measures.total.texts,
        unused_tokens=measures.unused_tokens,
        unknown_tokens=measures.unknown_tokens,
        round_trip_failures=measures.total.round_trip_failures,
        certified_languages=len(certificate.corpus) + len(certificate.texts),
    )


def metrics(summary: VocabularySummary) -> dict[str, float]:
    """Return the summary's numbers by metric key, such as `vocabulary/fertility`."""
    return {
        "vocabulary/sampled_documents": summary.sampled_documents,
        "vocabulary/sampled_bytes": summary.sampled_bytes,
        "vocabulary/distinct_words": summary.distinct_words,
        "vocabulary/trained_words": summary.trained_words,
        "vocabulary/bytes_per_token": summary.bytes_per_token,
        "vocabulary/fertility": summary.fertility,
        "vocabulary/measured_documents": summary.measured_documents,
        "vocabulary/unused_tokens": summary.unused_tokens,
        "vocabulary/unknown_tokens": summary.unknown_tokens,
        "vocabulary/round_trip_failures": summary.round_trip_failures,
    }


def output_sizes(config: VocabularyConfig, planned: PlannedInputs) -> TokenizerSizes:
    """Return the vocabulary size that the tokenizer will have, the id of the corpus, and the held-out fraction.

    With the id and the fraction, `shards` checks that the tokenizer is not trained on its validation documents.
    """
    corpus = planned.get("corpus")
    return TokenizerSizes(
        vocab_size=config.size,
        corpus_id=corpus.id if corpus else None,
        held_out_fraction=config.held_out_fraction,
    )


def workload(config: VocabularyConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from.

    The time is that of counting words, and of training on the counts.
    """
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
    version=2,
    kind="tokenizer",
    config=VocabularyConfig,
    run=run,
    output_sizes=output_sizes,
    check=check,
    check_sources=check_sources,
    workload=workload,
    report=report_tokenizer,
)
