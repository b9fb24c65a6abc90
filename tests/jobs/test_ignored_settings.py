"""A setting that would have no effect in a stage is rejected by its name, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.frame.config_loader import build
from jobs.frame.stages import find_stage

CONFIGS: dict[str, dict[str, Any]] = {
    "pretrain": {"steps": 1000},
    "sft": {"chats": ["chats.jsonl"]},
    "reward": {"preferences": ["pairs.jsonl"]},
    "rlhf": {"prompts": ["prompts.jsonl"], "held_out_prompts": ["other.jsonl"], "reward": "reward"},
    "evaluate": {"models": {"a": "a", "b": "b"}, "text": "shards"},
    "compress": {"model": "sft", "text": "shards"},
    "serve": {"model": "sft"},
    "corpus": {"sources": [{"name": "web", "path": ["a.jsonl"], "format": "jsonl"}], "steps": []},
}
TASK = {"name": "t", "prompts": "p.jsonl", "metrics": ["f1"]}


def check(stage: str, changes: Mapping[str, Any]) -> None:
    definition = find_stage(stage)
    assert definition.check is not None
    definition.check(build(definition.config, {**CONFIGS[stage], **changes}))


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_config_without_such_a_setting_is_accepted(stage: str) -> None:
    check(stage, {})


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (
            "pretrain",
            {"init": "base", "max_length": 512},
            "max_length: 512 would have no effect, because `init` is set",
        ),
        ("pretrain", {"init": "base", "model": {"width": 64}}, "the ones in `model` would be ignored"),
        (
            "pretrain",
            {"steps": 100, "execution": {"keep_checkpoints": 5}},
            "execution.keep_checkpoints: 5 would have no effect, because checkpoint_interval is not below steps",
        ),
        (
            "sft",
            {"steps": 20, "optimizer": {"warmup_steps": 20, "final_lr_ratio": 0.3}},
            "optimizer.final_lr_ratio: 0.3 would have no effect, because all 20 steps belong to the warm-up",
        ),
        ("reward", {"execution": {"keep_checkpoints": 3}}, "execution.keep_checkpoints: 3 would have no effect"),
        (
            "rlhf",
            {"execution": {"generators": {"workers": 8}}, "rollouts": {"prompts_per_step": 16}},
            "execution.generators.workers: 8 engines, but a step has only 1 generation batches",
        ),
        (
            "rlhf",
            {"steps": 50, "execution": {"held_out_interval": 50}},
            "execution.held_out_interval: 50 would have no effect, because the run has 50 steps",
        ),
        ("evaluate", {"text": None}, "else nothing would be measured"),
        ("evaluate", {"text": None, "generation": [TASK], "overlap": 8}, "overlap: 8 would have no effect"),
        (
            "evaluate",
            {"text": None, "generation": [TASK], "text_models": ["a"]},
            "text_models: ['a'] would have no effect, because `text` is not set",
        ),
        (
            "evaluate",
            {"text": None, "generation": [TASK], "execution": {"scorers": {"workers": 4}}},
            "execution.scorers: this setting would have no effect",
        ),
        ("evaluate", {"sampling": {"temperature": 0.3}}, "sampling.temperature: 0.3 would have no effect"),
        ("evaluate", {"sampling": {"precision": "float32"}}, "sampling.precision: float32 would have no effect"),
        (
            "evaluate",
            {"text": None, "stereotype_pairs": "pairs.jsonl", "precision": "float32"},
            "precision: float32 would have no effect, because only text and preferences are scored in it",
        ),
        ("evaluate", {"max_quarantined": 0.1}, "max_quarantined: 0.1 would have no effect, because `preferences` is"),
        ("evaluate", {"sampling": {"max_new_tokens": 8}}, "sampling.max_new_tokens: 8 would have no effect"),
        ("evaluate", {"execution": {"generators": {"workers": 2}}}, "execution.generators: this setting would have"),
        (
            "evaluate",
            {"generation": [TASK], "sampling": {"temperature": 0.0, "seed": 3}},
            "sampling.seed: 3 would have no effect, because with temperature 0 nothing is sampled",
        ),
        (
            "evaluate",
            {"text_models": ["a"], "compare": [["a", "b"]]},
            "compare[0]: ['a', 'b'] would have no effect",
        ),
        (
            "evaluate",
            {"text": None, "generation": [{**TASK, "models": ["a"]}], "compare": [["a", "b"]]},
            "because no task of `generation` is completed by both models",
        ),
        ("compress", {"execution": {"worker": {"workers": 4}}}, "execution.worker.workers: 4 would have no effect"),
        ("serve", {"seed": 7}, "seed: 7 would have no effect, because with temperature 0 nothing is sampled"),
        ("corpus", {"fairness_budget": 0.1}, "fairness_budget: 0.1 would have no effect, because without `steps`"),
    ],
)
def test_a_setting_without_an_effect_is_rejected(stage: str, changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check(stage, changes)


def test_settings_that_have_an_effect_are_accepted() -> None:
    for stage, changes in {
        "rlhf": {"rollouts": {"prompts_per_step": 128, "generation_batch_prompts": 16}},
        "serve": {"temperature": 0.7, "seed": 7},
        "sft": {"execution": {"keep_checkpoints": 5}},
        "evaluate": {"compare": [["a", "b"]]},  # the bits per byte of both are measured
    }.items():
        check(stage, changes)


def test_engines_without_a_generation_batch_are_rejected(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n' * 130)
    definition = find_stage("evaluate")
    assert definition.check_sources is not None

    def check_workers(workers: int) -> None:
        execution = {"generators": {"workers": workers}}
        generation = [{**TASK, "prompts": str(prompts)}]
        config = {"models": {"a": "a", "b": "b"}, "generation": generation, "execution": execution}
        definition.check_sources(build(definition.config, config))

    check_workers(3)  # batches of 64, 64 and 2 prompts for each model, one model after the other
    with pytest.raises(ValueError, match="execution.generators.workers: 4 engines, but no model has more than 3 gener"):
        check_workers(4)
