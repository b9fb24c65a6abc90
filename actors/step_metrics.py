"""What is reported of a step: of its rollouts, its updates and its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from actors.rollout import Rollout
from cluster.progress import working
from model.batch import Batch
from model.metrics import distinct_n
from model.train import StepReport


class Timer:
    """Seconds of each part of a step, which says what it does: `with timer("generate"): …`."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started_s = time.perf_counter()
        with working(part):
            yield
        self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - started_s

    def metrics(self, *, num_sampled: int) -> dict[str, float]:
        """Seconds by part and of the whole step, and sampled tokens by second of the whole step."""
        step_s = time.perf_counter() - self._started_s
        parts = {f"perf/{part}_s": seconds for part, seconds in self._seconds.items()}
        return {**parts, "perf/step_s": step_s, "perf/tokens_per_s": num_sampled / step_s}


def rollout_metrics(
    rollouts: Sequence[Rollout], responses: Sequence[str], rewards: Sequence[float]
) -> dict[str, float]:
    """Means over the rollouts, and the variety of their texts; rewards as the scorer gave them."""
    return {
        "rollout/reward_mean": statistics.fmean(rewards),
        "rollout/reward_std": statistics.pstdev(rewards),
        "rollout/response_length": statistics.fmean(len(rollout.response_ids) for rollout in rollouts),
        "rollout/finished": statistics.fmean(rollout.finished for rollout in rollouts),
        "rollout/distinct_2": distinct_n(responses, 2),
    }


def kl_metrics(log_ratio_NT: Tensor, batch: Batch) -> dict[str, float]:
    """The mean log policy - log reference of the sampled tokens: an unbiased estimate of KL(policy || reference)."""
    return {"rollout/reference_kl": log_ratio_NT[batch.loss_mask].mean().item()}


def update_metrics(reports: Sequence[StepReport], area: str) -> dict[str, float]:
    """Means over the optimizer steps of one update; nothing for an update that was not made."""
    if not reports:
        return {}
    own = {
        f"{area}/loss": statistics.fmean(report.loss for report in reports),
        f"{area}/grad_norm": statistics.fmean(report.grad_norm for report in reports),
        f"{area}/lr": reports[-1].lr,
    }
    theirs = {name: statistics.fmean(report.metrics[name] for report in reports) for name in reports[0].metrics}
    return {**own, **theirs}
