"""Perplexity and bootstrap intervals, compared with numbers computed by hand and with closed forms."""

import math

import numpy as np
import pytest

from model import metrics


def test_perplexity_of_a_uniform_guess() -> None:
    nats = 8 * math.log(16)
    assert metrics.perplexity(nats, 8) == pytest.approx(16.0)


def test_empty_text_has_no_perplexity() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        metrics.perplexity(1.0, 0)


def test_bootstrap_of_a_mean_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    interval = metrics.bootstrap_interval(values, num_resamples=4000, seed=5)
    half_width = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_a_bootstrap_depends_on_its_seed_and_not_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=7)
    whole = metrics.bootstrap_interval(values, seed=3)
    assert metrics.bootstrap_interval(values, seed=3) == whole
    assert metrics.bootstrap_interval(values, seed=4) != whole
    monkeypatch.setattr(metrics, "_MAX_SAMPLED_INDICES", 35)
    assert metrics.bootstrap_interval(values, seed=3) == whole


def test_weighted_bootstrap_is_the_ratio_of_sums() -> None:
    # Documents of 10 and 30 bytes with 20 and 30 bits: 50 bits over 40 bytes, not the mean of 2 and 1. The ends of the
    # interval are the resamples with the same document twice.
    interval = metrics.bootstrap_interval([20.0, 30.0], [10.0, 30.0])
    assert interval.value == pytest.approx(1.25)
    assert (interval.low, interval.high) == (pytest.approx(1.0), pytest.approx(2.0))


def test_a_95_percent_interval_covers_the_true_mean_in_about_95_percent_of_trials() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        interval = metrics.bootstrap_interval(generator.exponential(1.0, size=80), num_resamples=400, seed=trial)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.88 <= covered / 300 <= 0.98


def test_a_paired_bootstrap_finds_a_small_change_that_an_unpaired_one_does_not() -> None:
    generator = np.random.default_rng(2)
    before = generator.normal(0.0, 10.0, size=200)
    after = before + 0.5 + generator.normal(0.0, 0.5, size=200)
    change = metrics.paired_bootstrap(before, after)
    assert change.value == pytest.approx(np.mean(after - before))
    assert change.low > 0.3 and change.excludes(0.0) and not change.excludes(0.5)
    shuffled = metrics.paired_bootstrap(before, generator.permutation(after))
    assert not shuffled.excludes(0.0)


def test_paired_bootstrap_rejects_unequal_numbers_of_results() -> None:
    with pytest.raises(ValueError, match="two results for every record"):
        metrics.paired_bootstrap([1.0, 2.0], [1.0])
