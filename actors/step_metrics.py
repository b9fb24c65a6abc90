"""What one step of the graph measures: its rollouts, its updates and its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from actors.rollout import Rollout
from actors.sync_check import LogprobDifference
from cluster.progress import working
from model.batch import Batch
from model.metrics import distinct_n
from model.train import StepReport


@dataclass(frozen=True, kw_only=True)
class RolloutMetrics:
    """Means over the rollouts of a step."""

    reward_mean: float
    """As the scorer gave the rewards, without a KL penalty."""
    reward_std: float
    completion_length: float
    """Tokens of a completion, its stop token included."""
    finished: float
    """Share of completions that ended by themselves."""
    distinct_2: float
    """Distinct pairs of adjacent words over all pairs, of all completions together."""


@dataclass(frozen=True, kw_only=True)
class UpdateMetrics:
    """Means over the optimizer steps of one update."""

    loss: float
    grad_norm: float
    lr: float
    """After the last optimizer step."""
    objective: Mapping[str, float]
    """The objective's own metrics, by their full key."""

    def by_key(self, area: str) -> dict[str, float]:
        """By metric key, `area/loss` and so on."""
        return {f"{area}/loss": self.loss, f"{area}/grad_norm": self.grad_norm, f"{area}/lr": self.lr, **self.objective}


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Where the time of a step went."""

    seconds: Mapping[str, float]
    """Seconds by part of the step."""
    step_s: float
    tokens_per_s: float
    """Sampled tokens by second of the whole step."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One step of learning."""

    rollouts: RolloutMetrics
    reference_kl: float | None
    """Mean log policy - log reference of the sampled tokens: an unbiased estimate of KL(policy || reference). None
    without a reference."""
    logprob_difference: LogprobDifference
    policy: UpdateMetrics
    value: UpdateMetrics | None
    """None without a critic."""
    generator_restarts: int
    times: StepTimes

    def by_key(self) -> dict[str, float]:
        """By metric key, for the metrics log."""
        times = {f"perf/{part}_s": seconds for part, seconds in self.times.seconds.items()}
        return {
            **{f"rollout/{name}": value for name, value in vars(self.rollouts).items()},
            **({} if self.reference_kl is None else {"rollout/reference_kl": self.reference_kl}),
            "sync_check/logprob_difference_max": self.logprob_difference.max,
            "sync_check/logprob_difference_mean": self.logprob_difference.mean,
            **self.policy.by_key("policy"),
            **({} if self.value is None else self.value.by_key("value")),
            "perf/generator_restarts": self.generator_restarts,
            **times,
            "perf/step_s": self.times.step_s,
            "perf/tokens_per_s": self.times.tokens_per_s,
        }


class Timer:
    """Measures each part of a step, and reports it as the current work: `with timer("generate"): …`."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started_s = time.perf_counter()
        with working(part):
            yield
        self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - started_s

    def times(self, *, num_sampled: int) -> StepTimes:
        """Of the step from the timer's start until now, in which `num_sampled` tokens were sampled."""
        step_s = time.perf_counter() - self._started_s
        return StepTimes(seconds=self._seconds, step_s=step_s, tokens_per_s=num_sampled / step_s)


def rollout_metrics(rollouts: Sequence[Rollout], texts: Sequence[str], rewards: Sequence[float]) -> RolloutMetrics:
    """Means over the rollouts and the variety of their texts."""
    return RolloutMetrics(
        reward_mean=statistics.fmean(rewards),
        reward_std=statistics.pstdev(rewards),
        completion_length=statistics.fmean(len(rollout.completion_ids) for rollout in rollouts),
        finished=statistics.fmean(rollout.finished for rollout in rollouts),
        distinct_2=distinct_n(texts, 2),
    )


def reference_kl(reference_log_ratio_NT: Tensor, batch: Batch) -> float:
    """The mean log policy - log reference over the sampled tokens."""
    return reference_log_ratio_NT[batch.loss_mask].mean().item()


def update_metrics(reports: Sequence[StepReport]) -> UpdateMetrics:
    """Means over the optimizer steps of one update."""
    return UpdateMetrics(
        loss=statistics.fmean(report.loss for report in reports),
        grad_norm=statistics.fmean(report.grad_norm for report in reports),
        lr=reports[-1].lr,
        objective={name: statistics.fmean(report.metrics[name] for report in reports) for name in reports[0].metrics},
    )
