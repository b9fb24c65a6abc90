"""Metrics of generated text and of a model's probability of text, with bootstrap intervals.

Pure functions on strings and arrays: no model runs here. BLEU and ROUGE are those of sacrebleu and rouge-score, so
that they compare with published ones. Legend: N records, R bootstrap resamples.
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
_MAX_RESAMPLED_ENTRIES = 2_000_000
"""Indices drawn at once, so that the memory of a bootstrap does not grow with R (16 MB)."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the percentile bootstrap interval around it."""

    value: float
    """Computed on the records themselves; not the mean of the resamples."""
    low: float
    high: float
    level: float = 0.95
    """Share of resamples inside [low, high]."""

    def excludes(self, number: float) -> bool:
        """Whether a number is outside of the interval."""
        return number < self.low or number > self.high


def perplexity(nats: float, num_tokens: int) -> float:
    """exp of the mean negative log-likelihood of a token: between equal tokenizers only."""
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
    """The mean of the values, or the ratio sum(values) / sum(weights), over N records drawn with replacement.

    Weights are for quantities such as bits per byte: values are the documents' bits, weights their bytes, and documents
    are drawn. With all values equal the interval has no width, however few the records, so a share near 0 or 1 of few
    records looks more certain than it is.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    weights_N = np.ones_like(values_N) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    if values_N.ndim != 1 or values_N.shape != weights_N.shape:
        raise ValueError(f"values {values_N.shape} and weights {weights_N.shape} must be equally long lists")
    if not len(values_N) or weights_N.sum() <= 0:
        raise ValueError("a bootstrap needs at least one record with a positive weight")
    stacked_NC = np.stack([values_N, weights_N], axis=1)
    sums_RC = _resampled_sums(stacked_NC, num_resamples=num_resamples, seed=seed)
    sums_RC = sums_RC[sums_RC[:, 1] > 0]  # a resample of records that all weigh nothing has no ratio
    return _percentiles(values_N.sum() / weights_N.sum(), sums_RC[:, 0] / sums_RC[:, 1], level)


def paired_bootstrap(
    before_N: ArrayLike, after_N: ArrayLike, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of after - before over N records that both systems answered, drawn as pairs.

    Drawing pairs removes what makes a prompt hard for both. The change is significant at 1 - level when the interval
    excludes zero.
    """
    before_N, after_N = np.asarray(before_N, dtype=np.float64), np.asarray(after_N, dtype=np.float64)
    if before_N.shape != after_N.shape:
        raise ValueError(
            f"a paired bootstrap needs the same records on both sides, got {before_N.shape} and {after_N.shape}"
        )
    return bootstrap_interval(after_N - before_N, level=level, num_resamples=num_resamples, seed=seed)


def _resampled_sums(stacked_NC: NDArray[np.float64], *, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Column sums [R, C] of R draws of N rows with replacement."""
    generator = np.random.default_rng(seed)
    num_records = len(stacked_NC)
    chunk = max(1, _MAX_RESAMPLED_ENTRIES // num_records)
    sums = []
    for start in range(0, num_resamples, chunk):
        indices = generator.integers(num_records, size=(min(chunk, num_resamples - start), num_records))
        sums.append(np.stack([column[indices].sum(axis=1) for column in stacked_NC.T], axis=1))
    return np.concatenate(sums)


def _percentiles(value: float, resampled_R: NDArray[np.float64], level: float) -> Interval:
    tail = (1.0 - level) / 2
    low, high = np.quantile(resampled_R, [tail, 1.0 - tail])
    return Interval(value=float(value), low=float(low), high=float(high), level=level)


def bleu(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[Interval, str]:
    """Corpus BLEU, 0 to 100, and sacrebleu's signature, which says how it was computed."""
    _require_pairs(predictions, references)
    metric = BLEU()
    signature_score = metric.corpus_score(list(predictions), [list(references)])
    segments = [metric.corpus_score([p], [[r]]) for p, r in zip(predictions, references, strict=True)]
    # Corpus BLEU is a function of sums over segments, so a resample needs no second tokenization.
    statistics_NC = np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in segments], dtype=np.float64)
    sums_RC = _resampled_sums(statistics_NC, num_resamples=num_resamples, seed=seed).astype(np.int64)
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
    return _percentiles(signature_score.score, np.array(scores), level), str(metric.get_signature())


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F-measures, 0 to 1, of rouge1, rouge2 and rougeL (Porter stemming on) for each of the N records."""
    from rouge_score import (
        rouge_scorer,  # late: it imports nltk and scikit-learn, three seconds that `plan` need not wait for
    )
    from rouge_score.tokenizers import DefaultTokenizer

    _require_pairs(predictions, references)
    # The default tokenizer, created here because the scorer would log that it creates it.
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=DefaultTokenizer(use_stemmer=True))
    scores = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    return {name: [float(score[name].fmeasure) for score in scores] for name in ROUGE_TYPES}


def _require_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"got {len(predictions)} predictions for {len(references)} references: each needs one")


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces (arXiv 1606.05250)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the prediction is one of the accepted answers in SQuAD's normal form, else 0.0."""
    return float(normalize_answer(prediction) in {normalize_answer(answer) for answer in answers})


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words shared with an accepted answer, the best over the answers, in SQuAD's normal form."""
    return max(_token_f1(prediction, answer) for answer in answers)


def _token_f1(prediction: str, answer: str) -> float:
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams, pooled over the texts (arXiv 1510.03055); 0.0 without any.

    It falls as the texts grow in number or length, so compare equal sets of prompts only. It comes without an
    interval: drawing texts with replacement repeats n-grams, so a bootstrap would report less variety than there is.
    """
    ngrams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.lower().split()
        ngrams.update(zip(*(words[offset:] for offset in range(n)), strict=False))
    return len(ngrams) / ngrams.total() if ngrams else 0.0
