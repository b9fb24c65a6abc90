"""The report on a training run: its curves and its speed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.metrics_log import read_metrics
from jobs.frame.artifact import Artifact
from jobs.frame.training_run import TrainingSummary
from jobs.report.charts import Line, line_chart
from jobs.report.page import Html, element, figure, grid, join, section
from jobs.report.part import ReportPart, points, titled


def report_training(
    artifact: Artifact, summary: TrainingSummary, *, title: str, metrics_prefix: str, loss_unit: str
) -> ReportPart:
    """The curves and figures of a training run whose metrics begin with `metrics_prefix/`."""
    log = read_metrics(artifact.storage)
    loss = [
        Line(label="training", points=points(log, f"{metrics_prefix}/loss"), colour=0),
        Line(label="held out", points=points(log, "validation/loss"), colour=1),
    ]
    charts = [
        figure("Loss", line_chart(loss, x_label="step"), loss_unit),
        figure(
            "Learning rate", line_chart([Line(label="lr", points=points(log, f"{metrics_prefix}/lr"))], x_label="step")
        ),
    ]
    if accuracy := points(log, "validation/accuracy"):
        line = Line(label="held out", points=accuracy, colour=1)
        charts.insert(1, figure("Held-out accuracy", line_chart([line], x_label="step"), "share of pairs in order"))
    facts = [f"{summary.parameters / 1e6:.3g} million parameters", f"{summary.steps} steps"]
    facts += [f"{summary.tokens:,} tokens seen", f"{summary.tokens_per_s:,.0f} tokens/s"]
    facts += [] if summary.mfu is None else [f"{summary.mfu:.0%} of the measured peak"]
    facts += [f"computed in {precision}" for precision in dict.fromkeys(artifact.record.precision.values())]
    lead = ", ".join(facts) + "."
    return ReportPart(section=section(artifact.name, titled(title, artifact), lead, grid(charts)))


def report_pretraining(artifact: Artifact) -> ReportPart:
    """`report_training`, with the continuations that the finished model wrote."""
    summary = artifact.read_summary(TrainingSummary)
    part = report_training(artifact, summary, title="Pretraining", metrics_prefix="train", loss_unit="nats per token")
    samples = artifact.storage.read_jsonl("samples.jsonl") if artifact.storage.exists("samples.jsonl") else []
    continued = _continuations(samples) if samples else None
    return replace(
        part,
        section=join(part.section, continued),
        facts=[f"{summary.parameters / 1e6:.3g} million parameters"],
    )


def _continuations(samples: Sequence[Mapping[str, Any]]) -> Html:
    said = (element("blockquote", element("b", sample["prompt"]), " ", sample["continuation"]) for sample in samples)
    return element("div", element("h3", "It continues"), said, class_="continuations")
