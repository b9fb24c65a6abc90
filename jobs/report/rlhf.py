"""The report on RLHF: its curves, and completions before and after."""

from actors.evaluation_results import EvaluationSample, ModelSample
from actors.rlhf_results import HeldOutSample, RLHFSummary
from cluster.metrics_log import read_metrics
from cluster.plain import from_plain
from jobs.frame.artifact import Artifact
from jobs.report.charts import Line, line_chart, smooth
from jobs.report.page import figure, grid, section
from jobs.report.part import ReportPart, points, titled
from jobs.report.samples import side_by_side


def report_rlhf(artifact: Artifact) -> ReportPart:
    """The curves of the run, and completions of the held-out prompts before and after it."""
    log = read_metrics(artifact.storage)
    charts = []
    for key, title, note in _CURVES:
        if curve := points(log, key):
            mean = smooth(curve, half_window=max(1, len(curve) // 16))
            lines = [Line(label="each step", points=curve, faint=True), Line(label="mean", points=mean)]
            charts.append(figure(title, line_chart(lines, x_label="step"), note))
    config = artifact.config
    algorithm = config.learning.algorithm.rpartition(":")[2].upper()  # a user's own is path.py:NAME
    lead = (
        f"{algorithm}: {len(log)} logged steps of {config.rollouts.prompts_per_step} prompts, "
        f"{config.rollouts.group_size} completions of each. They come from vLLM engines whose "
        "weights are checked, after every update, to be the learner's."
    )
    if config.shuffle_rewards:
        lead = f"The control: each step's rewards are permuted over its completions, so nothing can be learned. {lead}"
    summary = artifact.read_summary(RLHFSummary)
    if summary.held_out_prompts:
        lead += (
            f" On {summary.held_out_prompts:,} held-out prompts the mean reward went from "
            f"{summary.reward_before:.3f} to {summary.reward_after:.3f}."
        )
    return ReportPart(
        section=section(artifact.name, titled("Learning from reward", artifact), lead, grid(charts)),
        samples=side_by_side(_samples(artifact), ["before", "after"]) if summary.held_out_prompts else None,
    )


_CURVES = (
    ("rollout/reward_mean", "Reward", "mean over the step's completions"),
    ("rollout/reference_kl", "Distance to the start", "KL to the reference, nats per token"),
    ("policy/entropy", "Entropy", "nats per token"),
    ("rollout/completion_length", "Length of completions", "tokens"),
    ("rollout/distinct_2", "Variety", "distinct pairs of tokens over all pairs"),
    ("sync_check/logprob_difference_max", "Engine against learner", "largest difference of logprobs, nats"),
)


def _samples(artifact: Artifact) -> list[EvaluationSample]:
    """The held-out prompts with the completions before and after learning."""
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
