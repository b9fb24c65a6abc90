"""The part of the report that shows training samples with the learned texts marked."""

from dataclasses import dataclass
from typing import NamedTuple

from cluster.plain import from_plain
from jobs.frame.artifact import Artifact
from jobs.frame.fine_tuning import RecordsSummary
from jobs.report.page import Html, element

LEARNED_EXAMPLES = "learned.jsonl"
"""File in the artifact with the first training samples, each a `LearnedExample`."""


class LearnedPart(NamedTuple):
    """A part of a sample."""

    text: str
    is_learned: bool


@dataclass(frozen=True, kw_only=True)
class LearnedExample:
    """A training sample as text."""

    parts: list[LearnedPart]
    """Texts that are learned and texts that are not, in turn."""

    @property
    def marked(self) -> str:
        """The sample as text, with the learned parts in double brackets."""
        return "".join(f"⟦{part.text}⟧" if part.is_learned else part.text for part in self.parts)


def describe_records(summary: RecordsSummary) -> Html:
    """Return a paragraph about the records: their layouts, the quarantine, and fields that nothing reads."""
    layouts = ", ".join(f"{number:,} × {name}" for name, number in summary.layouts.items())
    text = f"{summary.records:,} records ({layouts})."
    if summary.quarantined:
        reasons = sorted(summary.quarantined.items(), key=lambda item: -item[1])
        text += " In quarantine: " + "; ".join(f"{reason} ({number:,})" for reason, number in reasons) + "."
    if summary.unread:
        fields = ", ".join(f"{name} ({number:,})" for name, number in summary.unread.items())
        text += f" Nothing reads these fields: {fields}."
    return element("p", text, class_="note")


def learned_examples(artifact: Artifact) -> Html | None:
    """Return the first training samples with the learned texts marked. Returns None if the artifact has none."""
    if not artifact.storage.exists(LEARNED_EXAMPLES):
        return None
    examples = [from_plain(LearnedExample, line) for line in artifact.storage.read_jsonl(LEARNED_EXAMPLES)]
    shown = (
        element("blockquote", (element("mark", text) if is_learned else text for text, is_learned in example.parts))
        for example in examples
    )
    return element("div", element("h3", "First samples (what is learned is marked)"), shown, class_="learned")
