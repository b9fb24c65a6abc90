"""A section of the report that shows completions of several models for the same prompts, side by side."""

from collections.abc import Sequence

from actors.evaluation_results import EvaluationSample
from jobs.report.page import Html, element, format_number, section
from jobs.report.part import readable_name

_OPEN_SAMPLES = 4  # number of prompts that are always visible; the others are folded
_MAX_SAMPLES = 24
_SHOWN_MEASURES = 1  # number of measures that are shown below each completion


def side_by_side(samples: Sequence[EvaluationSample], model_names: Sequence[str]) -> Html:
    """Return a section with the completions of these models for the first prompts.

    If `model_names` is empty, the first two models of the first sample are shown.
    """
    names = list(model_names or list(samples[0].completions)[:2])
    shown = [sample for sample in samples if all(name in sample.completions for name in names)][:_MAX_SAMPLES]
    drawn = [_sample(sample, names) for sample in shown]
    first, more = drawn[:_OPEN_SAMPLES], drawn[_OPEN_SAMPLES:]
    summary = element("summary", f"Show {len(more)} more prompts")
    introduction = (
        f"Completions of the first {len(shown)} held-out prompts, which no model was trained on. Nothing was selected. "
        f"The columns are {' and '.join(names)}."
    )
    return section(
        "words",
        "Before and after training",
        introduction,
        element("div", first, class_="samples"),
        element("details", summary, element("div", more, class_="samples")) if more else None,
    )


def _sample(sample: EvaluationSample, names: Sequence[str]) -> Html:
    completions = []
    for name in names:
        completion = sample.completions[name]
        marks = [_mark(measure, value) for measure, value in list(completion.measures.items())[:_SHOWN_MEASURES]]
        if not completion.finished:
            marks.append(element("span", "cut at the maximum length", class_="mark"))
        text = completion.text.strip() or "(empty)"
        completions.append(element("div", element("small", name), element("p", text), marks, class_="answer"))
    prompt = element("p", sample.prompt, class_="prompt")
    return element("div", prompt, element("div", completions, class_="answers"), class_="sample")


def _mark(measure: str, value: float) -> Html:
    """Return the name of a measure with its value. The values 0 and 1 are shown as a cross and a check mark."""
    shown = {0.0: "✗", 1.0: "✓"}.get(value, format_number(value))
    return element("span", f"{readable_name(measure)} {shown}", class_="mark good" if value > 0 else "mark")
