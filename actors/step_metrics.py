"""The metrics of one RLHF step: those of the rollouts, those of the updates, and the times.

Shape legend: N is the number of rollouts, and T the number of positions of a row.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from actors.rollout import Rollout
from actors.sync_check import LogprobDifference
from actors.text_metrics import distinct_n
from cluster.progress import show_activity
from model.batch import Batch
from model.kl import bounded_log_ratio
from model.train import StepReport


@dataclass(frozen=True, kw_only=True)
class RolloutMetrics:
    """Statistics of the rollouts of an RLHF step."""

    reward_mean: float
    """Mean of the scorer's rewards, without a KL penalty."""
    reward_std: float
    """Standard deviation of the scorer's rewards."""
    completion_length: float
    """Mean number of tokens in a completion, the stop token included."""
    finished: float
    """Fraction of the completions that ended with a stop token and were not truncated."""
    distinct_2: float
    """Number of distinct word bigrams divided by the number of all word bigrams, over all completions together."""


@dataclass(frozen=True, kw_only=True)
class ReferenceKL:
    """How far the policy is from the reference on the rollouts of an RLHF step, before the update."""

    mean: float
    """Mean of log policy - log reference over the sampled tokens, an unbiased estimate of KL(policy || reference)."""
    clip_fraction: float
    """Share of the sampled tokens whose log ratio a KL penalty in the reward clips (`model.kl.bounded_log_ratio`)."""


@dataclass(frozen=True, kw_only=True)
class UpdateMetrics:
    """Metrics of one update of the learner or the critic. All except `lr` are means over the optimizer steps."""

    loss: float
    grad_norm: float
    lr: float
    """Learning rate of the last optimizer step."""
    objective: Mapping[str, float]
    """Further metrics that the objective reports, by metric key."""

    def by_key(self, prefix: str) -> dict[str, float]:
        """Return the metrics by metric key, such as `prefix/loss`."""
        return {
            f"{prefix}/loss": self.loss,
            f"{prefix}/grad_norm": self.grad_norm,
            f"{prefix}/lr": self.lr,
            **self.objective,
        }


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """How long an RLHF step and its parts took."""

    seconds: Mapping[str, float]
    """Seconds of each part of the step, by the name of the part, such as `generate`."""
    step_s: float
    """Seconds of the whole step."""
    tokens_per_s: float
    """Number of sampled tokens divided by the seconds of the whole step."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The metrics of one RLHF step."""

    rollouts: RolloutMetrics
    reference_kl: ReferenceKL | None
    """None without a reference."""
    logprob_difference: LogprobDifference
    """Difference between the engine's and the learner's logprobs, from the sync check."""
    policy: UpdateMetrics
    """Metrics of the learner's update."""
    value: UpdateMetrics | None
    """Metrics of the critic's update. None without a critic."""
    generator_restarts: int
    """Number of restarts of generators since the graph was built."""
    times: StepTimes

    def by_key(self) -> dict[str, float]:
        """Return the metrics by metric key, for the metrics log."""
        times = {f"perf/{part}_s": seconds for part, seconds in self.times.seconds.items()}
        return {
            **{f"rollout/{name}": value for name, value in vars(self.rollouts).items()},
            **self._reference_kl_by_key(),
            "sync_check/logprob_difference_max": self.logprob_difference.max,
            "sync_check/logprob_difference_mean": self.logprob_difference.mean,
            **self.policy.by_key("policy"),
            **({} if self.value is None else self.value.by_key("value")),
            "perf/generator_restarts": self.generator_restarts,
            **times,
            "perf/step_s": self.times.step_s,
            "perf/tokens_per_s": self.times.tokens_per_s,
        }

    def _reference_kl_by_key(self) -> dict[str, float]:
        if self.reference_kl is None:
            return {}
        return {
            "rollout/reference_kl": self.reference_kl.mean,
            "rollout/reference_kl_clip_fraction": self.reference_kl.clip_fraction,
        }


class Timer:
    """Measures the parts of an RLHF step, as in `with timer("generate"): …`.

    The progress display shows the part while it runs (`cluster.progress.show_activity`).
    """

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started_s = time.perf_counter()
        with show_activity(part):
            yield
        self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - started_s

    def times(self, *, num_sampled: int) -> StepTimes:
        """Return the times of the step, which began when the timer was created and ends now.

        `num_sampled` is the number of tokens that were sampled in the step.
        """
        step_s = time.perf_counter() - self._started_s
        return StepTimes(seconds=self._seconds, step_s=step_s, tokens_per_s=num_sampled / step_s)


def rollout_metrics(rollouts: Sequence[Rollout], texts: Sequence[str], rewards: Sequence[float]) -> RolloutMetrics:
    """Compute the metrics of the rollouts of a step. The three sequences have the same order."""
    return RolloutMetrics(
        reward_mean=statistics.fmean(rewards),
        reward_std=statistics.pstdev(rewards),
        completion_length=statistics.fmean(len(rollout.completion_ids) for rollout in rollouts),
        finished=statistics.fmean(rollout.finished for rollout in rollouts),
        distinct_2=distinct_n(texts, 2),
    )


def reference_kl(reference_log_ratio_NT: Tensor, batch: Batch) -> ReferenceKL:
    """Compute the distance from the reference over the sampled tokens of all rollouts."""
    log_ratio = reference_log_ratio_NT[batch.loss_mask]
    was_clipped = bounded_log_ratio(log_ratio) != log_ratio
    return ReferenceKL(mean=log_ratio.mean().item(), clip_fraction=was_clipped.float().mean().item())


def update_metrics(reports: Sequence[StepReport]) -> UpdateMetrics:
    """Compute the metrics of one update from the reports of its optimizer steps."""
    return UpdateMetrics(
        loss=statistics.fmean(report.loss for report in reports),
        grad_norm=statistics.fmean(report.grad_norm for report in reports),
        lr=reports[-1].lr,
        objective={name: statistics.fmean(report.metrics[name] for report in reports) for name in reports[0].metrics},
    )
