"""Evaluation metrics with bootstrap confidence intervals: perplexity, BLEU, ROUGE, exact match, F1, distinct-n.

The functions take strings and arrays and run no model. BLEU is computed by sacrebleu and ROUGE by rouge-score, so that
they are comparable with published results.

Suffixes of array names give their dimensions: N records, R bootstrap resamples, C columns.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics.bleu import BLEU

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
_MAX_SAMPLED_INDICES = 2_000_000
"""Maximum number of record indices that a bootstrap samples at once. They take 16 MB, however many resamples there are.
One resample is never split, so with more records than this number it takes more memory."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval [low, high] from a percentile bootstrap."""

    value: float
    """The estimate. It is computed from the records, not from the resamples."""
    low: float
    """Lower end of the confidence interval."""
    high: float
    """Upper end of the confidence interval."""
    level: float = 0.95
    """Confidence level: the share of resamples whose estimate is in [low, high]."""

    def excludes(self, number: float) -> bool:
        """Return whether `number` is outside of the confidence interval."""
        return number < self.low or number > self.high


def perplexity(nats: float, num_tokens: int) -> float:
    """Return exp(nats / num_tokens), where `nats` is the negative log-likelihood of all tokens.

    Perplexities are comparable only between models with the same tokenizer.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens}: perplexity needs at least one token")
    return math.exp(nats / num_tokens)


def bootstrap_interval(
    values_N: ArrayLike,
    weights_N: ArrayLike | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return sum(values) / sum(weights) with its confidence interval. Without weights this is the mean of the values.

    Weights are for a ratio of sums such as bits per byte, where values_N are the bits and weights_N the bytes of the N
    documents.

    If all values are equal, the interval has width 0 even for few records. A share near 0 or 1 that is estimated from
    few records is therefore less certain than its interval suggests.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    weights_N = np.ones_like(values_N) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    if values_N.ndim != 1 or values_N.shape != weights_N.shape:
        raise ValueError(
            f"values and weights must be one-dimensional and equally long, but their shapes are {values_N.shape} and "
            f"{weights_N.shape}"
        )
    if not len(values_N) or weights_N.sum() <= 0:
        raise ValueError("a bootstrap needs at least one record with a positive weight")
    columns_NC = np.stack([values_N, weights_N], axis=1)
    sums_RC = _resample_sums(columns_NC, num_resamples=num_resamples, seed=seed)
    sums_RC = sums_RC[sums_RC[:, 1] > 0]  # if all weights of a resample are 0, it has no ratio
    return _percentile_interval(values_N.sum() / weights_N.sum(), sums_RC[:, 0] / sums_RC[:, 1], level)


def paired_bootstrap(
    before_N: ArrayLike, after_N: ArrayLike, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of after - before over N records, with its confidence interval.

    before_N[i] and after_N[i] are the results of two systems on record i. The bootstrap resamples these pairs, so that
    the interval does not include the variance between easy and difficult records. The difference is significant at the
    significance level 1 - `level` if the interval excludes 0.
    """
    before_N, after_N = np.asarray(before_N, dtype=np.float64), np.asarray(after_N, dtype=np.float64)
    if before_N.shape != after_N.shape:
        raise ValueError(
            f"a paired bootstrap needs two results for every record, but the shapes of the results are "
            f"{before_N.shape} and {after_N.shape}"
        )
    return bootstrap_interval(after_N - before_N, level=level, num_resamples=num_resamples, seed=seed)


