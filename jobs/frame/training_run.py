"""What the driver of a training stage does: start the workers, show their progress, and read the summary.

`training_rank.py` has what each worker does. This file does not import torch, because the driver does not need it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.metrics_log import METRICS_LOG, last_step_metrics, latest_values
from cluster.process_group import RankContext
from cluster.progress import MetricsProgress
from cluster.signals import StoppedBySignal
from cluster.storage import Storage
from cluster.tracking import Tracker
from cluster.worker_group import run_worker_group
from jobs.frame.stage import Context
from jobs.frame.training_config import TrainingConfig
from model.checkpoint_steps import latest_step
from model.huggingface_config import read_config
from model.transformer_config import num_parameters

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingPayload:
    """The part of the payload that is the same in all training stages. A payload is what every worker gets from the
    driver.

    Each stage has a payload class of its own. The field `training` of that class is a TrainingPayload, and the other
    fields contain the inputs of the stage.
    """

    config: TrainingConfig
    output: Storage
    tracker: Tracker
    metrics_prefix: str
    """The first part of the metric keys. The prefix `train` leads to the key `train/loss`."""


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """The summary of a training stage in artifact.json: the size of the model and the last logged metrics."""

    parameters: int
    """Number of parameters of the model."""
    steps: int
    """Number of optimizer steps."""
    tokens: int
    """Number of tokens that the model was trained on in all steps, without padding."""
    loss: float
    """Mean training loss over the steps of the last logging interval, in the objective's unit (nats per token, or per
    preference pair)."""
    validation_loss: float
    """Validation loss of the trained model, in the objective's unit."""
    tokens_per_s: float
    """Tokens per second over the steps of the last logging interval, all workers together."""
    mfu: float | None
    """Model FLOP utilization, a fraction of the workers' peak FLOP/s, in the last logging interval for which the
    measured peak was credible. None if there was no such interval."""


def run_training(
    worker_fn: Callable[[RankContext, Any], None], payload: Any, config: TrainingConfig, context: Context, *, name: str
) -> None:
    """Call `worker_fn(rank_context, payload)` on every worker and show the progress of the training.

    `payload` is an object of the stage's payload class (see `TrainingPayload`). `name` is the name of the job, for
    messages. The training resumes from the newest checkpoint in the output. Raises StoppedBySignal if a signal stops
    it.
    """
    checkpoints = context.output / "checkpoints"
    if context.output.exists(METRICS_LOG) and latest_step(checkpoints.fs, checkpoints.root) is None:
        log.warning("%s has begun before, but has no complete checkpoint; it starts at step 0", name)
    try:
        with MetricsProgress(partial(last_step_metrics, context.output), "training", config.steps):
            run_worker_group(worker_fn, payload, config.execution.placement, name=name)
    except KeyboardInterrupt:
        step = latest_step(checkpoints.fs, checkpoints.root) or 0
        raise StoppedBySignal(f"{name} resumes from step {step} of {config.steps}") from None


def summarize(output: Storage, *, metrics_prefix: str) -> TrainingSummary:
    """Return the summary of a finished training, read from the metrics log and the model in the folder `output`.

    `metrics_prefix` is the prefix that the training used (`TrainingPayload.metrics_prefix`).
    """
    last = latest_values(output)
    return TrainingSummary(
        parameters=num_parameters(read_config((output / "model").local())),
        steps=int(last["step"]),
        tokens=int(last["data/tokens"]),
        loss=last[f"{metrics_prefix}/loss"],
        validation_loss=last["validation/loss"],
        tokens_per_s=last["perf/tokens_per_s"],
        mfu=last.get("perf/mfu"),
    )
