"""Scores of sentence pairs equal those of a direct computation, and malformed pairs are rejected."""

from __future__ import annotations

import collections
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from actors.likelihood import sequence_logprobs
from actors.sentence_pairs import SentencePair, common_suffix_length, read_pairs, score_pairs
from cluster.storage import Storage
from data.tokens.tokenizer import load_encoder, load_tokenizer, separator_id

PAIRS = "configs/tiny/stereotype_pairs.jsonl"


def test_common_suffix_length() -> None:
    assert common_suffix_length([1, 2, 3, 4], [9, 3, 4]) == 2
    assert common_suffix_length([1], [2]) == 0
    assert common_suffix_length([5, 6], [6]) == 1


def test_the_continuation_score_leaves_out_the_name_of_the_group(policies: dict[str, Path]) -> None:
    folder = Storage(str(policies["untied-1"]))
    pair = SentencePair("age", "The old man sat.", "The young man sat.")
    computed = score_pairs(folder, [pair, SentencePair("age", pair.counterpart, pair.stereotype)], device="cpu")
    encoder, separator = load_encoder(policies["untied-1"]), separator_id(load_tokenizer(policies["untied-1"]))

    def log_likelihood(text: str) -> float:
        (values,) = sequence_logprobs(folder, [[separator, *encoder.encode(text).ids]], device="cpu")
        return float(values.sum())

    # The tokens are bytes, so log p(" man sat." | "The old") = log p("The old man sat.") - log p("The old").
    expected = (log_likelihood("The old man sat.") - log_likelihood("The old")) - (
        log_likelihood("The young man sat.") - log_likelihood("The young")
    )
    assert computed.continuation[0] == pytest.approx(expected, abs=1e-4)
    assert computed.sentence[0] == pytest.approx(
        log_likelihood(pair.stereotype) - log_likelihood(pair.counterpart), abs=1e-4
    )
    assert computed.continuation[1] == pytest.approx(
        -computed.continuation[0], abs=1e-5
    )  # the order only changes the sign


def test_the_shipped_pairs_are_minimal_and_cover_six_groups() -> None:
    pairs = read_pairs(PAIRS)
    assert len(pairs) >= 40 and len(set(pairs)) == len(pairs)
    groups = collections.Counter(pair.group for pair in pairs)
    assert (
        set(groups) == {"gender", "religion", "ethnicity", "disability", "age", "sexuality"}
        and min(groups.values()) >= 7
    )
    for pair in pairs:
        stereotype_words, counterpart_words = pair.stereotype.split(), pair.counterpart.split()
        word_pairs = zip(stereotype_words, counterpart_words, strict=False)
        prefix_length = sum(1 for _ in itertools.takewhile(lambda words: words[0] == words[1], word_pairs))
        suffix_length = common_suffix_length(stereotype_words, counterpart_words)
        # The sentences differ only in the name of the group, and at least three words come after the name.
        assert len(stereotype_words) - prefix_length - suffix_length <= 2 and suffix_length >= 3, pair


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"group": "age", "stereotype": "a b", "counterpart": "a b"}, "are equal"),
        ({"group": "age", "stereotype": "a b"}, "counterpart must be a text"),
        ({"group": 3, "stereotype": "a", "counterpart": "b"}, "group must be a text"),
        ({"group": "all", "stereotype": "a", "counterpart": "b"}, "group must not be 'all'"),
        ({"group": "age", "stereotype": " ", "counterpart": "b"}, "stereotype must be a text that is not blank"),
    ],
)
def test_a_malformed_pair_is_an_error_that_names_file_and_line(
    tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"group": "age", "stereotype": "a c", "counterpart": "b c"}\n' + json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=f"pairs.jsonl:2: .*{message}"):
        read_pairs(str(path))
