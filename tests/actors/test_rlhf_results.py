"""The summary of an RLHF run, with and without held-out prompts."""

from __future__ import annotations

from actors.rlhf_results import HeldOutCompletion, HeldOutSample, RLHFSummary, held_out_samples, rlhf_summary
from cluster.plain import from_plain, to_plain

METRICS = [
    {"step": step, "sync_check/logprob_difference_max": step, "perf/step_s": step, "perf/tokens_per_s": 100.0}
    for step in (1.0, 2.0, 3.0)
]
BEFORE = [HeldOutCompletion(prompt="p", completion="a b", reward=0.0)]
AFTER = [HeldOutCompletion(prompt="p", completion="a b a b", reward=1.0)]


def test_the_summary_covers_all_steps_and_the_held_out_prompts() -> None:
    summary = rlhf_summary(METRICS, BEFORE, AFTER, num_prompts=7, num_too_long=2, num_quarantined=1)
    assert (summary.prompts, summary.prompts_too_long, summary.steps, summary.step_s) == (7, 2, 3.0, 2.0)
    assert summary.logprob_difference_max == 3.0 and summary.prompts_quarantined == 1
    assert (summary.held_out_prompts, summary.reward_before, summary.reward_after) == (1, 0.0, 1.0)
    assert summary.distinct_2_before == 1.0 and summary.distinct_2_after == 2 / 3  # a b, b a, a b
    assert from_plain(RLHFSummary, to_plain(summary)) == summary


def test_without_held_out_prompts_their_means_are_left_out() -> None:
    summary = rlhf_summary(METRICS, [], [], num_prompts=7, num_too_long=0, num_quarantined=0)
    assert summary.held_out_prompts is summary.reward_before is summary.distinct_2_after is None
    assert from_plain(RLHFSummary, to_plain(summary)) == summary


def test_samples_pair_the_completions_of_each_prompt() -> None:
    assert list(held_out_samples(BEFORE, AFTER)) == [
        HeldOutSample(prompt="p", before="a b", after="a b a b", reward_before=0.0, reward_after=1.0)
    ]
