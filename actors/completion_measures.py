"""Measures the quality of each completion, with verifiers and with metrics that compare it with the correct answer.

A verifier is a user-provided function. A measure is a verifier or a metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.answer_match import AnswerForm, exact_match, number_values, word_f1
from actors.text_metrics import ROUGE_TYPES, TextRules, choose_text_rules, rouge
from actors.verifier import ScorerInput, Verifier
from data.chats.layouts import PromptRecord

if TYPE_CHECKING:
    from actors.completions import Completions

TEXT_METRICS = ("bleu", "rouge")
"""The metrics that compare with a single text, whose words depend on its language."""
ANSWER_METRICS = ("exact_match", "f1")
"""The metrics that compare with one or several accepted answers, in a normal form."""
METRICS = TEXT_METRICS + ANSWER_METRICS
"""The metrics that compare a completion with the `answer` in the prompt's record. Bleu has one value for all
completions of a task, and the other metrics have one value per completion."""


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """The metrics of an evaluation task."""

    names: tuple[str, ...] = ()
    """Names from METRICS."""
    answer_form: AnswerForm = "plain"
    """The normal form in which ANSWER_METRICS compare."""
    references: tuple[str, ...] = ()
    """The correct answer of each prompt for TEXT_METRICS. Empty without one of them."""
    text_rules: TextRules | None = None
    """How TEXT_METRICS cut texts. None without one of them."""

    @property
    def signatures(self) -> dict[str, str]:
        """How each metric except bleu is computed, by the name of the metric. sacrebleu describes bleu."""
        signatures = {name: f"form:{self.answer_form}" for name in ANSWER_METRICS if name in self.names}
        if "rouge" in self.names and self.text_rules is not None:
            signatures["rouge"] = self.text_rules.rouge_signature
        return signatures


def task_metrics(
    names: Sequence[str], *, answer_form: AnswerForm, language: str | None, records: Sequence[PromptRecord]
) -> TaskMetrics:
    """Return the metrics with these names for the prompts of a task.

    `language` is the language of the answers, or None for the rules of their script.
    """
    if not set(names) & set(TEXT_METRICS):
        return TaskMetrics(names=tuple(names), answer_form=answer_form)
    references = tuple(answer for record in records for answer in accepted_answers(record.record.get("answer")))
    assert len(references) == len(records), "bleu and rouge need one answer for each prompt"
    return TaskMetrics(
        names=tuple(names),
        answer_form=answer_form,
        references=references,
        text_rules=choose_text_rules(references, language),
    )


def result_names(metric: str) -> tuple[str, ...]:
    """Return the names of a metric's results: those of `ROUGE_TYPES` for rouge, else only the name of the metric."""
    return ROUGE_TYPES if metric == "rouge" else (metric,)


def measure_completions(
    completions: Completions,
    records: Sequence[PromptRecord],
    *,
    verifiers: Mapping[str, Verifier],
    metrics: TaskMetrics,
) -> dict[str, list[float]]:
    """Return one value per completion, in the order of the prompts, for each verifier and each metric except bleu.

    The keys of the result are the names of the verifiers and the `result_names` of the metrics. The keys of `verifiers`
    are the names of the verifiers. `records` are the prompts that were completed.
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
    for name, metric in (("exact_match", exact_match), ("f1", word_f1)):
        if name in metrics.names:
            values[name] = [
                metric(text, answers, metrics.answer_form)
                for text, answers in zip(completions.texts, accepted, strict=True)
            ]
    if "rouge" in metrics.names:
        assert metrics.text_rules is not None, "rouge needs the rules of the task's texts"
        values |= rouge(completions.texts, metrics.references, metrics.text_rules)
    return values


def accepted_answers(answer: Any) -> list[str]:
    """Return the `answer` of a record as a list of texts, each of which is a correct answer."""
    return [str(item) for item in answer] if isinstance(answer, list) else [str(answer)]


def answer_problem(answer: Any, metrics: Sequence[str], answer_form: AnswerForm) -> str | None:
    """Return why a record's `answer` cannot be used by these metrics, with a remedy. None if it can be used.

    The number 0 is an answer, unlike an empty text or list.
    """
    items = answer if isinstance(answer, list) else [answer]
    needed_by = ", ".join(metrics)
    if not items or any(item is None or not str(item).strip() for item in items):
        return f"the field `answer` is missing or empty; {needed_by} need it"
    if any(not isinstance(item, str | int | float) for item in items):
        return f"`answer` must be a text, a number or a list of them, so that {needed_by} can compare with it"
    if isinstance(answer, list) and set(TEXT_METRICS) & set(metrics):
        return "`answer` is a list, but bleu and rouge compare with a single text; make it a string"
    if answer_form == "numeric" and set(ANSWER_METRICS) & set(metrics):
        without_number = next((item for item in items if not number_values(str(item))), None)
        if without_number is not None:
            return f"the answer {without_number!r} has no number; remove answer_form: numeric, or the record"
    return None
