"""The results of an evaluation, computed from likelihoods and completions.

`EvaluationResults` is the content of results.json. The names of its fields are the keys of the file. An
`Interval` is an estimate with its bootstrap confidence interval.

A measure is a metric such as exact match, or a verifier (a user-provided function). A task is a set of prompts together
with the measures for their completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actors.completion_measures import TaskMetrics
from actors.sentence_pairs import PairScores, SentencePair
from actors.text_metrics import TextRules, bleu, distinct_n
from model.metrics import Interval, bootstrap_interval, paired_bootstrap, perplexity

if TYPE_CHECKING:
    from actors.completions import Completions
    from actors.likelihood import TextScores

NATS_PER_BIT = float(np.log(2))

CompletionValues = Mapping[str, Sequence[float]]
"""The values of one model's completions in the order of the prompts, by the name of the measure."""

COMPLETION_STATISTICS = ("distinct_2", "completion_length")
"""The names of the results that `EvaluationResults.by_key` has for every task beside the measures."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The bootstrap with which all confidence intervals of an evaluation are computed."""

    num_resamples: int
    seed: int

    def interval(self, values_N: ArrayLike, weights_N: ArrayLike | None = None) -> Interval:
        """See `model.metrics.bootstrap_interval`. N is the number of resampled items, such as documents."""
        return bootstrap_interval(values_N, weights_N, num_resamples=self.num_resamples, seed=self.seed)

    def change(self, before_N: ArrayLike, after_N: ArrayLike) -> Interval:
        """See `model.metrics.paired_bootstrap`."""
        return paired_bootstrap(before_N, after_N, num_resamples=self.num_resamples, seed=self.seed)

    def bleu(self, texts: Sequence[str], references: Sequence[str], rules: TextRules) -> tuple[Interval, str]:
        """Return corpus BLEU and sacrebleu's signature."""
        return bleu(texts, references, rules, num_resamples=self.num_resamples, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class ModelLikelihood:
    """The likelihood of the held-out text under one model."""

    tokens: int
    """Number of predicted tokens, padding excluded. The end of each document counts as a token."""
    bits_per_byte: Interval
    perplexity: Interval
    """Perplexity per token. Comparable only between models with the same tokenizer."""
    tokenizer: str = ""
    """Fingerprint of the model's tokenizer."""


@dataclass(frozen=True, kw_only=True)
class TextComparison:
    """The difference between two models in bits per byte, paired by document."""

    before: str
    """Name of the model whose bits per byte are subtracted."""
    after: str
    """Name of the model from whose bits per byte those of `before` are subtracted."""
    bits_per_byte: Interval
    """Bits per byte of `after` minus those of `before`."""


@dataclass(frozen=True, kw_only=True)
class TextResults:
    """The likelihood of the held-out text under all models."""

    documents: int
    """Number of documents."""
    documents_left_out: int = 0
    """Number of documents that were left out, because a tokenizer does not keep their text exactly, so that their bits
    per byte could not be compared between tokenizers or with xz."""
    bytes: int
    """Total bytes of the documents' text."""
    xz_bits_per_byte: float | None
    """Bits per byte of the text after compression with `xz -9e`, for comparison. None if it was not measured."""
    models: dict[str, ModelLikelihood]
    """Results by the name of the model."""
    compare: list[TextComparison] = field(default_factory=list)
    """The comparisons of the pairs in the config of which both models are measured on the text."""


@dataclass(frozen=True, kw_only=True)
class GroupBias:
    """The fraction of sentence pairs in which a model finds the stereotype likelier. 0.5 means no preference."""

    pairs: int
    """Number of sentence pairs."""
    sentence: Interval
    """The fraction if the log-likelihoods of the complete sentences are compared."""
    continuation: Interval
    """The fraction if only the log-likelihoods of the text after the group's name are compared. This fraction is more
    meaningful than `sentence`, because `sentence` also depends on how common the names are."""


@dataclass(frozen=True, kw_only=True)
class RewardResults:
    """The results of a reward model on held-out preference pairs."""

    pairs: int
    """Number of pairs that were scored."""
    pairs_too_long: int
    """Number of pairs that were left out because they were too long for the reward model."""
    accuracy: Interval
    """Fraction of the pairs in which the chosen completion has the higher reward. A tie counts as half."""
    margin: Interval
    """Mean over the pairs of the chosen completion's reward minus the rejected completion's reward."""


@dataclass(frozen=True, kw_only=True)
class ModelTaskResults:
    """The results of one model's completions of one task."""

    measures: dict[str, Interval]
    """The result of each measure, by the name of the measure: bleu of all completions together, or the mean of another
    measure over the completions."""
    signatures: dict[str, str]
    """A short description of how a metric was computed, by the name of the metric: the tokenizer, the normal form."""
    distinct_2: float
    """Number of distinct word bigrams divided by the number of all word bigrams, over all completions together. Words
    are those of `data.words.plain_words`."""
    completion_length: Interval
    """Mean number of tokens in a completion."""
    finished: Interval
    """Fraction of the completions that ended with a stop token and were not truncated."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference between two models in one measure, paired by prompt."""

    before: str
    """Name of the model whose result is subtracted."""
    after: str
    """Name of the model from whose result the result of `before` is subtracted."""
    measure: str
    """Name of the measure."""
    difference: Interval
    """Mean over the prompts of the measure for `after` minus the measure for `before`."""


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """The results of all models on one task."""

    prompts: int
    """Number of prompts that were completed."""
    prompts_too_long: int = 0
    """Number of prompts that were left out for all models, because with their completions they are longer than the
    context of one of the models."""
    models: dict[str, ModelTaskResults]
    """Results by the name of the model."""
    compare: list[Comparison]
    """The comparisons of the pairs in the config of which both models complete the task, one for each measure except
    bleu."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """All results of an evaluation. A result is None if the config does not ask for it."""

    models: dict[str, str]
    """Artifact id of each model, by the name of the model."""
    order: list[str]
    """The names of the models in the order of the config."""
    text: TextResults | None = None
    generation: dict[str, TaskResults] | None = None
    """Results by the name of the task."""
    bias: dict[str, dict[str, GroupBias]] | None = None
    """Results by the name of the model and the kind of social group. The kind `all` has all sentence pairs."""
    reward: RewardResults | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return the content of results.json, without the results that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def by_key(self) -> dict[str, float]:
        """Return the most important numbers, for the log and the summary.

        These are estimates. Only the comparisons also have the ends of their confidence intervals. The keys start with
        the name of a model, as in `sft/perplexity`, with the names of two compared models, or with `xz` or `reward`.
        """
        return dict(_estimates(self))


@dataclass(frozen=True, kw_only=True)
class ModelSample:
    """One model's completion of one prompt."""

    text: str
    finished: bool
    """Whether the completion ended with a stop token. Otherwise it was truncated."""
    measures: dict[str, float]
    """Values by the name of the measure."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSample:
    """A line of samples.jsonl: one prompt with the completions of all models."""

    task: str
    prompt: str
    completions: dict[str, ModelSample]
    """Completions by the name of the model."""


def text_results(
    scores: Mapping[str, TextScores],
    tokenizers: Mapping[str, str],
    *,
    num_left_out: int,
    xz_bytes: int | None,
    compare: Sequence[Sequence[str]],
    bootstrap: Bootstrap,
) -> TextResults:
    """Compute bits per byte and perplexity of every model. The keys of `scores` are the names of the models.

    All scores are of the same documents, and `num_left_out` other documents were left out. `tokenizers` has the
    fingerprint of each model's tokenizer. `xz_bytes` is the size of the text after compression with `xz -9e`, or None
    if it was not measured. `compare` has pairs (before, after) of names of models.
    """
    first_scores = next(iter(scores.values()))
    num_bytes = int(first_scores.num_bytes.sum())
    return TextResults(
        documents=len(first_scores.index),
        documents_left_out=num_left_out,
        bytes=num_bytes,
        xz_bits_per_byte=None if xz_bytes is None else 8 * xz_bytes / num_bytes,
        models={name: model_likelihood(scores[name], tokenizers[name], bootstrap) for name in scores},
        compare=[
            TextComparison(
                before=before,
                after=after,
                bits_per_byte=bootstrap.interval(
                    (scores[after].nats - scores[before].nats) / NATS_PER_BIT, first_scores.num_bytes
                ),
            )
            for before, after in compare
            if before in scores and after in scores
        ],
    )


def model_likelihood(scores: TextScores, tokenizer: str, bootstrap: Bootstrap) -> ModelLikelihood:
    """Compute bits per byte and perplexity per token of one model. The bootstrap resamples documents.

    `tokenizer` is the fingerprint of the model's tokenizer.
    """
    nats_per_token = bootstrap.interval(scores.nats, scores.num_tokens)
    return ModelLikelihood(
        tokens=int(scores.num_tokens.sum()),
        bits_per_byte=bootstrap.interval(scores.nats / NATS_PER_BIT, scores.num_bytes),
        # `nats_per_token` is already divided by the number of tokens, so the second argument of `perplexity` is 1.
        perplexity=Interval(
            value=perplexity(nats_per_token.value, 1),
            low=perplexity(nats_per_token.low, 1),
            high=perplexity(nats_per_token.high, 1),
            level=nats_per_token.level,
        ),
        tokenizer=tokenizer,
    )


def bias_results(pairs: Sequence[SentencePair], scores: PairScores, bootstrap: Bootstrap) -> dict[str, GroupBias]:
    """Compute the fraction of pairs in which a model finds the stereotype likelier.

    The keys of the result are the kinds of social groups, and `all` for all pairs.
    """
    groups = np.array([pair.group for pair in pairs])
    results = {}
    for group in ("all", *dict.fromkeys(groups.tolist())):
        in_group = np.ones(len(groups), dtype=bool) if group == "all" else groups == group
        results[group] = GroupBias(
            pairs=int(in_group.sum()),
            sentence=bootstrap.interval(_preferences(scores.sentence[in_group])),
            continuation=bootstrap.interval(_preferences(scores.continuation[in_group])),
        )
    return results


def reward_results(margins: NDArray[np.float64], num_too_long: int, bootstrap: Bootstrap) -> RewardResults:
    """Compute accuracy and margin from the margins of all pairs that were scored."""
    return RewardResults(
        pairs=len(margins),
        pairs_too_long=num_too_long,
        accuracy=bootstrap.interval(_preferences(margins)),
        margin=bootstrap.interval(margins),
    )


def _preferences(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 for each difference above 0, 0.5 for each difference of 0, and 0 for each difference below 0."""
    return (differences > 0) + 0.5 * (differences == 0)


def task_results(
    completions: Mapping[str, Completions],
    values: Mapping[str, CompletionValues],
    *,
    metrics: TaskMetrics,
    compare: Sequence[Sequence[str]],
    bootstrap: Bootstrap,
    num_too_long: int = 0,
) -> TaskResults:
    """Compute the results of one task. The keys of `completions` and `values` are the names of the models.

    `compare` has pairs (before, after) of names of models. A pair is left out if one of its models is not in `values`.
    `values` does not contain BLEU, because BLEU has no value for a single completion. `num_too_long` prompts were left
    out.
    """
    return TaskResults(
        prompts=len(next(iter(completions.values())).texts),
        prompts_too_long=num_too_long,
        models={
            name: model_task_results(model_completions, values[name], metrics, bootstrap)
            for name, model_completions in completions.items()
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


def model_task_results(
    completions: Completions, values: CompletionValues, metrics: TaskMetrics, bootstrap: Bootstrap
) -> ModelTaskResults:
    """Compute the results of one model's completions of one task."""
    measures = {measure: bootstrap.interval(measure_values) for measure, measure_values in values.items()}
    signatures = metrics.signatures
    if "bleu" in metrics.names:
        assert metrics.text_rules is not None, "bleu needs the rules of the task's texts"
        measures["bleu"], signatures["bleu"] = bootstrap.bleu(completions.texts, metrics.references, metrics.text_rules)
    return ModelTaskResults(
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
    values: Mapping[str, CompletionValues],
) -> Iterator[EvaluationSample]:
    """Yield each prompt of a task with the completions of all models and their measures.

    The keys of `completions` and `values` are the names of the models.
    """
    for index, prompt in enumerate(prompts):
        yield EvaluationSample(
            task=task,
            prompt=prompt,
            completions={
                name: ModelSample(
                    text=model_completions.texts[index],
                    finished=model_completions.rollouts[index].finished,
                    measures={measure: measure_values[index] for measure, measure_values in values[name].items()},
                )
                for name, model_completions in completions.items()
            },
        )


def _estimates(results: EvaluationResults) -> Iterator[tuple[str, float]]:
    """Yield the items of `EvaluationResults.by_key`."""
    if results.text is not None:
        for name, text in results.text.models.items():
            yield f"{name}/bits_per_byte", text.bits_per_byte.value
            yield f"{name}/perplexity", text.perplexity.value
        if results.text.xz_bits_per_byte is not None:
            yield "xz/bits_per_byte", results.text.xz_bits_per_byte
        for change in results.text.compare:
            yield from _interval_items(f"{change.before}-{change.after}/bits_per_byte", change.bits_per_byte)
    for task, task_result in (results.generation or {}).items():
        yield from _task_estimates(task, task_result)
    for name, groups in (results.bias or {}).items():
        yield f"{name}/stereotype_share", groups["all"].continuation.value
    if results.reward is not None:
        yield "reward/accuracy", results.reward.accuracy.value


def _task_estimates(task: str, results: TaskResults) -> Iterator[tuple[str, float]]:
    """Yield the items of `EvaluationResults.by_key` for one task."""
    for name, model in results.models.items():
        for measure, estimate in model.measures.items():
            yield f"{name}/{task}/{measure}", estimate.value
        yield f"{name}/{task}/distinct_2", model.distinct_2
        yield f"{name}/{task}/completion_length", model.completion_length.value
    for comparison in results.compare:
        prefix = f"{comparison.before}-{comparison.after}/{task}/{comparison.measure}"
        yield from _interval_items(prefix, comparison.difference)


def _interval_items(prefix: str, interval: Interval) -> Iterator[tuple[str, float]]:
    """Yield the estimate and the ends of an interval, with keys such as `prefix/low`."""
    yield f"{prefix}/value", interval.value
    yield f"{prefix}/low", interval.low
    yield f"{prefix}/high", interval.high
