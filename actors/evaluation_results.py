"""The results of an evaluation, computed from scores and completions; each estimate has its bootstrap interval.

`EvaluationResults` is results.json: the field names are its keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actors.completions import Completions
from actors.likelihood import TextScores
from actors.sentence_pairs import PairScores, SentencePair
from model.metrics import Interval, bleu, bootstrap_interval, distinct_n, paired_bootstrap, perplexity

NATS_PER_BIT = float(np.log(2))

Values = Mapping[str, Sequence[float]]
"""A value of each completion, in the order of the prompts, by measure."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The resampling from which all intervals of an evaluation come."""

    num_resamples: int
    seed: int

    def interval(self, values_N: ArrayLike, weights_N: ArrayLike | None = None) -> Interval:
        """`model.metrics.bootstrap_interval`"""
        return bootstrap_interval(values_N, weights_N, num_resamples=self.num_resamples, seed=self.seed)

    def change(self, before_N: ArrayLike, after_N: ArrayLike) -> Interval:
        """`model.metrics.paired_bootstrap`"""
        return paired_bootstrap(before_N, after_N, num_resamples=self.num_resamples, seed=self.seed)

    def bleu(self, texts: Sequence[str], references: Sequence[str]) -> tuple[Interval, str]:
        """Corpus BLEU and its signature."""
        return bleu(texts, references, num_resamples=self.num_resamples, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class ModelLikelihood:
    """One model's likelihood of the held-out text."""

    tokens: int
    """Predicted tokens, the ends of documents included."""
    bits_per_byte: Interval
    perplexity: Interval
    """Of a token."""


@dataclass(frozen=True, kw_only=True)
class TextResults:
    """The likelihood of the held-out text."""

    documents: int
    bytes: int
    xz_bits_per_byte: float | None
    """Of `xz -9e` on the whole text; None when it was not compressed."""
    models: dict[str, ModelLikelihood]


@dataclass(frozen=True, kw_only=True)
class GroupBias:
    """Share of sentence pairs in which a model finds the stereotype likelier; 0.5 is no preference."""

    pairs: int
    sentence: Interval
    """By log p(whole sentence)."""
    continuation: Interval
    """By log p(what follows the group's name | the sentence up to and with it). Read this one: names of groups differ
    in how common they are, which `sentence` counts too."""


@dataclass(frozen=True, kw_only=True)
class RewardResults:
    """How a reward model orders held-out preference pairs."""

    pairs: int
    pairs_too_long: int
    accuracy: Interval
    """Share of pairs in order; a tie counts half."""
    margin: Interval
    """Mean reward of the chosen minus that of the rejected completion."""


@dataclass(frozen=True, kw_only=True)
class ModelCompletions:
    """What is measured of one model's completions of one task."""

    measures: dict[str, Interval]
    signatures: dict[str, str]
    """How a metric was computed, by its name (sacrebleu's signature)."""
    distinct_2: float
    completion_length: Interval
    """Tokens of a completion."""
    finished: Interval
    """Share of completions that ended by themselves."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The change of one measure from one model to another, paired by prompt."""

    before: str
    after: str
    measure: str
    difference: Interval


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """One generation task."""

    prompts: int
    models: dict[str, ModelCompletions]
    compare: list[Comparison]


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """All that an evaluation measured; None for the parts that its config does not ask for."""

    models: dict[str, str]
    """Artifact id by the model's name."""
    order: list[str]
    """The models' names in the order of the config."""
    text: TextResults | None = None
    generation: dict[str, TaskResults] | None = None
    """By task."""
    bias: dict[str, dict[str, GroupBias]] | None = None
    """By model and group; the group `all` is all pairs."""
    reward: RewardResults | None = None

    def to_plain(self) -> dict[str, Any]:
        """The content of results.json, without the parts that were not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def by_key(self) -> dict[str, float]:
        """The estimates without their intervals by a key such as `sft/perplexity`, for the log and the summary."""
        return dict(_estimates(self))


@dataclass(frozen=True, kw_only=True)
class ModelSample:
    """One model's completion of one prompt."""

    text: str
    finished: bool
    measures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EvaluationSample:
    """A line of samples.jsonl: one prompt with every model's completion side by side."""

    task: str
    prompt: str
    completions: dict[str, ModelSample]


def text_results(scores: Mapping[str, TextScores], xz_bytes: int | None, bootstrap: Bootstrap) -> TextResults:
    """Bits per byte and perplexity of every model."""
    one = next(iter(scores.values()))
    num_bytes = int(one.num_bytes.sum())
    return TextResults(
        documents=len(one.index),
        bytes=num_bytes,
        xz_bits_per_byte=None if xz_bytes is None else 8 * xz_bytes / num_bytes,
        models={name: model_likelihood(of_model, bootstrap) for name, of_model in scores.items()},
    )


def model_likelihood(scores: TextScores, bootstrap: Bootstrap) -> ModelLikelihood:
    """Bits per byte and perplexity of a token, resampled by document; the ends of documents count as tokens."""
    nats_per_token = bootstrap.interval(scores.nats, scores.num_tokens)
    return ModelLikelihood(
        tokens=int(scores.num_tokens.sum()),
        bits_per_byte=bootstrap.interval(scores.nats / NATS_PER_BIT, scores.num_bytes),
        perplexity=Interval(
            value=perplexity(nats_per_token.value, 1),
            low=perplexity(nats_per_token.low, 1),
            high=perplexity(nats_per_token.high, 1),
            level=nats_per_token.level,
        ),
    )


def bias_results(pairs: Sequence[SentencePair], scores: PairScores, bootstrap: Bootstrap) -> dict[str, GroupBias]:
    """The share of pairs in which the model finds the stereotype likelier, over all pairs and by group."""
    groups = np.array([pair.group for pair in pairs])
    results = {}
    for group in ("all", *dict.fromkeys(groups.tolist())):
        chosen = np.ones(len(groups), dtype=bool) if group == "all" else groups == group
        results[group] = GroupBias(
            pairs=int(chosen.sum()),
            sentence=bootstrap.interval(share_above_zero(scores.sentence[chosen])),
            continuation=bootstrap.interval(share_above_zero(scores.continuation[chosen])),
        )
    return results


def reward_results(margins: NDArray[np.float64], num_too_long: int, bootstrap: Bootstrap) -> RewardResults:
    """Accuracy and margin over the pairs that fit the reward model."""
    return RewardResults(
        pairs=len(margins),
        pairs_too_long=num_too_long,
        accuracy=bootstrap.interval(share_above_zero(margins)),
        margin=bootstrap.interval(margins),
    )


def share_above_zero(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for each difference above 0, 0.5 for a tie, 0 below."""
    return (differences > 0) + 0.5 * (differences == 0)


def task_results(
    completions: Mapping[str, Completions],
    values: Mapping[str, Values],
    *,
    references: Sequence[str] | None,
    compare: Sequence[Sequence[str]],
    bootstrap: Bootstrap,
) -> TaskResults:
    """The measures of every model's completions, and the change from one model to another for each pair in `compare`.

    BLEU is of the whole task, so it has no values; it is computed where there are `references`.
    """
    return TaskResults(
        prompts=len(next(iter(completions.values())).texts),
        models={
            name: model_completions(of_model, values[name], references, bootstrap)
            for name, of_model in completions.items()
        },
        compare=[
            Comparison(
                before=before,
                after=after,
                measure=measure,
                difference=bootstrap.change(values[before][measure], values[after][measure]),
            )
            for before, after in compare
            if before in values and after in values
            for measure in values[before]
        ],
    )


def model_completions(
    completions: Completions, values: Values, references: Sequence[str] | None, bootstrap: Bootstrap
) -> ModelCompletions:
    """The measures of one model's completions, with their variety and length."""
    measures = {measure: bootstrap.interval(of_measure) for measure, of_measure in values.items()}
    signatures = {}
    if references is not None:
        measures["bleu"], signatures["bleu"] = bootstrap.bleu(completions.texts, references)
    return ModelCompletions(
        measures=measures,
        signatures=signatures,
        distinct_2=distinct_n(completions.texts, 2),
        completion_length=bootstrap.interval([len(rollout.completion_ids) for rollout in completions.rollouts]),
        finished=bootstrap.interval([rollout.finished for rollout in completions.rollouts]),
    )


def task_samples(
    task: str,
    prompts: Sequence[str],
    completions: Mapping[str, Completions],
    values: Mapping[str, Values],
) -> Iterator[EvaluationSample]:
    """Each prompt with every model's completion and its measures. `values` are by model."""
    for index, prompt in enumerate(prompts):
        yield EvaluationSample(
            task=task,
            prompt=prompt,
            completions={
                name: ModelSample(
                    text=of_model.texts[index],
                    finished=of_model.rollouts[index].finished,
                    measures={measure: of_measure[index] for measure, of_measure in values[name].items()},
                )
                for name, of_model in completions.items()
            },
        )


def _estimates(results: EvaluationResults) -> Iterator[tuple[str, float]]:
    if results.text is not None:
        for name, text in results.text.models.items():
            yield f"{name}/bits_per_byte", text.bits_per_byte.value
            yield f"{name}/perplexity", text.perplexity.value
        if results.text.xz_bits_per_byte is not None:
            yield "xz/bits_per_byte", results.text.xz_bits_per_byte
    for task, of_task in (results.generation or {}).items():
        yield from _task_estimates(task, of_task)
    for name, groups in (results.bias or {}).items():
        yield f"{name}/stereotype_share", groups["all"].continuation.value
    if results.reward is not None:
        yield "reward/accuracy", results.reward.accuracy.value


def _task_estimates(task: str, results: TaskResults) -> Iterator[tuple[str, float]]:
    for name, of_model in results.models.items():
        for measure, estimate in of_model.measures.items():
            yield f"{name}/{task}/{measure}", estimate.value
        yield f"{name}/{task}/distinct_2", of_model.distinct_2
        yield f"{name}/{task}/completion_length", of_model.completion_length.value
    for change in results.compare:
        for end in ("value", "low", "high"):
            key = f"{change.before}-{change.after}/{task}/{change.measure}/{end}"
            yield key, getattr(change.difference, end)
