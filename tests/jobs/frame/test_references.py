"""The inputs of a config are found in fields, lists and mappings."""

from dataclasses import dataclass

from jobs.frame.fields import input_artifact
from jobs.frame.references import find_inputs


def test_inputs_in_lists_and_mappings_are_found_with_their_paths():
    @dataclass(frozen=True, kw_only=True)
    class Many:
        models: dict[str, str] = input_artifact("model", "reward_model")
        more: list[str] = input_artifact("corpus")

    inputs = find_inputs(Many(models={"before": "sft", "after": "rlhf"}, more=["a", "b"]))
    assert [(path, value) for path, value, _ in inputs] == [
        ("models.before", "sft"),
        ("models.after", "rlhf"),
        ("more.0", "a"),
        ("more.1", "b"),
    ]
