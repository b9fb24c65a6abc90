"""The values of completions equal hand-computed ones, for a verifier and for metrics with one or several answers."""

from __future__ import annotations

import pytest

from actors.completion_measures import measure_completions
from actors.completions import Completions
from actors.rollout import Rollout
from actors.verifier import Verifier
from cluster.user_program import Program
from data.chats.records import PromptRecord

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
        metrics=["exact_match", "f1"],
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
        metrics=[],
    )
    assert values["cut"] == [0.0, 1.0]


def test_rouge_compares_with_a_single_answer() -> None:
    values = measure_completions(completions("the cat sat"), [record("the cat sat")], verifiers={}, metrics=["rouge"])
    assert {name: value for name, (value,) in values.items()} == dict.fromkeys(values, pytest.approx(1.0))
    assert set(values) == {"rouge1", "rouge2", "rougeL"}
