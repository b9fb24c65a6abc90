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
        ("ppo", {"kl_loss": "k3"}),
        ("rloo", {"gamma": 0.9}),
        ("reinforce++", {"gae_lambda": 1.0}),
        ("rloo", {"clip_range": 0.1}),
    ],
)
def test_a_setting_that_the_algorithm_does_not_read_is_rejected(algorithm: str, changed: dict) -> None:
    (name,) = changed
    with pytest.raises(ValueError, match=rf"learning.{name}: .* because {re.escape(algorithm)} does not read"):
        ALGORITHMS[algorithm].check(replace(LEARNING, algorithm=algorithm, **changed), "learning")
    reader = "grpo" if name == "kl_loss" else "ppo"
    ALGORITHMS[reader].check(replace(LEARNING, algorithm=reader, **changed), "learning")


def test_an_algorithm_without_a_kl_term_has_no_reference_and_rejects_a_kl_coefficient() -> None:
    without_kl = replace(ALGORITHMS["rloo"], settings=())
    for coefficient in (0.0, LEARNING.kl_coefficient):
        without_kl.check(replace(LEARNING, kl_coefficient=coefficient), "learning")
        assert not without_kl.needs_reference(replace(LEARNING, kl_coefficient=coefficient))
    with pytest.raises(ValueError, match=r"learning.kl_coefficient: 0.3 would have no effect"):
        without_kl.check(replace(LEARNING, kl_coefficient=0.3), "learning")
    assert ALGORITHMS["rloo"].needs_reference(LEARNING)
    assert not ALGORITHMS["rloo"].needs_reference(replace(LEARNING, kl_coefficient=0.0))


@pytest.mark.parametrize("changed", [{"epochs": 2}, {"minibatches": 2}])
def test_an_on_policy_loss_allows_one_optimizer_step_in_an_rlhf_step(changed: dict) -> None:
    on_policy = replace(ALGORITHMS["rloo"], needs_on_policy=True)
    on_policy.check(LEARNING, "learning")
    with pytest.raises(ValueError, match=r"learning.epochs=\d, learning.minibatches=\d: must be 1"):
        on_policy.check(replace(LEARNING, **changed), "learning")
    ALGORITHMS["rloo"].check(replace(LEARNING, **changed), "learning")
