"""The error for a wrong config names the field, the value, the rule and a remedy."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from cluster.plain import to_plain
from jobs.frame.config_loader import build, load_yaml, parse_override
from jobs.frame.identity import changed_fields
from jobs.frame.pipeline import load_pipeline
from jobs.frame.stages import find_stage


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    lr: float = 3e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])


@dataclass(frozen=True, kw_only=True)
class Source:
    path: str = field(metadata={"source": True})
    kind: Literal["text", "jsonl"] = "text"


@dataclass(frozen=True, kw_only=True)
class Execution:
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int
    optimizer: Optimizer = field(default_factory=Optimizer)
    sources: list[Source] = field(default_factory=list)
    model: str | None = None
    decay: Optimizer | None = None
    execution: Execution = field(default_factory=Execution)


def message(values: dict, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        build(Config, values, overrides, label="tiny.yaml")
    return str(caught.value)


def test_values_and_overrides_are_built_into_one_frozen_object():
    config = build(Config, {"steps": 5, "sources": [{"path": "a.txt"}]}, ["optimizer.lr=0.01", "steps=7"])
    assert config == Config(steps=7, optimizer=Optimizer(lr=0.01), sources=[Source(path="a.txt")])
    with pytest.raises(AttributeError):
        config.steps = 8  # pyright: ignore[reportAttributeAccessIssue]


def test_the_last_override_of_a_field_is_used():
    assert build(Config, {"steps": 1}, ["steps=2", "steps=3"]).steps == 3


def test_the_error_for_a_misspelled_key_suggests_the_nearest_name():
    assert message({"step": 5}) == "tiny.yaml: step is not a field; did you mean steps?"
    assert message({"steps": 5, "optimizer": {"learning": 1}}) == (
        "tiny.yaml: optimizer.learning is not a field; the fields here are: lr, betas"
    )
    assert message({"steps": 5, "sources": [{"path": "a", "knd": "text"}]}) == (
        "tiny.yaml: sources[0].knd is not a field; did you mean sources[0].kind?"
    )


def test_the_error_for_a_misspelled_override_suggests_the_nearest_name():
    assert message({"steps": 5}, "optimiser.lr=1") == ("tiny.yaml: optimiser is not a field; did you mean optimizer?")


def test_the_error_for_a_wrong_type_names_the_field_and_the_value():
    assert message({"steps": "many"}) == (
        "tiny.yaml: steps: Value 'many' of type 'str' could not be converted to Integer"
    )
    text = message({"steps": 5, "sources": [{"path": "a", "kind": "csv"}]})
    assert "sources[0].kind" in text and "csv" in text and "jsonl" in text


def test_the_error_for_a_missing_field_names_the_field():
    assert message({}) == "tiny.yaml: steps is missing and has no default; add it"
    assert message({"steps": 1, "sources": [{}]}) == (
        "tiny.yaml: sources[0].path is missing and has no default; add it"
    )


@dataclass(frozen=True, kw_only=True)
class Files:
    path: Any = field(metadata={"source": True, "type": str | list[str]})


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    sources: list[Files]


@pytest.mark.parametrize("path", ["a", ["a", "b"]])
def test_a_field_may_take_one_value_or_a_list(path: Any):
    assert build(FilesConfig, {"sources": [{"path": path}]}) == FilesConfig(sources=[Files(path=path)])
    with pytest.raises(ValueError, match=r"sources\[0\]\.path: must be a single value, but is a mapping"):
        build(FilesConfig, {"sources": [{"path": {"a": "b"}}]})
    with pytest.raises(ValueError, match=r"sources\[0\]\.path is missing"):
        build(FilesConfig, {"sources": [{}]})


@pytest.mark.parametrize("override", ["sources=[a", "steps=${", "sources.0.path=y"])
def test_the_error_for_an_override_that_cannot_be_merged_contains_the_override(override: str):
    text = message({"steps": 1, "sources": [{"path": "a"}]}, override)
    assert text.startswith(f"tiny.yaml: override {override!r} cannot be merged") and "check its value" in text


def test_an_interpolation_is_rejected_because_it_could_copy_a_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PASSWORD_OF_MINE", "hunter2")
    text = message({"steps": 1, "model": "https://host/x?user=me&x=${oc.env:PASSWORD_OF_MINE}"})
    assert text.startswith("tiny.yaml: model: ") and "interpolation" in text and "hunter2" not in text


@pytest.mark.parametrize("override", ["steps", "=5"])
def test_an_override_without_a_key_or_an_equals_sign_is_rejected(override: str):
    with pytest.raises(ValueError, match="expected field=value, such as optimizer.lr=0.001"):
        parse_override(override)


@pytest.mark.parametrize(
    "secret",
    [
        "sk-" + "a1B2" * 8,
        "hf_" + "x" * 34,
        "AKIA" + "ABCDEFGH12345678",
        "0123456789" * 4,
        "s3://user:hunter2hunter2@host/data",
    ],
)
def test_a_secret_value_is_rejected_and_not_repeated_in_the_error(secret: str):
    text = message({"steps": 1, "model": secret})
    assert text.startswith("tiny.yaml: model") and secret not in text and "hunter2" not in text
    assert "environment" in text


def test_a_field_that_is_named_like_a_secret_is_rejected():
    assert message({"steps": 1, "wandb_api_key": "short"}) == (
        "tiny.yaml: wandb_api_key looks like a secret; set it as an environment variable, never in a config"
    )


def test_only_fields_that_change_results_count_as_changed():
    assert changed_fields(Config(steps=5)) == {"steps": 5}
    assert changed_fields(Config(steps=5, optimizer=Optimizer(lr=1.0))) == {
        "steps": 5,
        "optimizer": {"lr": 1.0},
    }
    assert changed_fields(Config(steps=5, execution=Execution(workers=9))) == {"steps": 5}


def test_a_nested_config_with_default_values_differs_from_none():
    assert changed_fields(Config(steps=5, decay=Optimizer())) == {"steps": 5, "decay": {}}


def test_the_location_of_a_source_is_not_a_change_but_its_other_fields_are():
    sources = [Source(path="here.txt"), Source(path="b", kind="jsonl")]
    assert changed_fields(Config(steps=5, sources=sources)) == {
        "steps": 5,
        "sources": [{}, {"kind": "jsonl"}],
    }


def test_a_config_is_equal_after_a_round_trip_through_plain_values():
    config = Config(steps=5, optimizer=Optimizer(betas=[0.8, 0.9]), sources=[Source(path="a")])
    assert build(Config, to_plain(config)) == config


def test_the_error_for_a_missing_or_invalid_file_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="no.yaml' is not a file"):
        load_yaml(tmp_path / "no.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="expected `field: value` lines, found a list"):
        load_yaml(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2\n")
    with pytest.raises(ValueError, match="broken.yaml: not readable as YAML"):
        load_yaml(tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("stage", "values", "new_name"),
    [
        ("corpus", {"execution": {"partitions": 8}}, "execution.part_tasks"),
        ("pretrain", {"batch_size": 8}, "global_batch_size"),
        ("pretrain", {"validation_rows": 8}, "validation_samples"),
        ("reward", {"batch_size": 8}, "global_batch_size"),
        ("rlhf", {"heldout_prompts": ["p.jsonl"]}, "held_out_prompts"),
        ("rlhf", {"rollouts": {"lot_prompts": 8}}, "rollouts.generation_batch_prompts"),
        ("rlhf", {"execution": {"heldout_interval": 8}}, "execution.held_out_interval"),
        ("rlhf", {"learning": {"max_logprob_gap": 1.0}}, "learning.max_logprob_difference"),
        ("rlhf", {"learning": {"mean_logprob_gap": 1.0}}, "learning.mean_logprob_difference"),
    ],
)
def test_the_error_for_the_old_name_of_a_field_contains_the_new_name(
    stage: str, values: dict[str, Any], new_name: str
) -> None:
    with pytest.raises(ValueError, match=rf"is not a field; it is called {re.escape(new_name)} now$"):
        build(find_stage(stage).config, values)


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("rlhf", {"prompts": {"a": "b"}}, "prompts: must be a list, but is a mapping; write [value]"),
        ("sft", {"chats": "c.jsonl"}, "chats: must be a list, but is a single value; write [value]"),
        ("evaluate", {"models": ["a"]}, "models: must be a mapping, but is a list; write {name: value}"),
        (
            "evaluate",
            {"generation": [{"models": {"a": "b"}}]},
            "generation[0].models: must be a list, but is a mapping",
        ),
        ("pretrain", {"optimizer": [1]}, "optimizer: must be a mapping, but is a list"),
        ("pretrain", {"mixture": ["a"]}, "mixture: must be a mapping, but is a list"),
        ("pretrain", {"steps": [1]}, "steps: must be a single value, but is a list; write one value"),
        ("corpus", {"sources": {"a": "b"}}, "sources: must be a list, but is a mapping"),
        ("pretrain", {"mixture": {"s": [1]}}, "mixture.s: must be a single value, but is a list; write one value"),
        ("evaluate", {"models": {"a": ["b"]}}, "models.a: must be a single value, but is a list"),
        ("rlhf", {"prompts": ["a", {"a": "b"}]}, "prompts[1]: must be a single value, but is a mapping"),
        ("evaluate", {"compare": ["a", "b"]}, "compare[0]: must be a list, but is a single value; write [value]"),
        ("evaluate", {"compare": [["a", ["b"]]]}, "compare[0][1]: must be a single value, but is a list"),
        ("corpus", {"sources": ["a"]}, "sources[0]: must be a mapping, but is a single value; write {name: value}"),
        ("corpus", {"steps": [{"length": 5}]}, "steps[0].length: must be a mapping, but is a single value"),
        ("evaluate", {"generation": [{"metrics": [["f1"]]}]}, "generation[0].metrics[0]: must be a single value"),
    ],
)
def test_the_error_for_a_wrong_shape_names_the_field_or_the_item(
    stage: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^config: {re.escape(message)}"):
        build(find_stage(stage).config, values)


def test_the_remedy_for_a_mapping_is_valid_in_an_override():
    with pytest.raises(ValueError, match="optimizer: must be a mapping, but is a single value; write {name: value}$"):
        build(Config, {"steps": 1}, ["optimizer=3"])
    assert build(Config, {"steps": 1}, ["optimizer={lr: 0.5}"]).optimizer.lr == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stages: [[corpus]]", "stages[0]: must be a single value, but is a list"),
        ("stages: {corpus: 1}", "stages: must be a list, but is a mapping"),
        ("environment: {A: [1]}", "environment.A: must be a single value, but is a list"),
    ],
)
def test_the_items_of_a_pipelines_lists_and_mappings_are_checked(tmp_path: Path, line: str, message: str):
    path = tmp_path / "pipeline.yaml"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {message}')}"):
        load_pipeline(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=[repair_unicode]", r"steps\[0\]: must be a mapping, but is a single value; write {repair_unicode: {}}"),
        ("sources={a: b}", "sources: must be a list, but is a mapping"),
        ("sources=web", "sources: must be a list, but is a single value"),
    ],
)
def test_an_override_that_replaces_a_list_is_judged_like_the_config(override: str, message: str) -> None:
    values = {"sources": [{"name": "web", "path": "web.txt", "format": "text"}], "steps": [{"repair_unicode": {}}]}
    with pytest.raises(ValueError, match=message):
        build(find_stage("corpus").config, values, [override])


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """The config of a user's stage, with types that no stage of Raymill has."""

    percentiles: tuple[int, ...] = (50,)
    betas: tuple[float, float] = (0.9, 0.95)
    extra: Any = None


def test_a_users_stage_may_have_tuples_and_any_value() -> None:
    config = build(OwnConfig, {"percentiles": [1, 2], "betas": [0.5, 0.6], "extra": {"a": [1]}})
    assert list(config.percentiles) == [1, 2] and list(config.betas) == [0.5, 0.6] and config.extra == {"a": [1]}
    with pytest.raises(ValueError, match=r"percentiles\[1\]: must be a single value, but is a list"):
        build(OwnConfig, {"percentiles": [1, [2]]})
    with pytest.raises(ValueError, match="betas: must be a list, but is a single value"):
        build(OwnConfig, {"betas": 0.5})
