"""What an RLHF run leaves: its held-out prompts with their completions before and after, and its summary."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from model.metrics import distinct_n


@dataclass(frozen=True, kw_only=True)
class HeldOutCompletion:
    """A held-out prompt with its completion and reward."""

    prompt: str
    completion: str
    reward: float


@dataclass(frozen=True, kw_only=True)
class HeldOutSample:
    """A line of samples.jsonl: a held-out prompt with its completions before and after learning."""

    prompt: str
    before: str
    after: str
    reward_before: float
    reward_after: float


@dataclass(frozen=True, kw_only=True)
class RLHFSummary:
    """Counts, what the metrics log says of the whole run, and means over the held-out prompts, if there are any."""

    prompts: int
    prompts_too_long: int
    steps: float
    logprob_difference_max: float
    """Largest difference of engine and learner logprobs of a sampled token, in nats."""
    step_s: float
    """Median seconds of a step."""
    tokens_per_s: float
    """Median of the sampled tokens by second."""
    held_out_prompts: int | None = None
    reward_before: float | None = None
    reward_after: float | None = None
    distinct_2_before: float | None = None
    distinct_2_after: float | None = None


def held_out_samples(
    before: Sequence[HeldOutCompletion], after: Sequence[HeldOutCompletion]
) -> Iterator[HeldOutSample]:
    """Each held-out prompt with its completions before and after learning."""
    for old, new in zip(before, after, strict=True):
        yield HeldOutSample(
            prompt=old.prompt,
            before=old.completion,
            after=new.completion,
            reward_before=old.reward,
            reward_after=new.reward,
        )


def rlhf_summary(
    metrics: Sequence[Mapping[str, float]],
    before: Sequence[HeldOutCompletion],
    after: Sequence[HeldOutCompletion],
    *,
    num_prompts: int,
    num_too_long: int,
) -> RLHFSummary:
    """The summary of a finished run; `metrics` are the lines of its metrics log."""
    summary = RLHFSummary(
        prompts=num_prompts,
        prompts_too_long=num_too_long,
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
