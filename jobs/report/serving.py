"""The report on a served model: its speed and its answers."""

from jobs.frame.artifact import Artifact
from jobs.report.page import duration, element, section
from jobs.report.part import ReportPart, titled


def report_serving(artifact: Artifact) -> ReportPart:
    """How fast the server was, and its answers to the config's questions."""
    found = artifact.summary
    lead = (
        f"vLLM's OpenAI-compatible server was up in {duration(found['startup_s'])} and gave the first token after "
        f"{1000 * found['first_token_s']:.0f} ms, {found['tokens_per_s']:.0f} tokens/s to one client."
    )
    answers = (
        element(
            "div",
            element("p", answer["question"], class_="prompt"),
            element("div", element("p", answer["answer"].strip() or "(nothing)"), class_="answer"),
            class_="sample",
        )
        for answer in artifact.storage.read_json("answers.json")
    )
    samples = element("div", answers, class_="samples")
    return ReportPart(section=section(artifact.name, titled("Serving", artifact), lead, samples))
