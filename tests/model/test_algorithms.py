"""The entries of `ALGORITHMS`: what they need and which settings they read."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from model.algorithms import ALGORITHMS
from model.learning import LearningConfig

LEARNING = LearningConfig()


def test_only_ppo_needs_a_critic_and_only_grpo_and_rloo_need_groups() -> None:
    assert [name for name, algorithm in ALGORITHMS.items() if algorithm.needs_critic] == ["ppo"]
    assert [name for name, algorithm in ALGORITHMS.items() if algorithm.needs_groups] == ["grpo", "rloo"]


@pytest.mark.parametrize(
    ("algorithm", "changed"),
    [
        ("grpo", {"critic_lr": 1e-3}),
        ("grpo", {"value_clip_range": 0.3}),
        ("rloo", {"gamma": 0.9}),
        ("reinforce++", {"gae_lambda": 1.0}),
        ("rloo", {"clip_range": 0.1}),
    ],
)
def test_a_setting_that_the_algorithm_does_not_read_is_rejected(algorithm: str, changed: dict) -> None:
    (name,) = changed
    with pytest.raises(ValueError, match=rf"learning.{name}: .* because {re.escape(algorithm)} does not read"):
        ALGORITHMS[algorithm].check(replace(LEARNING, algorithm=algorithm, **changed), "learning")
    ALGORITHMS["ppo"].check(replace(LEARNING, algorithm="ppo", **changed), "learning")
