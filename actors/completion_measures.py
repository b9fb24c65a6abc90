"""Measures the quality of each completion, with verifiers and with metrics that compare it with the correct answer.

A verifier is a user-provided function. A measure is a verifier or a metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from actors.verifier import ScorerInput, Verifier
from data.chats.records import PromptRecord
from model.metrics import ROUGE_TYPES, exact_match, rouge, token_f1

if TYPE_CHECKING:
    from actors.completions import Completions

METRICS = ("bleu", "rouge", "exact_match", "f1")
"""The metrics that compare a completion with the `answer` in the prompt's record. Bleu has one value for all
completions of a task, and the other metrics have one value per completion."""


def result_names(metric: str) -> tuple[str, ...]:
    """Return the names of a metric's results: those of `ROUGE_TYPES` for rouge, else only the name of the metric."""
    return ROUGE_TYPES if metric == "rouge" else (metric,)


def measure_completions(
    completions: Completions,
    records: Sequence[PromptRecord],
    *,
    verifiers: Mapping[str, Verifier],
    metrics: Sequence[str],
) -> dict[str, list[float]]:
    """Return one value per completion, in the order of the prompts, for each verifier and each metric except bleu.

    The keys of the result are the names of the verifiers and the `result_names` of the metrics. The keys of `verifiers`
    are the names of the verifiers, and `metrics` has names from METRICS. `records` are the prompts that were completed.
    """
    values: dict[str, list[float]] = {}
    scorer_inputs = [
        ScorerInput(
            prompt=record.text,
            completion=text,
            token_ids=rollout.prompt_ids + rollout.completion_ids,
            record=record.record,
            truncated=not rollout.finished,
        )
        for record, text, rollout in zip(records, completions.texts, completions.rollouts, strict=True)
    ]
    for name, verifier in verifiers.items():
        values[name] = verifier.score(scorer_inputs)
    accepted = [accepted_answers(record.record.get("answer")) for record in records]
    for name, metric in (("exact_match", exact_match), ("f1", token_f1)):
        if name in metrics:
            values[name] = [metric(text, answers) for text, answers in zip(completions.texts, accepted, strict=True)]
    if "rouge" in metrics:
        # The unpacking requires that each record has exactly one correct answer.
        values |= rouge(completions.texts, [answer for (answer,) in accepted])
    return values


def accepted_answers(answer: Any) -> list[str]:
    """Return the `answer` of a record as a list of texts, each of which is a correct answer."""
    return [str(item) for item in answer] if isinstance(answer, list) else [str(answer)]