def _resample_sums(columns_NC: NDArray[np.float64], *, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the column sums [R, C] of R resamples. A resample has N rows, sampled with replacement."""
    generator = np.random.default_rng(seed)
    num_records = len(columns_NC)
    resamples_per_chunk = max(1, _MAX_SAMPLED_INDICES // num_records)
    sums = []
    for start in range(0, num_resamples, resamples_per_chunk):
        indices = generator.integers(num_records, size=(min(resamples_per_chunk, num_resamples - start), num_records))
        sums.append(np.stack([column[indices].sum(axis=1) for column in columns_NC.T], axis=1))
    return np.concatenate(sums)


def _percentile_interval(value: float, resampled_R: NDArray[np.float64], level: float) -> Interval:
    tail_share = (1.0 - level) / 2
    low, high = np.quantile(resampled_R, [tail_share, 1.0 - tail_share])
    return Interval(value=float(value), low=float(low), high=float(high), level=level)


def bleu(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[Interval, str]:
    """Return corpus BLEU between 0 and 100 with its confidence interval, and sacrebleu's signature.

    references[i] is the only reference of predictions[i]. The signature lists the settings and the version with which
    sacrebleu computed the score.
    """
    _require_equal_length(predictions, references)
    metric = BLEU()
    score_of_all = metric.corpus_score(list(predictions), [list(references)])
    segments = [metric.corpus_score([p], [[r]]) for p, r in zip(predictions, references, strict=True)]
    # Corpus BLEU is a function of n-gram counts summed over the segments. A resample therefore sums the counts of its
    # segments and does not tokenize them again.
    statistics_NC = np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in segments], dtype=np.float64)
    sums_RC = _resample_sums(statistics_NC, num_resamples=num_resamples, seed=seed).astype(np.int64)
    order = metric.max_ngram_order
    scores = [
        BLEU.compute_bleu(
            correct=row[2 : 2 + order].tolist(),
            total=row[2 + order :].tolist(),
            sys_len=int(row[0]),
            ref_len=int(row[1]),
            smooth_method=metric.smooth_method,
            smooth_value=metric.smooth_value,
            effective_order=metric.effective_order,
        ).score
        for row in sums_RC
    ]
    return _percentile_interval(score_of_all.score, np.array(scores), level), str(metric.get_signature())


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Return {name: F-measure of each record}, where name is one of `ROUGE_TYPES`.

    references[i] is the only reference of predictions[i]. An F-measure is between 0 and 1. Words are stemmed (Porter).
    """
    # Imported here, so that `raymill plan` does not import nltk and scikit-learn, which takes three seconds.
    from rouge_score import rouge_scorer
    from rouge_score.tokenizers import DefaultTokenizer

    _require_equal_length(predictions, references)
    # This is the scorer's default tokenizer. It is created here because the scorer logs a line when it creates one.
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=DefaultTokenizer(use_stemmer=True))
    scores = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    return {name: [float(score[name].fmeasure) for score in scores] for name in ROUGE_TYPES}


def _require_equal_length(predictions: Sequence[str], references: Sequence[str]) -> None:
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions and {len(references)} references: the numbers must be equal and "
            f"at least 1"
        )


def normalize_answer(text: str) -> str:
    """Normalize text as SQuAD does (arXiv 1606.05250): lower case, no punctuation, no articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if the normalized prediction equals one of the normalized accepted answers, else 0.0."""
    return float(normalize_answer(prediction) in {normalize_answer(answer) for answer in answers})


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the highest word F1 that the prediction has with one of the accepted answers, after normalization."""
    return max(_token_f1(prediction, answer) for answer in answers)


def _token_f1(prediction: str, answer: str) -> float:
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    num_shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * num_shared / (len(predicted) + len(expected))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the number of distinct word n-grams divided by the number of all word n-grams (arXiv 1510.03055).

    The n-grams of all texts are counted together. Without any n-gram the result is 0.0. The result falls when there are
    more or longer texts, so it is comparable only between sets of completions of the same prompts.

    There is no confidence interval, because a bootstrap would underestimate distinct-n: sampling texts with replacement
    repeats n-grams.
    """
    ngrams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.lower().split()
        ngrams.update(zip(*(words[offset:] for offset in range(n)), strict=False))
    return len(ngrams) / ngrams.total() if ngrams else 0.0
