"""A training stage as its driver runs it: the workers, their progress, and the summary. Takes no torch.

What a rank does is `jobs.frame.training_rank`'s.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.metrics_log import last_step_metrics, latest_values
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
    """What a worker of any training stage needs."""

    config: TrainingConfig
    output: Storage
    tracker: Tracker
    metrics_prefix: str
    """First part of the metrics' keys: `train` gives `train/loss`."""


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """What artifact.json says of a training: the last logged values, and the model's size."""

    parameters: int
    steps: int
    tokens: int
    """Tokens trained on, padding left out."""
    loss: float
    """Training loss over the steps of the last line of the log, in the objective's unit."""
    validation_loss: float
    tokens_per_s: float
    """Speed over the steps of the last line of the log."""
    mfu: float | None
    """Model FLOP utilization, a fraction of the workers' peak; None where the peak was not measured well."""


def run_training(
    work: Callable[[RankContext, Any], None], payload: Any, config: TrainingConfig, context: Context, *, name: str
) -> None:
    """Call `work(rank_context, payload)` on every worker and show their progress."""
    checkpoints = context.output / "checkpoints"
    if step := latest_step(checkpoints.fs, checkpoints.root):
        log.info("%s resumes from its checkpoint at step %d of %d", name, step, config.steps)
    try:
        with MetricsProgress(partial(last_step_metrics, context.output), "training", config.steps):
            run_worker_group(work, payload, config.execution.placement, name=name)
    except KeyboardInterrupt:
        step = latest_step(checkpoints.fs, checkpoints.root) or 0
        raise StoppedBySignal(f"{name} resumes from step {step} of {config.steps}") from None


def summarize(output: Storage, *, metrics_prefix: str) -> TrainingSummary:
    """The summary of a finished training."""
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
