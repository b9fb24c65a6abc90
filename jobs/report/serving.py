"""The report section on serving: the speed of the server and its answers."""

from actors.server import ServedAnswer, ServeSummary
from cluster.plain import from_plain
from jobs.frame.artifact import Artifact
from jobs.report.page import element, format_duration, section
from jobs.report.part import ReportPart, section_title


def report_serving(artifact: Artifact) -> ReportPart:
    """Return a section with the speed of the server and its answers to the questions in the config."""
    summary = artifact.read_summary(ServeSummary)
    introduction = (
        f"vLLM's server with an OpenAI-compatible API started in {format_duration(summary.startup_s)}. With one "
        f"client, the first token of an answer came after {1000 * summary.first_token_s:.0f} ms on average, and the "
        f"server generated {summary.tokens_per_s:.0f} tokens per second."
    )
    answers = (
        element(
            "div",
            element("p", answer.question, class_="prompt"),
            element("div", element("p", answer.answer.strip() or "(empty)"), class_="answer"),
            class_="sample",
        )
        for answer in (from_plain(ServedAnswer, item) for item in artifact.storage.read_json("answers.json"))
    )
    samples = element("div", answers, class_="samples")
    return ReportPart(section=section(artifact.name, section_title("Serving", artifact), introduction, samples))
