"""The part of the report that a stage returns for its artifact, and functions that several stages use for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.frame.artifact import Artifact
from jobs.report.page import Content, Html, element, format_number


@dataclass(frozen=True, kw_only=True)
class ReportPart:
    """What one artifact adds to the page."""

    section: Html
    """The artifact's section of the page."""
    facts: Sequence[str] = ()
    """Short texts for the line below the page's title."""
    cards: Sequence[Html] = ()
    """The most important numbers, for the top of the page (`card`)."""
    samples: Html | None = None
    """A section with completions of several models. If several artifacts have one, the page shows only the last one."""


def card(value: str, label: str, note: Content, *, is_better: bool | None = None) -> Html:
    """Return a box with an important number.

    The note may contain another number to compare with. `is_better` decides the color of the box. It tells whether the
    important number is significantly better than the other number, and is None without a comparison.
    """
    css_class = "card" if is_better is None else "card good" if is_better else "card open"
    return element("div", element("b", value), element("span", label), element("small", note), class_=css_class)


def metric_points(log: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of each line of a metrics log that contains the metric `key`."""
    return [(line["step"], line[key]) for line in log if key in line]


def in_config_order(by_model: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Return the items of `by_model` in `order`, the order of the models in the config.

    The keys are names of models. They were read from a JSON file, in which they are in alphabetical order.
    """
    return {name: by_model[name] for name in order if name in by_model}


def section_title(title: str, artifact: Artifact) -> str:
    """Return the title, followed by the artifact's name if the name differs from the stage, as in a second RLHF run."""
    name = artifact.name
    return title if name == artifact.stage else f"{title}: {name}"


def readable_name(name: str) -> str:
    """Return an identifier or metric key with spaces and colons instead of underscores and slashes."""
    return name.replace("_", " ").replace("/", ": ")


def format_score(value: float, *, fine: bool) -> str:
    """Return a value between 0 and 1 as a percentage, and any other value as a number.

    With `fine`, a percentage has one decimal, and otherwise none.
    """
    return f"{value:.{int(fine)}%}" if 0 <= value <= 1 else format_number(value)
