"""Results equal hand-computed ones for likelihoods and sentence pairs, and survive the conversion to JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from actors.completion_measures import TaskMetrics
from actors.completions import Completions
from actors.evaluation_results import (
    COMPLETION_STATISTICS,
    Bootstrap,
    EvaluationResults,
    bias_results,
    model_likelihood,
    task_results,
    text_results,
)
from actors.likelihood import TextScores
from actors.rollout import Rollout
from actors.sentence_pairs import PairScores, SentencePair
from cluster.plain import from_plain

bootstrap = Bootstrap(num_resamples=500, seed=0)


def text_scores(nats: np.ndarray) -> TextScores:
    """Scores of two documents with 4 and 8 bytes, 2 and 4 tokens."""
    return TextScores(np.arange(2), nats, np.array([2, 4]), np.array([4, 8]), np.array([True, True]))


def test_bits_per_byte_are_compared_document_by_document_also_between_tokenizers() -> None:
    # The second model needs 1 bit a byte more for each document, so the interval has no width. Its tokens are others.
    bits = np.array([8.0, 24.0])
    other = text_scores((bits + [4.0, 8.0]) * math.log(2))._replace(num_tokens=np.array([1, 1]))
    computed = text_results(
        {"a": text_scores(bits * math.log(2)), "b": other},
        {"a": "t", "b": "u"},
        num_left_out=3,
        xz_bytes=6,
        compare=[["a", "b"], ["a", "c"]],
        bootstrap=bootstrap,
    )
    (change,) = computed.compare
    assert (change.before, change.after) == ("a", "b")
    for end in (change.bits_per_byte.value, change.bits_per_byte.low, change.bits_per_byte.high):
        assert end == pytest.approx(1.0)
    assert computed.models["a"].bits_per_byte.low < computed.models["a"].bits_per_byte.high
    assert computed.models["b"].perplexity.value == pytest.approx(2 ** (44 / 2))
    assert (computed.documents_left_out, computed.xz_bits_per_byte) == (3, pytest.approx(4.0))
    assert [computed.models[name].tokenizer for name in "ab"] == ["t", "u"]
    results = EvaluationResults(models={}, order=["a", "b"], text=computed)
    assert results.by_key()["a-b/bits_per_byte/low"] == pytest.approx(1.0)
    assert from_plain(EvaluationResults, json.loads(json.dumps(results.to_plain()))) == results


def test_bits_per_byte_and_perplexity_of_documents() -> None:
    # Two documents of 8 and 24 bits, 4 and 8 bytes, 2 and 4 tokens. The total is 32 bits, 12 bytes and 6 tokens.
    bits = np.array([8.0, 24.0])
    scores = text_scores(bits * math.log(2))
    computed = model_likelihood(scores, "t", bootstrap)
    assert computed.bits_per_byte.value == pytest.approx(32 / 12)
    assert computed.perplexity.value == pytest.approx(2 ** (32 / 6))
    assert computed.perplexity.low == pytest.approx(2**4) and computed.perplexity.high == pytest.approx(2**6)


def test_bias_is_the_fraction_of_pairs_with_a_likelier_stereotype_and_a_tie_counts_half() -> None:
    pairs = [SentencePair(group, "a", "b") for group in ("age", "age", "gender", "gender")]
    scores = PairScores(sentence=np.array([1.0, -1.0, 2.0, 0.1]), continuation=np.array([0.5, 0.5, -0.5, 0.0]))
    computed = bias_results(pairs, scores, bootstrap)
    assert computed["all"].pairs == 4 and computed["age"].pairs == 2
    assert computed["all"].sentence.value == pytest.approx(0.75)
    assert computed["age"].continuation.value == pytest.approx(1.0)
    assert computed["gender"].continuation.value == pytest.approx(0.25)


def test_results_survive_json_and_leave_out_what_was_not_measured() -> None:
    text = text_results(
        {"sft": text_scores(np.array([8.0, 24.0]))},
        {"sft": "t"},
        num_left_out=0,
        xz_bytes=None,
        compare=[],
        bootstrap=bootstrap,
    )
    results = EvaluationResults(models={"sft": "sft-1"}, order=["sft"], text=text)
    plain = json.loads(json.dumps(results.to_plain()))
    assert set(plain) == {"models", "order", "text"} and plain["text"]["xz_bits_per_byte"] is None
    assert from_plain(EvaluationResults, plain) == results
    assert set(results.by_key()) == {"sft/bits_per_byte", "sft/perplexity"}


def test_a_task_compares_only_models_that_completed_it() -> None:
    def completions(text: str) -> Completions:
        return Completions([text] * 2, [Rollout((1,), (2, 3), (-1.0, -1.0), 0, True)] * 2)

    results = task_results(
        {"sft": completions("a b"), "rlhf": completions("a c")},
        {"sft": {"gold": [0.0, 1.0]}, "rlhf": {"gold": [1.0, 1.0]}},
        metrics=TaskMetrics(names=("exact_match",), answer_form="numeric"),
        compare=[["sft", "rlhf"], ["sft", "base"]],
        bootstrap=bootstrap,
    )
    (change,) = results.compare
    assert (change.before, change.after, change.measure, change.difference.value) == ("sft", "rlhf", "gold", 0.5)
    assert results.prompts == 2 and results.models["sft"].measures["gold"].value == 0.5
    all_results = EvaluationResults(models={}, order=[], generation={"chat": results})
    assert {key.removeprefix("sft/chat/") for key in all_results.by_key() if key.startswith("sft/")} == {
        "gold",
        *COMPLETION_STATISTICS,
    }
    assert all_results.by_key()["sft/chat/completion_length"] == 2.0
    assert results.models["rlhf"].completion_length.value == 2.0
    assert results.models["rlhf"].signatures == {"exact_match": "form:numeric"}
