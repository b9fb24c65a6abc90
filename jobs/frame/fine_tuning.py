"""What the stages that train a model further on records share: held-out records, epochs, and a chat template."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from data.chats.template import load_tokenizer
from data.tokens.order import epoch_order
from jobs.frame.artifact import Artifact
from jobs.frame.sizes import model_config_of
from jobs.frame.stage import PlannedInputs
from jobs.frame.training_config import TrainingConfig, check_training
from model.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from jobs.frame.training_rank import TrainingRun
    from model.train import TrainState

S = TypeVar("S")


class FineTuningConfig(TrainingConfig, Protocol):
    """What the configs of these stages have in common."""

    @property
    def validation_fraction(self) -> float: ...


def check_fine_tuning(config: FineTuningConfig) -> None:
    """Raises ValueError for every mistake in the common settings that shows without the inputs."""
    check_training(config)
    if not 0 < config.validation_fraction < 1:
        raise ValueError(f"validation_fraction: {config.validation_fraction} must be between 0 and 1")


def check_chat_template(config: FineTuningConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError for a model whose tokenizer has no chat template."""
    load_tokenizer(inputs["init"].model.local())


def init_model_config(config: FineTuningConfig, planned: PlannedInputs) -> TransformerConfig:
    """The sizes of the model, those of `init`."""
    return model_config_of(planned["init"])


def split_held_out(samples: Sequence[S], config: FineTuningConfig, *, field: str) -> tuple[Sequence[S], Sequence[S]]:
    """(samples to train on, held-out samples, which are the last), at least one of each.

    `samples` are those of the config's `field` that fit its sequence length. Raises ValueError for fewer than two.
    """
    if len(samples) < 2:
        raise ValueError(
            f"{field}: only {len(samples)} fit sequence_length={config.sequence_length}, but one is needed to learn "
            f"from and one to hold out; lengthen it or add {field}"
        )
    num_held_out = min(max(1, round(len(samples) * config.validation_fraction)), len(samples) - 1)
    return samples[:-num_held_out], samples[-num_held_out:]


def step_sample_indices(
    training: "TrainingRun", state: "TrainState", num_samples: int, *, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(step, indices of this rank's samples) of each step still to be done, in a new seeded order each epoch."""
    for step in range(state.step, training.config.steps):
        yield step, epoch_order(training.rank_sample_indices(step), num_samples, seed=seed)


def held_out_micro_batch_indices(training: "TrainingRun", num_samples: int) -> Iterator[np.ndarray]:
    """Indices of the held-out samples in this rank's micro-batches.

    Every rank has the same number of them: samples that do not divide among the ranks are left out, and where there
    are fewer samples than ranks, some are read by several.
    """
    share = max(1, num_samples // training.rank_context.world_size)
    first = training.rank_context.rank * share
    indices = np.arange(first, first + share) % num_samples
    size = training.config.execution.micro_batch_size
    for start in range(0, share, size):
        yield indices[start : start + size]
