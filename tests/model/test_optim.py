"""Learning rate schedules, and the parameters with weight decay."""

from __future__ import annotations

import pytest

from model.optim import adamw, constant_schedule, warmup_cosine
from model.transformer import Transformer
from model.transformer_config import TransformerConfig


def test_warmup_is_linear_and_cosine_ends_at_the_final_ratio() -> None:
    schedule = warmup_cosine(peak_lr=1.0, warmup_steps=4, total_steps=14, final_ratio=0.2)
    assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    # After five of ten decay steps the learning rate is halfway between 1 and 0.2.
    assert schedule(8) == pytest.approx(0.6)
    assert schedule(13) == pytest.approx(0.2)
    assert schedule(1000) == pytest.approx(0.2)


def test_no_warmup_and_no_decay_are_allowed() -> None:
    assert warmup_cosine(peak_lr=1.0, warmup_steps=0, total_steps=1, final_ratio=0.5)(0) == 0.5
    assert warmup_cosine(peak_lr=1.0, warmup_steps=2, total_steps=2)(1) == 1.0
    assert constant_schedule(3.0)(0) == 3.0
    assert constant_schedule(3.0, warmup_steps=2)(0) == 1.5


def test_more_warmup_steps_than_total_steps_are_rejected() -> None:
    with pytest.raises(ValueError, match="warmup_steps=3"):
        warmup_cosine(peak_lr=1.0, warmup_steps=3, total_steps=2)


def test_weight_decay_applies_to_matrices_and_not_to_norms() -> None:
    config = TransformerConfig(
        vocab_size=8, width=8, num_layers=1, num_heads=2, num_kv_heads=2, ffn_width=8, max_length=8
    )
    optimizer = adamw(Transformer(config), lr=0.1, weight_decay=0.3)
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert {name for name, value in decay.items() if value == 0} == {
        "layers.0.attention_norm.weight",
        "layers.0.ffn_norm.weight",
        "norm.weight",
    }
    assert set(decay.values()) == {0.0, 0.3}
