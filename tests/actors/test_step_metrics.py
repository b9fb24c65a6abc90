"""The metrics of an RLHF step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from actors.rollout import Rollout
from actors.step_metrics import ReferenceKL, StepMetrics, StepTimes, UpdateMetrics, reference_kl, rollout_metrics
from actors.sync_check import LogprobDifference
from model.batch import batch_from_sequences


def test_distinct_2_counts_words_and_not_tokens() -> None:
    rollouts = [Rollout((1,), ids, (0.0,) * len(ids), 0, True) for ids in ((5, 6, 7), (8, 9))]
    metrics = rollout_metrics(rollouts, ["the cat sat", "the cat"], [1.0, 0.0])
    assert metrics.distinct_2 == 2 / 3  # the cat, cat sat, the cat
    assert metrics.completion_length == 2.5
    assert metrics.reward_mean == 0.5


def test_metrics_of_missing_actors_are_left_out() -> None:
    update = UpdateMetrics(loss=1.0, grad_norm=2.0, lr=3.0, objective={"policy/entropy": 4.0})
    metrics = StepMetrics(
        rollouts=rollout_metrics([Rollout((1,), (2,), (0.0,), 0, True)], ["a"], [1.0]),
        reference_kl=None,
        logprob_difference=LogprobDifference(max=1e-5, mean=1e-6),
        policy=update,
        value=None,
        generator_restarts=0,
        times=StepTimes(seconds={"generate": 1.0}, step_s=2.0, tokens_per_s=0.5),
    )
    by_key = metrics.by_key()
    assert by_key["policy/loss"] == 1.0 and by_key["policy/entropy"] == 4.0 and by_key["perf/generate_s"] == 1.0
    assert by_key["sync_check/logprob_difference_max"] == 1e-5 and by_key["rollout/reward_mean"] == 1.0
    assert not any(key.startswith("value/") or key == "rollout/reference_kl" for key in by_key)
    with_both = replace(metrics, value=update, reference_kl=ReferenceKL(mean=0.5, clip_fraction=0.25)).by_key()
    assert with_both["value/loss"] == 1.0 and with_both["rollout/reference_kl"] == 0.5
    assert with_both["rollout/reference_kl_clip_fraction"] == 0.25


def test_the_distance_from_the_reference_is_over_sampled_tokens_and_counts_those_that_a_reward_clips() -> None:
    batch = batch_from_sequences([[1, 2, 3], [4, 5]], [[False, True, True], [False, True]], length=2, pad_id=0)
    log_ratio = torch.tensor([[0.5, -12.0], [100.0, 77.0]])  # 77 is at padding
    computed = reference_kl(log_ratio, batch)
    assert computed.mean == pytest.approx((0.5 - 12 + 100) / 3) and computed.clip_fraction == pytest.approx(2 / 3)
