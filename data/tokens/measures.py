"""Measures a tokenizer on a sample of a corpus.

The measures are the compression (bytes per token), the fertility (tokens per word), the number of unused tokens, the
number of unknown tokens, and the number of texts that fail a round trip. A text fails if it is different after encoding
and decoding. Changes by the tokenizer's normalization do not count, and for WordPiece neither do changes of white
space. A task for each part of the corpus measures the part.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.tokens.documents import CorpusText, read_documents
from data.tokens.tokenizer import load_encoder
from data.tokens.tokenizer_recipe import UNKNOWN


class TextSizes(NamedTuple):
    """The size of one or more texts in bytes, tokens and words."""

    bytes: int = 0
    tokens: int = 0
    words: int = 0
    """Number of words separated by white space."""

    def plus(self, other: "TextSizes") -> "TextSizes":
        """Return the sums of both sizes."""
        return TextSizes(self.bytes + other.bytes, self.tokens + other.tokens, self.words + other.words)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    @property
    def fertility(self) -> float:
        """Mean number of tokens per word."""
        return self.tokens / max(1, self.words)


@dataclass(frozen=True)
class _MeasureTask:
    """A corpus part on which a tokenizer is measured."""

    corpus: str
    """Content digest of the corpus (`CorpusText.digest`)."""
    part: str
    """Name of the part's file in the corpus."""
    tokenizer: str
    """Fingerprint of the tokenizer (`data.tokens.tokenizer.fingerprint`)."""
    share: float
    """The documents with a `split_position` below this number are measured."""


@dataclass(frozen=True)
class _PartMeasures:
    """The measures of one corpus part: sums over its measured documents."""

    documents: int
    """Number of measured documents."""
    round_trip_failures: int
    """Number of texts that fail a round trip (see the module's docstring)."""
    unknown_tokens: int
    """How often the unknown token occurs."""
    used_tokens: str
    """A bit for each token id, as hexadecimal digits. A bit is 1 if the token occurs."""
    by_source: dict[str, TextSizes]
    """Sizes of the documents of each source."""
    by_language: dict[str, TextSizes]
    """Sizes of the documents in each language. Documents whose metadata name no language are left out."""


@dataclass(frozen=True)
class TokenizerMeasures:
    """The measures of a tokenizer over all measured documents."""

    total: TextSizes
    """Sizes of all measured documents together."""
    by_source: dict[str, TextSizes]
    """Sizes of the documents of each source."""
    by_language: dict[str, TextSizes]
    """Sizes of the documents in each language. Documents whose metadata name no language are left out."""
    documents: int
    """Number of measured documents."""
    unused_tokens: int
    """Number of tokens of the vocabulary that never occur."""
    unknown_tokens: int
    """How often the unknown token occurs."""
    round_trip_failures: int
    """Number of texts that fail a round trip (see the module's docstring)."""


@dataclass(frozen=True, kw_only=True)
class VocabularySummary:
    """The summary of a tokenizer in artifact.json."""

    size: int
    """Number of tokens in the vocabulary."""
    kind: str
    """Algorithm of the tokenizer: `bpe`, `wordpiece` or `unigram`."""
    fingerprint: str
    """Hash of the tokenizer (`data.tokens.tokenizer.fingerprint`)."""
    sampled_documents: int
    """Number of documents that the tokenizer was trained on."""
    sampled_bytes: int
    """Size of the text that the tokenizer was trained on, in bytes."""
    bytes_per_token: float
    fertility: float
    """Mean number of tokens per word. Words are separated by white space."""
    bytes_per_token_by_source: dict[str, float] = field(default_factory=dict)
    fertility_by_source: dict[str, float] = field(default_factory=dict)
    bytes_per_token_by_language: dict[str, float] = field(default_factory=dict)
    fertility_by_language: dict[str, float] = field(default_factory=dict)
    measured_documents: int
    unused_tokens: int
    """Number of tokens of the vocabulary that never occur in the measured documents."""
    unknown_tokens: int
    """How often the unknown token occurs in the measured documents."""
    round_trip_failures: int
    """Number of measured documents whose text fails a round trip (see the module's docstring)."""


