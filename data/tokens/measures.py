"""Measures a tokenizer on a sample of a corpus.

The measures are the compression (bytes per token), the fertility (tokens per word), the fraction of tokens without a
whole character, the number of unused tokens, the number of unknown tokens, and the number of texts that fail a round
trip. A text fails if it is different after encoding and decoding. Changes by the tokenizer's normalization do not
count, and for WordPiece neither do changes of white space. A task for each part of the corpus measures the part.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordPiece

from cluster.storage import Storage
from cluster.tasks import run_tasks
from data.tokens.documents import CorpusText, read_documents
from data.tokens.pre_tokenizer import byte_alphabet
from data.tokens.tokenizer import load_encoder
from data.tokens.tokenizer_recipe import UNKNOWN
from data.words import plain_words


@dataclass(frozen=True)
class TextMeasures:
    """How a tokenizer encodes one or more texts."""

    texts: int = 0
    """Number of texts."""
    bytes: int = 0
    tokens: int = 0
    words: int = 0
    """Number of words (`data.words.plain_words`)."""
    fallback_tokens: int = 0
    """Number of tokens without a whole character (`fallback_ids`)."""
    round_trip_failures: int = 0
    """Number of texts that fail a round trip (see the module's docstring)."""

    def plus(self, other: "TextMeasures") -> "TextMeasures":
        """Return the sums of both measures."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return TextMeasures(*(first + second for first, second in pairs))

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    @property
    def fertility(self) -> float:
        """Mean number of tokens per word."""
        return self.tokens / max(1, self.words)

    @property
    def fallback_share(self) -> float:
        """Fraction of the tokens that have no whole character."""
        return self.fallback_tokens / max(1, self.tokens)


class TokenizerMeter:
    """Measures how a tokenizer encodes texts."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer in `folder`."""
        self.encoder = load_encoder(folder)
        self.is_fallback = fallback_ids(self.encoder)

    def measure(self, text: str) -> tuple[list[int], TextMeasures]:
        """Return the token ids of a text and its measures."""
        ids = self.encoder.encode(text, add_special_tokens=False).ids
        measures = TextMeasures(
            texts=1,
            bytes=len(text.encode()),
            tokens=len(ids),
            words=len(plain_words(text)),
            fallback_tokens=int(self.is_fallback[ids].sum()),
            round_trip_failures=int(not _survives_round_trip(self.encoder, text, ids)),
        )
        return ids, measures


def fallback_ids(encoder: Tokenizer) -> np.ndarray:
    """Return for each token id whether the token has no whole character, as bool [vocabulary].

    This is the unknown token, the byte tokens of a Unigram model, and in byte-level BPE every token that has bytes of
    characters, but no whole character except white space.
    """
    alphabet = byte_alphabet() if isinstance(encoder.model, BPE) else {}
    is_fallback = np.zeros(encoder.get_vocab_size(), dtype=np.bool_)
    for token, token_id in encoder.get_vocab().items():
        if token == UNKNOWN or (isinstance(encoder.model, Unigram) and _BYTE_TOKEN.fullmatch(token)):
            is_fallback[token_id] = True
        elif alphabet and alphabet.keys() >= set(token):
            is_fallback[token_id] = _has_no_whole_character(bytes(alphabet[character] for character in token))
    return is_fallback


_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


def _has_no_whole_character(content: bytes) -> bool:
    """Return whether UTF-8 bytes are white space and parts of characters only. White space alone does not count."""
    whole = content.decode(errors="ignore")
    return len(whole.encode()) < len(content) and not whole.strip()


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

    unknown_tokens: int
    """How often the unknown token occurs."""
    used_tokens: str
    """A bit for each token id, as hexadecimal digits. A bit is 1 if the token occurs."""
    by_source: dict[str, TextMeasures]
    """Measures of the documents of each source."""
    by_language: dict[str, TextMeasures]
    """Measures of the documents in each language. Documents whose metadata name no language are left out."""


@dataclass(frozen=True)
class TokenizerMeasures:
    """The measures of a tokenizer over all measured documents."""

    total: TextMeasures
    """Measures of all measured documents together."""
    by_source: dict[str, TextMeasures]
    """Measures of the documents of each source."""
    by_language: dict[str, TextMeasures]
    """Measures of the documents in each language. Documents whose metadata name no language are left out."""
    unused_tokens: int
    """Number of tokens of the vocabulary that never occur."""
    unknown_tokens: int
    """How often the unknown token occurs."""


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
    distinct_words: int
    """Number of distinct words in this text."""
    trained_words: int
    """Number of distinct words that the tokenizer was trained on. It is lower than `distinct_words` if there were too
    many for the memory (`data/tokens/word_counts.py`)."""
    bytes_per_token: float
    fertility: float
    """Mean number of tokens per word (`data.words.plain_words`)."""
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
    certified_languages: int
    """Number of languages and texts in certificate.json."""


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
    by_source = sum_by_name(part.by_source for part in parts)
    total = TextMeasures()
    for measures in by_source.values():
        total = total.plus(measures)
    return TokenizerMeasures(
        total=total,
        by_source=by_source,
        by_language=sum_by_name(part.by_language for part in parts),
        unused_tokens=int(len(used) - used.sum()),
        unknown_tokens=sum(part.unknown_tokens for part in parts),
    )


def _measure_part(task: _MeasureTask, *, corpus: Storage, folder: Storage) -> _PartMeasures:
    meter = TokenizerMeter(folder.local())
    unknown_id = meter.encoder.token_to_id(UNKNOWN)
    used = np.zeros(meter.encoder.get_vocab_size(), dtype=np.bool_)
    by_source: list[dict[str, TextMeasures]] = []
    by_language: list[dict[str, TextMeasures]] = []
    num_unknown = 0
    for document in read_documents(corpus, task.part, lambda position: position < task.share):
        ids, measures = meter.measure(document.text)
        by_source.append({document.source: measures})
        language = json.loads(document.metadata).get("language")
        if isinstance(language, str) and language:  # A column of the source may have the same name and other values.
            by_language.append({language: measures})
        num_unknown += 0 if unknown_id is None else ids.count(unknown_id)
        used[ids] = True
    return _PartMeasures(
        unknown_tokens=num_unknown,
        used_tokens=np.packbits(used).tobytes().hex(),
        by_source=sum_by_name(by_source),
        by_language=sum_by_name(by_language),
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


def sum_by_name(parts: Iterable[Mapping[str, TextMeasures]]) -> dict[str, TextMeasures]:
    """Return the sums of the measures with the same name, sorted by name."""
    total: dict[str, TextMeasures] = {}
    for part in parts:
        for name, measures in part.items():
            total[name] = total.get(name, TextMeasures()).plus(measures)
    return dict(sorted(total.items()))
