"""A learning setting out of range is rejected with a message that has the path of the field."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.learning import LearningConfig

LEARNING = LearningConfig()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.0}, "learning.lr: 0.0 must be above 0"),
        ({"minibatches": 0}, "learning.minibatches: 0 must be at least 1"),
        ({"gamma": 1.5}, "learning.gamma: 1.5 must be between 0 and 1"),
        ({"kl_coefficient": -1.0}, "learning.kl_coefficient: -1.0 must not be negative"),
        (
            {"kl_coefficient": 0.0, "kl_loss": "k3"},
            "learning.kl_loss: k3 would have no effect, because .*coefficient is 0",
        ),
        ({"warmup_steps": -1}, "learning.warmup_steps: -1 must not be negative"),
    ],
)
def test_learning_settings_out_of_range_are_rejected(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LEARNING, **changed).check("learning")
