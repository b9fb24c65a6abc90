"""What each completion is worth: by functions of the user's, and by metrics against the prompt's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actors.completions import Completions
from actors.scorer import ScorerInput, Verifier
from data.chats.records import PromptRecord
from model.metrics import exact_match, rouge, token_f1

METRICS = ("bleu", "rouge", "exact_match", "f1")
"""Metrics against the `answer` of a prompt's record. All but bleu, which is of a whole task, have a value by prompt."""


def measure_completions(
    completions: Completions,
    records: Sequence[PromptRecord],
    *,
    verifiers: Mapping[str, Verifier],
    metrics: Sequence[str],
) -> dict[str, list[float]]:
    """The value of each completion, in the order of the prompts, by verifier and metric."""
    values: dict[str, list[float]] = {}
    samples = [
        ScorerInput(record.text, text, rollout.prompt_ids + rollout.completion_ids, record.record)
        for record, text, rollout in zip(records, completions.texts, completions.rollouts, strict=True)
    ]
    for name, verifier in verifiers.items():
        values[name] = verifier.score(samples)
    accepted = [accepted_answers(record.record.get("answer")) for record in records]
    for name, metric in (("exact_match", exact_match), ("f1", token_f1)):
        if name in metrics:
            values[name] = [metric(text, answers) for text, answers in zip(completions.texts, accepted, strict=True)]
    if "rouge" in metrics:
        values |= rouge(completions.texts, [answer for (answer,) in accepted])
    return values


def accepted_answers(answer: Any) -> list[str]:
    """The `answer` of a record as a list of texts."""
    return [str(item) for item in answer] if isinstance(answer, list) else [str(answer)]
