"""The config of an actor graph: its models, its prompts and its settings. `actors.graph` builds a graph from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.settings import RolloutConfig
from cluster.storage import Storage
from cluster.user_program import Program
from model.learning import LearningConfig


@dataclass(frozen=True)
class Prompt:
    """One prompt from the user's prompt files."""

    text: str
    """The text that a verifier receives: the last user message, or the raw prompt if there is no chat template."""
    prompt_ids: tuple[int, ...]
    """The tokens that the engine receives: the messages formatted with the chat template, if there is one."""
    record: Mapping[str, Any]
    """All fields of the prompt's line in its file."""


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """The models, prompts and settings of a graph. Where its actors run is in `GraphExecution`."""

    policy: Storage
    """Hugging Face folder of the policy that training starts from."""
    reward: Storage | None
    """Hugging Face folder of the reward model. None when a verifier gives the rewards."""
    verifier: Program | None
    """The user's reward function. None when a reward model gives the rewards."""
    prompts: Sequence[Prompt]
    """The prompts for training."""
    max_prompt_length: int
    """Maximum length of the prompts, in tokens, held-out prompts included."""
    rollouts: RolloutConfig
    learning: LearningConfig
    algorithm: str | Program
    """Name of a built-in algorithm (`model.algorithms.ALGORITHMS`), or a user-provided program that defines one."""
    seed: int
    """Seed of the run, from which all other seeds are derived."""
    shuffle_rewards: bool
    """Whether to shuffle the rewards among the rollouts of a step. This is a control experiment: the policy must not
    improve with shuffled rewards."""
    checkpoints: Storage
    """Folder of the checkpoints of learner and critic."""
