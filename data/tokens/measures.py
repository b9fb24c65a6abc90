"""Measures of a tokenizer on a sample of a corpus, taken in tasks: compression, fertility, and what it cannot spell."""

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
    """The size of some text."""

    bytes: int = 0
    tokens: int = 0
    words: int = 0
    """Between white space."""

    def plus(self, other: "TextSizes") -> "TextSizes":
        return TextSizes(self.bytes + other.bytes, self.tokens + other.tokens, self.words + other.words)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    @property
    def fertility(self) -> float:
        """Tokens per word."""
        return self.tokens / max(1, self.words)


@dataclass(frozen=True)
class _MeasureTask:
    corpus: str
    """`CorpusText.digest`."""
    part: str
    tokenizer: str
    """Its fingerprint."""
    share: float
    """Documents whose `split_position` is below this are measured."""


@dataclass(frozen=True)
class _PartMeasures:
    """Sums over the measured documents of a part."""

    documents: int
    failures: int
    """Texts that do not come back from their tokens."""
    unknown: int
    """Unknown tokens."""
    used: str
    """Which tokens occur: one bit each, as hexadecimal digits."""
    by_source: dict[str, TextSizes]
    by_language: dict[str, TextSizes]
    """Of the documents whose metadata name a language."""


@dataclass(frozen=True)
class TokenizerMeasures:
    total: TextSizes
    by_source: dict[str, TextSizes]
    by_language: dict[str, TextSizes]
    documents: int
    unused_tokens: int
    """Tokens that never occur."""
    unknown_tokens: int
    round_trip_failures: int
    """Texts that do not come back from their tokens."""


@dataclass(frozen=True, kw_only=True)
class VocabularySummary:
    """What artifact.json says of a tokenizer."""

    size: int
    kind: str
    fingerprint: str
    sampled_documents: int
    """Documents that it was learned from."""
    sampled_bytes: int
    bytes_per_token: float
    fertility: float
    """Tokens per word between white space."""
    bytes_per_token_by_source: dict[str, float] = field(default_factory=dict)
    fertility_by_source: dict[str, float] = field(default_factory=dict)
    bytes_per_token_by_language: dict[str, float] = field(default_factory=dict)
    fertility_by_language: dict[str, float] = field(default_factory=dict)
    measured_documents: int
    unused_tokens: int
    """Tokens that never occur in the measured documents."""
    unknown_tokens: int
    """Unknown tokens in the measured documents."""
    round_trip_failures: int
    """Measured documents that do not come back from their tokens."""


def measure_tokenizer(
    corpus: CorpusText, work: Storage, folder: Storage, *, tokenizer: str, share: float, workers: int | None
) -> TokenizerMeasures:
    """Measure the tokenizer in `folder`, which has this fingerprint, on about this share of a corpus."""
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
        used |= _unpacked(part.used, len(used))
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
        unknown_tokens=sum(part.unknown for part in parts),
        round_trip_failures=sum(part.failures for part in parts),
    )


def _measure_part(task: _MeasureTask, *, corpus: Storage, folder: Storage) -> _PartMeasures:
    encoder = load_encoder(folder.local())
    unknown = encoder.token_to_id(UNKNOWN)
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
        num_failures += not _comes_back(encoder, document.text, ids)
        num_unknown += 0 if unknown is None else ids.count(unknown)
        used[ids] = True
    return _PartMeasures(
        documents=len(by_source),
        failures=num_failures,
        unknown=num_unknown,
        used=np.packbits(used).tobytes().hex(),
        by_source=_sum_by_name(by_source),
        by_language=_sum_by_name(by_language),
    )


def _comes_back(encoder: Tokenizer, text: str, ids: list[int]) -> bool:
    """Whether the tokens spell the text after the tokenizer's normalization; for wordpiece apart from white space,
    which it forgets."""
    expected = encoder.normalizer.normalize_str(text) if encoder.normalizer else text
    decoded = encoder.decode(ids, skip_special_tokens=False)
    if isinstance(encoder.model, WordPiece):
        return "".join(decoded.split()) == "".join(expected.split())
    return decoded == expected


def _unpacked(bits: str, length: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8), count=length).astype(np.bool_)


def _sum_by_name(parts: Iterable[Mapping[str, TextSizes]]) -> dict[str, TextSizes]:
    """The sums by name, in the order of the names."""
    total: dict[str, TextSizes] = {}
    for part in parts:
        for name, sizes in part.items():
            total[name] = total.get(name, TextSizes()).plus(sizes)
    return dict(sorted(total.items()))
