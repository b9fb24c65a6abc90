"""The values of completions equal hand-computed ones, for a verifier and for metrics with one or several answers."""

from __future__ import annotations

import pytest

from actors.completion_measures import TaskMetrics, answer_problem, measure_completions, task_metrics
from actors.completions import Completions
from actors.rollout import Rollout
from actors.verifier import Verifier
from cluster.user_program import Program
from data.chats.layouts import PromptRecord

VERIFIER = Verifier(Program("def length(prompt, completion, record):\n    return len(completion)", "v.py", "length"))


def record(answer: object) -> PromptRecord:
    return PromptRecord("prompts.jsonl:1", [{"role": "user", "content": "hi"}], {"answer": answer})


def completions(*texts: str) -> Completions:
    return Completions(list(texts), [Rollout((1,), (2, 3), (-1.0, -1.0), 0, True) for _ in texts])


def test_values_are_in_the_order_of_the_prompts() -> None:
    values = measure_completions(
        completions("yes", "the cat"),
        [record(["no", "yes"]), record("the dog")],
        verifiers={"length": VERIFIER},
        metrics=TaskMetrics(names=("exact_match", "f1")),
    )
    assert values["length"] == [3.0, 7.0]
    assert values["exact_match"] == [1.0, 0.0]
    assert values["f1"][0] == 1.0 and 0.0 <= values["f1"][1] < 1.0


def test_a_measure_is_told_which_completions_were_cut() -> None:
    source = "def f(prompt, completion, record, truncated):\n    return float(truncated)"
    finished, cut = (Rollout((1,), (2, 3), (-1.0, -1.0), 0, is_finished) for is_finished in (True, False))
    values = measure_completions(
        Completions(["a", "b"], [finished, cut]),
        [record("x"), record("y")],
        verifiers={"cut": Verifier(Program(source, "v.py", "f"))},
        metrics=TaskMetrics(),
    )
    assert values["cut"] == [0.0, 1.0]


def test_rouge_compares_with_a_single_answer() -> None:
    records = [record("the cat sat")]
    metrics = task_metrics(["rouge"], answer_form="plain", language=None, records=records)
    values = measure_completions(completions("the cat sat"), records, verifiers={}, metrics=metrics)
    assert {name: value for name, (value,) in values.items()} == dict.fromkeys(values, pytest.approx(1.0))
    assert set(values) == {"rouge1", "rouge2", "rougeL"}


@pytest.mark.parametrize("answer", [0, 0.0, "0", False, "0 ", [0, "none"]])
def test_the_number_zero_is_an_answer(answer: object) -> None:
    assert answer_problem(answer, ["exact_match", "f1"], "plain") is None


def test_an_answer_of_zero_is_compared() -> None:
    values = measure_completions(
        completions("0.", "1"),
        [record(0), record(0)],
        verifiers={},
        metrics=TaskMetrics(names=("exact_match", "f1")),
    )
    assert values == {"exact_match": [1.0, 0.0], "f1": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("answer", "metrics", "problem"),
    [
        (None, ["f1"], "missing or empty"),
        ("", ["f1"], "missing or empty"),
        (" \n", ["bleu"], "missing or empty"),
        ([], ["exact_match"], "missing or empty"),
        (["a", None], ["f1"], "missing or empty"),
        (["a", ""], ["f1"], "missing or empty"),
        ({"text": "a"}, ["f1"], "must be a text, a number or a list"),
        ([["a"]], ["f1"], "must be a text, a number or a list"),
        (["a", "b"], ["rouge", "f1"], "bleu and rouge compare with a single text"),
    ],
)
def test_an_answer_that_cannot_be_compared_has_a_reason(answer: object, metrics: list[str], problem: str) -> None:
    assert problem in str(answer_problem(answer, metrics, "plain"))


def test_a_numeric_answer_must_have_a_number() -> None:
    assert "the answer 'five' has no number" in str(answer_problem(["5", "five"], ["f1"], "numeric"))
    assert answer_problem(["5", "٥"], ["f1"], "numeric") is None
    assert answer_problem("five", ["rouge"], "numeric") is None


def test_the_results_name_the_normal_form_and_the_tokenizers() -> None:
    metrics = task_metrics(["f1", "rouge", "bleu"], answer_form="squad", language="en", records=[record("a b")])
    assert metrics.references == ("a b",) and metrics.signatures["f1"] == "form:squad"
    assert metrics.signatures["rouge"].startswith("words:raymill|stemmer:porter|rouge-score:")
    assert task_metrics(["f1"], answer_form="plain", language=None, records=[record(["a", "b"])]).references == ()
