"""What a step's log says of its rollouts."""

from __future__ import annotations

from actors.rollout import Rollout
from actors.step_metrics import rollout_metrics


def test_variety_is_that_of_the_words_and_not_of_the_tokens() -> None:
    rollouts = [Rollout((1,), ids, (0.0,) * len(ids), 0, True) for ids in ((5, 6, 7), (8, 9))]
    metrics = rollout_metrics(rollouts, ["the cat sat", "the cat"], [1.0, 0.0])
    assert metrics.distinct_2 == 2 / 3  # the cat, cat sat, the cat
    assert metrics.response_length == 2.5
    assert metrics.reward_mean == 0.5
