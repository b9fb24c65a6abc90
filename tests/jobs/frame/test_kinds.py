"""The kind of a Hugging Face folder is determined by its config.json."""

from typing import Any

import pytest

from jobs.frame.kinds import Kind, huggingface_kind


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "reward_model"),
        ({"architectures": ["LlamaForCausalLM"], "quantization_config": {"bits": 8}}, "compressed_model"),
        ({}, "model"),
        ({"architectures": None}, "model"),
    ],
)
def test_the_kind_of_an_external_model_folder(config: dict[str, Any], kind: Kind) -> None:
    assert huggingface_kind(config) == kind
