"""The results of an RLHF run: the completions of held-out prompts before and after training, and the summary.

Held-out prompts are prompts on which the policy is not trained.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from actors.text_metrics import distinct_n


@dataclass(frozen=True, kw_only=True)
class HeldOutCompletion:
    """A held-out prompt with one completion and its reward."""

    prompt: str
    completion: str
    reward: float


@dataclass(frozen=True, kw_only=True)
class HeldOutSample:
    """A line of samples.jsonl: a held-out prompt with its completions before and after training."""

    prompt: str
    before: str
    after: str
    reward_before: float
    reward_after: float


@dataclass(frozen=True, kw_only=True)
class RLHFSummary:
    """The summary of an RLHF run. The fields after `tokens_per_s` are None without held-out prompts."""

    prompts: int
    """Number of prompts for training."""
    prompts_too_long: int
    """Number of prompts that were left out because they were too long, held-out prompts included."""
    prompts_quarantined: int
    """Number of records of prompt files that cannot be used, held-out prompts included. The folder quarantine lists
    them."""
    steps: float
    """Number of RLHF steps."""
    logprob_difference_max: float
    """Largest difference between the engine's and the learner's logprob of a sampled token, in nats."""
    step_s: float
    """Median seconds of an RLHF step."""
    tokens_per_s: float
    """Median number of sampled tokens per second."""
    held_out_prompts: int | None = None
    """Number of held-out prompts."""
    reward_before: float | None = None
    """Mean reward on the held-out prompts before training."""
    reward_after: float | None = None
    distinct_2_before: float | None = None
    """Distinct word bigrams of the held-out completions before training, as a fraction of all their word bigrams."""
    distinct_2_after: float | None = None


def held_out_samples(
    before: Sequence[HeldOutCompletion], after: Sequence[HeldOutCompletion]
) -> Iterator[HeldOutSample]:
    """Yield each held-out prompt with its completions before and after training."""
    for first, last in zip(before, after, strict=True):
        yield HeldOutSample(
            prompt=first.prompt,
            before=first.completion,
            after=last.completion,
            reward_before=first.reward,
            reward_after=last.reward,
        )


def rlhf_summary(
    metrics: Sequence[Mapping[str, float]],
    before: Sequence[HeldOutCompletion],
    after: Sequence[HeldOutCompletion],
    *,
    num_prompts: int,
    num_too_long: int,
    num_quarantined: int,
) -> RLHFSummary:
    """Return the summary of a finished run.

    `metrics` are the lines of the run's metrics log, each with the metrics of one RLHF step by metric key. `before`
    and `after` are the completions of the held-out prompts, and are empty if there are no such prompts. `num_prompts`
    and the other numbers are the fields `prompts…` of the summary.
    """
    summary = RLHFSummary(
        prompts=num_prompts,
        prompts_too_long=num_too_long,
        prompts_quarantined=num_quarantined,
        steps=metrics[-1]["step"],
        logprob_difference_max=max(line["sync_check/logprob_difference_max"] for line in metrics),
        step_s=statistics.median(line["perf/step_s"] for line in metrics),
        tokens_per_s=statistics.median(line["perf/tokens_per_s"] for line in metrics),
    )
    if not before:
        return summary
    return replace(
        summary,
        held_out_prompts=len(before),
        reward_before=statistics.fmean(line.reward for line in before),
        reward_after=statistics.fmean(line.reward for line in after),
        distinct_2_before=distinct_n([line.completion for line in before], 2),
        distinct_2_after=distinct_n([line.completion for line in after], 2),
    )
