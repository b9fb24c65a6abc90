"""The report section on a training run: its curves and its speed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.metrics_log import read_metrics
from jobs.frame.artifact import Artifact
from jobs.frame.training_run import TrainingSummary
from jobs.report.charts import Line, line_chart
from jobs.report.page import Html, element, figure, grid, join, section
from jobs.report.part import ReportPart, metric_points, section_title


def report_training(
    artifact: Artifact, summary: TrainingSummary, *, title: str, metrics_prefix: str, loss_unit: str
) -> ReportPart:
    """Return a section with the curves and the speed of a training run.

    `metrics_prefix` is the first part of the run's metric keys, such as `train` in `train/loss`.
    """
    log = read_metrics(artifact.storage)
    loss = [
        Line(label="training", points=metric_points(log, f"{metrics_prefix}/loss"), color=0),
        Line(label="validation", points=metric_points(log, "validation/loss"), color=1),
    ]
    charts = [
        figure("Loss", line_chart(loss, x_label="step"), loss_unit),
        figure(
            "Learning rate",
            line_chart([Line(label="lr", points=metric_points(log, f"{metrics_prefix}/lr"))], x_label="step"),
        ),
    ]
    if accuracy := metric_points(log, "validation/accuracy"):
        line = Line(label="validation", points=accuracy, color=1)
        charts.insert(
            1, figure("Validation accuracy", line_chart([line], x_label="step"), "share of pairs in the right order")
        )
    facts = [f"{summary.parameters / 1e6:.3g} million parameters", f"{summary.steps} steps"]
    facts += [f"trained on {summary.tokens:,} tokens", f"{summary.tokens_per_s:,.0f} tokens/s"]
    facts += [] if summary.mfu is None else [f"{summary.mfu:.0%} of the peak FLOP/s (MFU)"]
    facts += [f"computed in {precision}" for precision in dict.fromkeys(artifact.record.precision.values())]
    introduction = ", ".join(facts) + "."
    return ReportPart(section=section(artifact.name, section_title(title, artifact), introduction, grid(charts)))


def report_pretraining(artifact: Artifact) -> ReportPart:
    """Return the section of `report_training`, followed by texts that the trained model wrote."""
    summary = artifact.read_summary(TrainingSummary)
    part = report_training(artifact, summary, title="Pretraining", metrics_prefix="train", loss_unit="nats per token")
    samples = artifact.storage.read_jsonl("samples.jsonl") if artifact.storage.exists("samples.jsonl") else []
    continuations = _continuations(samples) if samples else None
    return replace(
        part,
        section=join(part.section, continuations),
        facts=[f"{summary.parameters / 1e6:.3g} million parameters"],
    )


def _continuations(samples: Sequence[Mapping[str, Any]]) -> Html:
    """Return the prompts in bold, each followed by the model's continuation."""
    texts = (element("blockquote", element("b", sample["prompt"]), " ", sample["continuation"]) for sample in samples)
    return element("div", element("h3", "Texts that the model wrote (prompts in bold)"), texts, class_="continuations")
