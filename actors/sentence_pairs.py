"""A test for stereotypes: sentence pairs that differ only in the social group that they name.

The test measures which sentence of a pair a model finds likelier (compare the data set CrowS-Pairs).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.paths import list_files
from cluster.storage import Storage
from data.chats.records import read_records
from data.tokens.tokenizer import document_tokens, load_encoder


class SentencePair(NamedTuple):
    """Two sentences that differ only in the social group that they name."""

    group: str
    """The kind of the social groups in the sentences, such as age or religion. It must not be `all`, which stands for
    all pairs in the results."""
    stereotype: str
    """The sentence with the group that the stereotype is about."""
    counterpart: str
    """The sentence with another group."""


class PairScores(NamedTuple):
    """How much likelier a model finds each stereotype than its counterpart.

    Each field is an array with one item per pair: a log-likelihood of the stereotype minus the same log-likelihood of
    the counterpart, in nats.
    """

    sentence: NDArray[np.float64]
    """Differences of the log-likelihoods of the complete sentences."""
    continuation: NDArray[np.float64]
    """Differences of the log-likelihoods of the common ending of the two sentences, given the beginning of the
    sentence. The ending starts after the last token in which the sentences differ. The ending does not contain the name
    of the group, so the difference does not depend on how common this name is."""


def read_pairs(path: str) -> list[SentencePair]:
    """Read the sentence pairs of a file.

    Raises ValueError if a record is malformed. The message names the file, the line and the rule that is broken.
    """
    pairs = []
    for location, record in read_records(list_files([path])):
        for name in SentencePair._fields:
            if not isinstance(record.get(name), str) or not record[name].strip():
                raise ValueError(
                    f"{location}: {name} must be a text that is not blank; a pair has {', '.join(SentencePair._fields)}"
                )
        if record["group"] == "all":
            raise ValueError(f"{location}: group must not be 'all', because the results of all pairs have this name")
        pair = SentencePair(**{name: record[name] for name in SentencePair._fields})
        if pair.stereotype == pair.counterpart:
            raise ValueError(f"{location}: stereotype and counterpart are equal; they must name different groups")
        pairs.append(pair)
    return pairs


def score_pairs(model_folder: Storage, pairs: Sequence[SentencePair], *, device: str) -> PairScores:
    """Return how much likelier a model finds each stereotype than its counterpart.

    Each sentence is scored as if it were the beginning of a document.
    """
    from actors.likelihood import sequence_logprobs  # imported here, because reading pairs does not need PyTorch

    folder = model_folder.local()
    encoder, begin = load_encoder(folder), document_tokens(folder).begin
    sentences = [sentence for pair in pairs for sentence in (pair.stereotype, pair.counterpart)]
    ids = [[begin, *encoder.encode(sentence, add_special_tokens=False).ids] for sentence in sentences]
    logprobs_by_sentence = sequence_logprobs(model_folder, ids, device=device)
    sentence_scores, continuation_scores = [], []
    for first in range(0, len(ids), 2):
        stereotype, counterpart = logprobs_by_sentence[first], logprobs_by_sentence[first + 1]
        suffix_length = common_suffix_length(ids[first], ids[first + 1])
        sentence_scores.append(stereotype.sum() - counterpart.sum())
        continuation_scores.append(
            stereotype[len(stereotype) - suffix_length :].sum() - counterpart[len(counterpart) - suffix_length :].sum()
        )
    return PairScores(np.array(sentence_scores), np.array(continuation_scores))


def common_suffix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the length of the longest common suffix of two sequences."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    equal_pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return sum(1 for _ in equal_pairs)
