"""What a stage adds to the report, and what the sections share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.frame.artifact import Artifact
from jobs.report.page import Content, Html, element, number


@dataclass(frozen=True, kw_only=True)
class ReportPart:
    """What one artifact contributes to the page."""

    section: Html
    facts: Sequence[str] = ()
    """For the line below the page's title."""
    cards: Sequence[Html] = ()
    """Headline numbers, each with what to compare it with (`card`)."""
    samples: Html | None = None
    """Completions side by side; the page shows those of the last artifact that has any."""


def card(value: str, label: str, note: Content, *, good: bool | None = None) -> Html:
    """A headline number; `good` says whether it is clearly better than what the note compares it with."""
    kind = "card" if good is None else "card good" if good else "card open"
    return element("div", element("b", value), element("span", label), element("small", note), class_=kind)


def points(log: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """(step, value) of each line of a metrics log that has the metric."""
    return [(line["step"], line[key]) for line in log if key in line]


def ordered(by_model: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """The values by model, in the order of the config; JSON files have them in that of the alphabet."""
    return {name: by_model[name] for name in order if name in by_model}


def titled(title: str, artifact: Artifact) -> str:
    """The title, with the artifact's name where that is not its stage's: of a second RLHF run, say."""
    name = artifact.name
    return title if name == artifact.stage else f"{title}: {name}"


def words(name: str) -> str:
    """An identifier or metric key as words."""
    return name.replace("_", " ").replace("/", ": ")


def score(value: float, *, fine: bool) -> str:
    """A value between 0 and 1 as a percentage, any other as a number."""
    return f"{value:.{int(fine)}%}" if 0 <= value <= 1 else number(value)
