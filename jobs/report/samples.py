"""Completions of several models to the same prompts, side by side."""

from collections.abc import Sequence

from actors.evaluation_results import EvaluationSample
from jobs.report.page import Html, element, number, section
from jobs.report.part import words

_OPEN_SAMPLES = 4
_MAX_SAMPLES = 24
_SHOWN_MEASURES = 1


def side_by_side(samples: Sequence[EvaluationSample], compared: Sequence[str]) -> Html:
    """The completions of the compared models (else of the first two) to the first prompts, not chosen ones."""
    names = list(compared or list(samples[0].completions)[:2])
    shown = [sample for sample in samples if all(name in sample.completions for name in names)][:_MAX_SAMPLES]
    drawn = [_sample(sample, names) for sample in shown]
    first, more = drawn[:_OPEN_SAMPLES], drawn[_OPEN_SAMPLES:]
    summary = element("summary", f"{len(more)} more")
    lead = f"The first prompts of the held-out file, as they come, completed by {' and '.join(names)}."
    return section(
        "words",
        "Before and after",
        lead,
        element("div", first, class_="samples"),
        element("details", summary, element("div", more, class_="samples")) if more else None,
    )


def _sample(sample: EvaluationSample, names: Sequence[str]) -> Html:
    completions = []
    for name in names:
        completion = sample.completions[name]
        marks = [_mark(measure, value) for measure, value in list(completion.measures.items())[:_SHOWN_MEASURES]]
        if not completion.finished:
            marks.append(element("span", "cut at the longest length", class_="mark"))
        text = completion.text.strip() or "(nothing)"
        completions.append(element("div", element("small", name), element("p", text), marks, class_="answer"))
    prompt = element("p", sample.prompt, class_="prompt")
    return element("div", prompt, element("div", completions, class_="answers"), class_="sample")


def _mark(measure: str, value: float) -> Html:
    shown = {0.0: "✗", 1.0: "✓"}.get(value, number(value))
    return element("span", f"{words(measure)} {shown}", class_="mark good" if value > 0 else "mark")
