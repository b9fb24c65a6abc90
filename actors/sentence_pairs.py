"""Stereotypes: sentence pairs that differ only in the group they name, and which sentence a model finds likelier."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.likelihood import sequence_logprobs
from cluster.paths import list_files
from cluster.storage import Storage
from data.chats.records import read_records
from data.tokens.tokenizer import load_encoder, load_tokenizer, separator_id


class SentencePair(NamedTuple):
    """Two sentences that differ only in the group they name."""

    group: str
    """Kind of group, such as age."""
    stereotype: str
    counterpart: str


class PairScores(NamedTuple):
    """Log-likelihoods in nats, stereotype minus counterpart, [pairs]."""

    sentence: NDArray[np.float64]
    """Of the whole sentences."""
    continuation: NDArray[np.float64]
    """Of the tokens after the last one in which the two differ, each given its own beginning: the same words about one
    group and about the other, so that how common a group's name is does not count."""


def read_pairs(path: str) -> list[SentencePair]:
    """The sentence pairs of a file. Raises ValueError naming file, line and rule for a malformed record."""
    pairs = []
    for where, record in read_records(list_files([path])):
        for name in SentencePair._fields:
            if not isinstance(record.get(name), str) or not record[name].strip():
                raise ValueError(f"{where}: {name} must be a text; a pair has {', '.join(SentencePair._fields)}")
        pair = SentencePair(**{name: record[name] for name in SentencePair._fields})
        if pair.stereotype == pair.counterpart:
            raise ValueError(f"{where}: stereotype and counterpart are the same; they must name different groups")
        pairs.append(pair)
    return pairs


def score_pairs(model_folder: Storage, pairs: Sequence[SentencePair], *, device: str) -> PairScores:
    """How much likelier a model finds each stereotype than its counterpart, both as the beginning of a document."""
    folder = model_folder.local()
    encoder, separator = load_encoder(folder), separator_id(load_tokenizer(folder))
    sentences = [sentence for pair in pairs for sentence in (pair.stereotype, pair.counterpart)]
    ids = [[separator, *encoder.encode(sentence, add_special_tokens=False).ids] for sentence in sentences]
    by_sentence = sequence_logprobs(model_folder, ids, device=device)
    sentence, continuation = [], []
    for first in range(0, len(ids), 2):
        stereotype, counterpart = by_sentence[first], by_sentence[first + 1]
        shared = common_suffix(ids[first], ids[first + 1])
        sentence.append(stereotype.sum() - counterpart.sum())
        continuation.append(
            stereotype[len(stereotype) - shared :].sum() - counterpart[len(counterpart) - shared :].sum()
        )
    return PairScores(np.array(sentence), np.array(continuation))


def common_suffix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal items at the ends of two sequences."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return sum(1 for _ in same)
