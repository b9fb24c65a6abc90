"""The sizes that a model will have, told before it is made: what `plan` counts tokens' FLOP and memory with.

A need that stands is read; one that does not is asked for its config, and so on up the road.
"""

from typing import Any

from data.tokenizer import vocab_size
from jobs.job import Artifact, Job, Needs
from model.huggingface import read_config
from model.transformer import TransformerConfig, num_parameters

_STATE_BYTES = 16
"""Of each parameter in training: float32 weight, gradient and AdamW's two moments."""
_MODEL_FROM = {"sft": "init", "reward": "init", "rlhf": "policy", "compress": "model"}
"""The input that each stage's model has its sizes from; pretrain is told them by its config, or by `init`."""


def sizes_of(need: Job | Artifact) -> TransformerConfig:
    """The sizes of the model that an artifact holds, or that a job will make."""
    if isinstance(need, Artifact):
        return read_config(need.model.local())
    if need.stage.name != "pretrain":
        return sizes_of(need.needs[_MODEL_FROM[need.stage.name]])
    return pretrained_sizes(need.config, need.needs)


def pretrained_sizes(config: Any, needs: Needs) -> TransformerConfig:
    """The sizes that pretraining gives its model: those of `init`, or of its config and the shards' vocabulary."""
    if "init" in needs:
        return sizes_of(needs["init"])
    return config.model.transformer(vocab_size_of(needs["shards"]), config.max_length)


def vocab_size_of(need: Job | Artifact) -> int:
    """The number of tokens of shards, of a vocabulary or of a model."""
    stage = need.stage if isinstance(need, Artifact) else need.stage.name
    if stage == "shards":
        return need.summary["vocab_size"] if isinstance(need, Artifact) else vocab_size_of(need.needs["tokenizer"])
    if stage == "vocabulary":
        return vocab_size((need.storage / "tokenizer").local()) if isinstance(need, Artifact) else need.config.size
    return sizes_of(need).vocab_size


def mib(sizes: TransformerConfig, bytes_per_parameter: float) -> float:
    """A model's parameters in MiB."""
    return num_parameters(sizes) * bytes_per_parameter / 2**20


def state_mib(sizes: TransformerConfig, *, workers: int = 1) -> float:
    """What weights, gradients and optimizer take on each of the workers that share them; activations come on top."""
    return mib(sizes, _STATE_BYTES) / workers
