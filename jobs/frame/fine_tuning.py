"""What the stages `sft` and `reward` have in common.

They train an existing model, whose tokenizer has a chat template, on files of records. A fraction of the records is
held out for the validation loss. The others are repeated in epochs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from data.chats.template import load_chat_tokenizer
from data.tokens.shuffle import epoch_order
from jobs.frame.artifact import Artifact
from jobs.frame.sizes import model_config_of
from jobs.frame.stage import PlannedInputs
from jobs.frame.training_config import TrainingConfig, check_training
from model.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from jobs.frame.training_rank import StageTraining
    from model.train import TrainState

Sample = TypeVar("Sample")


class FineTuningConfig(TrainingConfig, Protocol):
    """The settings that the configs of these stages have in common."""

    @property
    def validation_fraction(self) -> float: ...


def check_fine_tuning(config: FineTuningConfig) -> None:
    """Raises ValueError if a setting that `sft` and `reward` have in common is out of range. The inputs are not
    read."""
    check_training(config)
    if not 0 < config.validation_fraction < 1:
        raise ValueError(f"validation_fraction: {config.validation_fraction} must be above 0 and below 1, such as 0.05")


def check_chat_template(config: FineTuningConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError if the tokenizer of the model in `init` has no chat template."""
    load_chat_tokenizer(inputs["init"].model.local())


def output_sizes(config: FineTuningConfig, planned: PlannedInputs) -> TransformerConfig:
    """Return the config of the model in `init`.

    The model that the stage writes has the same config, so this function is the stage's `output_sizes`.
    """
    return model_config_of(planned["init"])


def split_held_out(
    samples: Sequence[Sample], config: FineTuningConfig, *, field: str
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Split the samples into (training samples, held-out samples). The last samples are held out.

    The fraction of held-out samples is `validation_fraction`, but each part has at least one sample. `samples` are
    those records which are not longer than sequence_length, and `field` is the name of the config field that names the
    file of the records. Raises ValueError for fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(
            f"{field}: only {len(samples)} of the records fit sequence_length={config.sequence_length}, but at least "
            f"one is needed for training and one for validation; increase sequence_length or add {field}"
        )
    num_held_out = min(max(1, round(len(samples) * config.validation_fraction)), len(samples) - 1)
    return samples[:-num_held_out], samples[-num_held_out:]


def step_sample_indices(
    training: "StageTraining", state: "TrainState", num_samples: int, *, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (step, indices of this rank's samples in that step) for each step that is not done yet.

    Steps count from 0. The indices are indices into the training samples, and `num_samples` is the number of training
    samples. An epoch contains every sample once. Each epoch has a different order, which depends on `seed`.
    """
    for step in range(state.step, training.config.steps):
        yield step, epoch_order(training.rank_sample_indices(step), num_samples, seed=seed)


def held_out_micro_batch_indices(training: "StageTraining", num_samples: int) -> Iterator[np.ndarray]:
    """Yield the indices of the held-out samples in each of this rank's micro-batches.

    `num_samples` is the number of held-out samples. Every rank gets the same number of samples. The last samples are
    left out if the samples cannot be divided equally among the ranks. If there are fewer samples than ranks, each rank
    gets one sample, and some ranks get the same one.
    """
    samples_per_rank = max(1, num_samples // training.rank_context.world_size)
    first = training.rank_context.rank * samples_per_rank
    indices = np.arange(first, first + samples_per_rank) % num_samples
    micro_batch_size = training.config.execution.micro_batch_size
    for start in range(0, samples_per_rank, micro_batch_size):
        yield indices[start : start + micro_batch_size]