def measure_tokenizer(
    corpus: CorpusText, work: Storage, folder: Storage, *, tokenizer: str, share: float, workers: int | None
) -> TokenizerMeasures:
    """Measure the tokenizer in `folder` on about the fraction `share` of the corpus's documents.

    `tokenizer` is the fingerprint of the tokenizer, and `work` is a temporary folder for the results of the tasks.
    """
    parts = run_tasks(
        partial(_measure_part, corpus=corpus.storage, folder=folder),
        [_MeasureTask(corpus.digest, part, tokenizer, share) for part in corpus.parts],
        result_type=_PartMeasures,
        workers=workers,
        label="vocabulary: measure",
        result_folder=work / "measure",
    )
    used = np.zeros(load_encoder(folder.local()).get_vocab_size(), dtype=np.bool_)
    for part in parts:
        used |= _unpack_bits(part.used_tokens, len(used))
    by_source = _sum_by_name(part.by_source for part in parts)
    total = TextSizes()
    for sizes in by_source.values():
        total = total.plus(sizes)
    return TokenizerMeasures(
        total=total,
        by_source=by_source,
        by_language=_sum_by_name(part.by_language for part in parts),
        documents=sum(part.documents for part in parts),
        unused_tokens=int(len(used) - used.sum()),
        unknown_tokens=sum(part.unknown_tokens for part in parts),
        round_trip_failures=sum(part.round_trip_failures for part in parts),
    )


def _measure_part(task: _MeasureTask, *, corpus: Storage, folder: Storage) -> _PartMeasures:
    encoder = load_encoder(folder.local())
    unknown_id = encoder.token_to_id(UNKNOWN)
    used = np.zeros(encoder.get_vocab_size(), dtype=np.bool_)
    by_source: list[dict[str, TextSizes]] = []
    by_language: list[dict[str, TextSizes]] = []
    num_failures = num_unknown = 0
    for document in read_documents(corpus, task.part, lambda position: position < task.share):
        ids = encoder.encode(document.text, add_special_tokens=False).ids
        sizes = TextSizes(len(document.text.encode()), len(ids), len(document.text.split()))
        by_source.append({document.source: sizes})
        if language := json.loads(document.metadata).get("language"):
            by_language.append({language: sizes})
        num_failures += not _survives_round_trip(encoder, document.text, ids)
        num_unknown += 0 if unknown_id is None else ids.count(unknown_id)
        used[ids] = True
    return _PartMeasures(
        documents=len(by_source),
        round_trip_failures=num_failures,
        unknown_tokens=num_unknown,
        used_tokens=np.packbits(used).tobytes().hex(),
        by_source=_sum_by_name(by_source),
        by_language=_sum_by_name(by_language),
    )


def _survives_round_trip(encoder: Tokenizer, text: str, ids: list[int]) -> bool:
    """Return whether decoding the ids gives the text as the tokenizer has normalized it before encoding.

    White space is not compared for a WordPiece tokenizer, because WordPiece does not keep it.
    """
    expected = encoder.normalizer.normalize_str(text) if encoder.normalizer else text
    decoded = encoder.decode(ids, skip_special_tokens=False)
    if isinstance(encoder.model, WordPiece):
        return "".join(decoded.split()) == "".join(expected.split())
    return decoded == expected


def _unpack_bits(bits: str, length: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8), count=length).astype(np.bool_)


def _sum_by_name(parts: Iterable[Mapping[str, TextSizes]]) -> dict[str, TextSizes]:
    """Return the sums of the sizes with the same name, sorted by name."""
    total: dict[str, TextSizes] = {}
    for part in parts:
        for name, sizes in part.items():
            total[name] = total.get(name, TextSizes()).plus(sizes)
    return dict(sorted(total.items()))
