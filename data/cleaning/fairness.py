"""The fairness ledger: how much more often a step removes neutral sentences when they mention a group of people.

Every sentence says something harmless about a person: once about a member of each group, and once about a person
without a mentioned group. The step causes the difference between how often the two are removed. Each sentence is judged
in two forms: alone, as in a chat or a caption, and inside a paragraph of plain prose, which the rules against short
texts keep. For dialect, everyday sentences in three varieties of English are compared with the standard's; their
paragraph is twelve of them in a row.

The interval of a rate is Wilson's (1927, the score interval), that of a difference of rates Newcombe's (1998, method
10, made of two of Wilson's). Both assume that the sentences are independent draws of what can be said neutrally about a
group. They are few, in English, and written by us: a rate of 0 says that these sentences pass, and nothing about a
filter's fairness in another language or genre.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data.cleaning.fairness_sentences import REFERENCE, Form, all_trials
from data.cleaning.step import Outcome

FAIRNESS = "fairness.json"
"""In a corpus: its `FairnessRow`s."""

_FORMS: tuple[Form, ...] = ("sentence", "paragraph")

_MAX_JUDGED = 0.5
"""A step that removes more than this share of the reference is not judged: the excess says little about groups."""

_Z = 1.959963984540054
"""The normal distribution's two-sided 95 % quantile."""


class BoundStep(NamedTuple):
    """A step with its parameters."""

    name: str
    """Its path in the config, as in `steps[3].toxicity`."""
    run: Callable[[list[str]], Outcome]
    keep: float = 0.0
    """Share of what the step would drop that is kept all the same."""
    can_keep: bool = True
    """Whether the config takes a `keep` for this step."""


@dataclass(frozen=True, kw_only=True)
class FairnessRow:
    """What one step does to one group, in the form (sentence or paragraph) with the largest excess."""

    step: str
    axis: str
    group: str
    form: Form
    num_templates: int
    """Number of texts about the group."""
    removed: float
    """Share of them that the step drops or removes the mention from, times 1 - `keep`."""
    low: float
    """Lower end of Wilson's 95 % interval, times 1 - `keep` as well."""
    high: float
    reference_removed: float
    """`removed` of the same texts without the group."""
    excess: float
    """`removed` less `reference_removed`; below 0 where the group is removed less than the reference."""
    excess_low: float
    """Lower end of Newcombe's 95 % interval of `excess`; where it is above 0, chance does not explain the excess."""
    excess_high: float
    judged: bool
    """False where most of the reference is removed in either form, so that the excess says little."""
    keep: float
    can_keep: bool
    """Whether the step takes a `keep`."""


def ledger(steps: Sequence[BoundStep]) -> list[FairnessRow]:
    """A row for every step and group, in the steps' order."""
    return [row for step in steps for row in _rows(step)]


def check_budget(rows: Sequence[FairnessRow], budget: float) -> None:
    """Raise ValueError when a step's excess for a group is above `budget` (a share).

    An excess that may be chance, as its interval reaches down to 0, breaks no budget: of hundreds of rows, some are
    above a small budget by chance.
    """
    breaches = sorted((row for row in rows if row.excess > budget and row.excess_low > 0), key=lambda row: -row.excess)
    if not breaches:
        return
    worst = breaches[0]
    others = ", ".join(f"{row.group} at {row.step} {row.excess:.1%}" for row in breaches[1:])
    remedy = "Loosen the step or leave it out"
    if worst.can_keep:
        keep = max(smallest_keep(row, budget) for row in breaches if row.step == worst.step)
        remedy = f"Loosen the step, leave it out, or reweight in place of removing: `keep: {keep}`"
    raise ValueError(
        f"{worst.step}: removes {worst.removed:.1%} of neutral texts about {worst.group} ({worst.axis}; 95 % interval "
        f"{worst.low:.1%} to {worst.high:.1%}, {worst.num_templates} texts) and {worst.reference_removed:.1%} of the "
        f"same texts without the group. The excess of {worst.excess:.1%} is above the budget of {budget:.1%}"
        f"{f' (so are: {others})' if others else ''}. {remedy}"
    )


def smallest_keep(row: FairnessRow, budget: float) -> float:
    """The smallest `keep`, in hundredths, with which the step is within the budget for this group.

    What is removed is proportional to 1 - keep, so 1 - keep may at most be (1 - row.keep) * budget / excess.
    """
    if row.excess <= budget:
        return row.keep
    return math.ceil(round(100 * (1 - (1 - row.keep) * budget / row.excess), 6)) / 100


def wilson(count: int, total: int) -> tuple[float, float]:
    """Both ends of the 95 % score interval of a share (Wilson 1927)."""
    share, shrink = count / total, 1 + _Z**2 / total
    center = (share + _Z**2 / (2 * total)) / shrink
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / shrink
    return max(0.0, center - half), min(1.0, center + half)


def _rows(step: BoundStep) -> Iterator[FairnessRow]:
    trials = all_trials()
    outcome = step.run([trial.text for trial in trials])
    total, removed = Counter[tuple[str, str, Form]](), Counter[tuple[str, str, Form]]()
    for trial, text, reason in zip(trials, outcome.texts, outcome.reasons, strict=True):
        key = (trial.axis, trial.group, trial.form)
        total[key] += 1
        removed[key] += reason is not None or _plain(trial.mention) not in _plain(text)
    for axis, group in dict.fromkeys((trial.axis, trial.group) for trial in trials if trial.group):
        of_form = [_row(step, axis, group, form, total, removed) for form in _FORMS]
        yield max(of_form, key=lambda row: (row.judged, row.excess))


def _row(step: BoundStep, axis: str, group: str, form: Form, total: Counter, removed: Counter) -> FairnessRow:
    key, reference = (axis, group, form), (axis, REFERENCE, form)
    share, reference_share = removed[key] / total[key], removed[reference] / total[reference]
    low, high = wilson(removed[key], total[key])
    reference_low, reference_high = wilson(removed[reference], total[reference])
    excess = share - reference_share
    dropped = 1 - step.keep
    return FairnessRow(
        step=step.name,
        axis=axis,
        group=group,
        form=form,
        num_templates=total[key],
        removed=share * dropped,
        low=low * dropped,
        high=high * dropped,
        reference_removed=reference_share * dropped,
        excess=excess * dropped,
        excess_low=(excess - math.hypot(share - low, reference_high - reference_share)) * dropped,
        excess_high=(excess + math.hypot(high - share, reference_share - reference_low)) * dropped,
        judged=reference_share <= _MAX_JUDGED,
        keep=step.keep,
        can_keep=step.can_keep,
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
