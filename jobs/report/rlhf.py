"""The report section on RLHF: the curves of the run, and completions before and after it."""

from actors.evaluation_results import EvaluationSample, ModelSample
from actors.rlhf_results import HeldOutSample, RLHFSummary
from cluster.metrics_log import read_metrics
from cluster.plain import from_plain
from jobs.frame.artifact import Artifact
from jobs.report.charts import Line, line_chart, smooth
from jobs.report.page import figure, grid, section
from jobs.report.part import ReportPart, metric_points, section_title
from jobs.report.samples import side_by_side


def report_rlhf(artifact: Artifact) -> ReportPart:
    """Return a section with the curves of the run, and completions of the held-out prompts before and after it."""
    log = read_metrics(artifact.storage)
    charts = []
    for key, title, note in _CURVES:
        if curve := metric_points(log, key):
            mean = smooth(curve, half_window=max(1, len(curve) // 16))
            lines = [Line(label="each step", points=curve, is_faint=True), Line(label="moving mean", points=mean)]
            charts.append(figure(title, line_chart(lines, x_label="step"), note))
    config = artifact.config
    # A user-provided algorithm is given as path.py:NAME. Only the name is shown.
    algorithm = config.learning.algorithm.rpartition(":")[2].upper()
    introduction = (
        f"The algorithm is {algorithm}. The run logged {len(log)} steps of {config.rollouts.prompts_per_step} prompts "
        f"with {config.rollouts.group_size} completions each. vLLM engines generate the completions, and the learner "
        "trains on them. Whenever the engines get new weights, the run checks that engines and learner compute the "
        "same logprobs."
    )
    if config.shuffle_rewards:
        introduction = (
            "This is a control run: the rewards of each step are shuffled among its completions, so the model cannot "
            f"learn from them. {introduction}"
        )
    summary = artifact.read_summary(RLHFSummary)
    if summary.held_out_prompts:
        introduction += (
            f" On {summary.held_out_prompts:,} held-out prompts the mean reward went from "
            f"{summary.reward_before:.3f} to {summary.reward_after:.3f}."
        )
    return ReportPart(
        section=section(
            artifact.name, section_title("Reinforcement learning (RLHF)", artifact), introduction, grid(charts)
        ),
        samples=side_by_side(_samples(artifact), ["before", "after"]) if summary.held_out_prompts else None,
    )


_CURVES = (
    ("rollout/reward_mean", "Reward", "mean over the completions of a step"),
    ("rollout/reference_kl", "Distance from the first model", "KL divergence, nats per token"),
    ("policy/entropy", "Entropy of the model", "nats per token"),
    ("rollout/completion_length", "Length of completions", "tokens"),
    ("rollout/distinct_2", "Variety of completions", "distinct pairs of words / all pairs"),
    ("sync_check/logprob_difference_max", "Engine versus learner", "largest difference of logprobs, nats"),
)
"""The charts of the section: metric key, title and note."""


def _samples(artifact: Artifact) -> list[EvaluationSample]:
    """Return the held-out prompts with the completions before and after training."""
    lines = [from_plain(HeldOutSample, line) for line in artifact.storage.read_jsonl("samples.jsonl")]
    return [
        EvaluationSample(
            task="held-out prompts",
            prompt=line.prompt,
            completions={
                "before": ModelSample(text=line.before, finished=True, measures={"reward": line.reward_before}),
                "after": ModelSample(text=line.after, finished=True, measures={"reward": line.reward_after}),
            },
        )
        for line in lines
    ]
