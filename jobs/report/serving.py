"""The report on a served model: its speed and its answers."""

from actors.server import ServedAnswer, ServeSummary
from cluster.plain import from_plain
from jobs.frame.artifact import Artifact
from jobs.report.page import duration, element, section
from jobs.report.part import ReportPart, titled


def report_serving(artifact: Artifact) -> ReportPart:
    """How fast the server was, and its answers to the config's questions."""
    summary = artifact.read_summary(ServeSummary)
    lead = (
        f"vLLM's OpenAI-compatible server was up in {duration(summary.startup_s)} and gave the first token after "
        f"{1000 * summary.first_token_s:.0f} ms, {summary.tokens_per_s:.0f} tokens/s to one client."
    )
    answers = (
        element(
            "div",
            element("p", answer.question, class_="prompt"),
            element("div", element("p", answer.answer.strip() or "(nothing)"), class_="answer"),
            class_="sample",
        )
        for answer in (from_plain(ServedAnswer, item) for item in artifact.storage.read_json("answers.json"))
    )
    samples = element("div", answers, class_="samples")
    return ReportPart(section=section(artifact.name, titled("Serving", artifact), lead, samples))
