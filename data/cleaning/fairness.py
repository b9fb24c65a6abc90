"""The fairness ledger of a corpus: a table of how often each cleaning step removes mentions of each group of people.

A filter can remove harmless texts because they mention a group. To measure this, every step is applied to made-up
sentences (`fairness_sentences.py`) that say something harmless about a member of a group. The same sentences about a
person without a mentioned group are the reference. The excess is the share of removed sentences about the group minus
the share of removed reference sentences. The sentences are otherwise the same, so an excess above 0 means that the step
reacts to the mention of the group.

Each sentence is tested in two forms. The form `sentence` is the sentence alone, as in a chat or a caption. The form
`paragraph` puts it into a paragraph of plain prose, which is long enough for filters that drop short texts. Groups are
compared within an axis, such as religion or gender. For the axis `dialect`, the groups are everyday sentences in three
varieties of English, the reference is the same sentences in standard English, and a paragraph is twelve sentences.

Every rate has a 95 % confidence interval: Wilson's score interval (1927) for a share of removed sentences, and
Newcombe's interval (1998, method 10), which combines two Wilson intervals, for an excess. Both assume that the
sentences are independent samples of what can be said neutrally about a group. The sentences are few, in English, and
written by Raymill's authors. A rate of 0 therefore says that a step keeps these sentences. It does not say that the
step is fair in another language or genre. `Ledger.not_judged` lists what the ledger says nothing about: the languages
that the recipe keeps besides English, and the steps that remove most of the sentences anyway.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data.cleaning.fairness_sentences import NO_GROUP, Form, probe_texts
from data.cleaning.step import Outcome

FAIRNESS = "fairness.json"
"""Name of the file of a corpus artifact that contains the ledger (`Ledger`)."""

LANGUAGE = "en"
"""Language of the ledger's sentences."""

_FORMS: tuple[Form, ...] = ("sentence", "paragraph")

_MAX_REFERENCE_REMOVED = 0.5
"""Maximum share of removed reference texts. A step that removes more than this removes nearly everything, so its excess
says little about groups."""

_Z = 1.959963984540054
"""Number of standard deviations around the mean that contain 95 % of a normal distribution."""


class LedgerStep(NamedTuple):
    """A step of a recipe, as the ledger measures it."""

    name: str
    """Position of the step in the config, such as `steps[3].toxicity`."""
    run: Callable[[list[str]], Outcome]
    """Applies the step, with its settings, to a batch of texts."""
    keep: float = 0.0
    """Value of the step's `keep`: of the documents that the step would drop, the share that is kept anyway."""
    can_keep: bool = True
    """Whether the config allows a `keep` for this step."""
    kept_languages: Sequence[str] = ()
    """Languages to which the step reduces the corpus. Empty for a step that keeps texts in any language."""
    is_for_all: bool = True
    """Whether the step is applied to all sources."""


@dataclass(frozen=True, kw_only=True)
class FairnessRow:
    """A row of the ledger: how often one step removes texts about one group.

    The row describes one form (sentence or paragraph): the form with the larger excess, or the only form that is
    judged. All rates, excesses and intervals are multiplied by 1 - `keep`.
    """

    step: str
    """Position of the step in the config, such as `steps[3].toxicity`."""
    axis: str
    """Kind of group, such as `religion`."""
    group: str
    form: Form
    num_templates: int
    """Number of texts about the group in this form."""
    removed: float
    """Share of the texts about the group that the step drops or from which it cuts the mention of the group."""
    low: float
    """Lower end of the 95 % interval of `removed`."""
    high: float
    """Upper end of the 95 % interval of `removed`."""
    reference_removed: float
    """The corresponding share of the reference texts, which mention no group."""
    excess: float
    """`removed` minus `reference_removed`."""
    excess_low: float
    """Lower end of the 95 % interval of `excess`. If it is above 0, the excess is unlikely to be chance."""
    excess_high: float
    """Upper end of the 95 % interval of `excess`."""
    judged: bool
    """Whether an excess of 0 says something about the group. False if the step removes most of the reference texts in
    both forms."""
    keep: float
    """Value of the step's `keep`."""
    can_keep: bool
    """Whether the config allows a `keep` for this step."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The content of fairness.json."""

    language: str = LANGUAGE
    """Language of the sentences."""
    rows: list[FairnessRow]
    """A row for every pair of step and group, in the order of the steps."""
    not_judged: list[str]
    """Sentences about what the ledger says nothing about."""
    judges_nothing: bool = False
    """Whether the ledger says nothing at all about the corpus: no kept text is in the language of the sentences, or
    every step removes most of the sentences."""


def build_ledger(steps: Sequence[LedgerStep]) -> Ledger:
    """Apply the steps to the sentences, and return how often each of them removes mentions of each group."""
    rows = [row for step in steps for row in _rows(step)]
    not_judged = [note for step in steps for note in _language_notes(step)]
    for step in steps:
        unjudged = [row for row in rows if row.step == step.name and not row.judged]
        if unjudged:
            axes = ", ".join(dict.fromkeys(row.axis for row in unjudged))
            share = max(row.reference_removed for row in unjudged)
            not_judged.append(
                f"{step.name} removes {share:.0%} of the sentences even without a mention, so it is not judged ({axes})"
            )
    limits = [step.kept_languages for step in steps if step.is_for_all and step.kept_languages]
    judges_nothing = any(LANGUAGE not in kept for kept in limits) or bool(rows) and not any(row.judged for row in rows)
    return Ledger(rows=rows, not_judged=not_judged, judges_nothing=judges_nothing)


def _language_notes(step: LedgerStep) -> Iterator[str]:
    """Yield a sentence if the step keeps languages that the ledger's sentences are not in."""
    if others := [code for code in step.kept_languages if code != LANGUAGE]:
        named = ", ".join(others)
        kept = "keeps" if LANGUAGE in step.kept_languages else f"removes texts in {LANGUAGE} and keeps"
        yield f"{step.name} {kept} {named}: nothing is judged in {named}, because the sentences are in {LANGUAGE}"


def check_budget(ledger: Ledger, budget: float) -> None:
    """Raises ValueError if a step's excess for a group is above `budget`, which is a share between 0 and 1.

    An excess whose interval contains 0 is ignored, because among hundreds of rows some exceed a small budget by chance.
    A row that is not judged breaks the budget like any other, because its excess is real. Without an excess, however,
    it says nothing. So a budget for a ledger that judges nothing would be ignored, and is an error too.
    """
    if ledger.judges_nothing:
        raise ValueError(
            f"fairness_budget: {budget:.1%} cannot be checked, because the fairness ledger judges nothing in this "
            f"recipe: {'; '.join(ledger.not_judged)}. Set fairness_budget to null, or change these steps"
        )
    breaches = sorted(
        (row for row in ledger.rows if row.excess > budget and row.excess_low > 0), key=lambda row: -row.excess
    )
    if not breaches:
        return
    worst = breaches[0]
    others = ", ".join(f"{row.group} at {row.step} {row.excess:.1%}" for row in breaches[1:])
    remedy = "Loosen the step's settings or remove the step"
    if worst.can_keep:
        keep = max(smallest_keep(row, budget) for row in breaches if row.step == worst.step)
        remedy = (
            "Loosen the step's settings, remove the step, or keep a share of what it would remove by adding this to "
            f"the step: `keep: {keep}`"
        )
    raise ValueError(
        f"{worst.step}: removes {worst.removed:.1%} of neutral texts about {worst.group} ({worst.axis}; 95 % interval "
        f"{worst.low:.1%} to {worst.high:.1%}, {worst.num_templates} texts) and {worst.reference_removed:.1%} of the "
        f"same texts without the group. The difference of {worst.excess:.1%} is above the fairness_budget of "
        f"{budget:.1%}{f' (also too high: {others})' if others else ''}. {remedy}"
    )


def smallest_keep(row: FairnessRow, budget: float) -> float:
    """Return the smallest `keep` with which the step's excess for this group is not above the budget.

    The result is rounded up to hundredths. The excess is proportional to 1 - keep. So 1 - keep must be at most
    (1 - row.keep) * budget / row.excess.
    """
    if row.excess <= budget:
        return row.keep
    return math.ceil(round(100 * (1 - (1 - row.keep) * budget / row.excess), 6)) / 100


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return both ends of the 95 % score interval (Wilson 1927) of the share `count / total`."""
    share, shrink = count / total, 1 + _Z**2 / total
    center = (share + _Z**2 / (2 * total)) / shrink
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / shrink
    return max(0.0, center - half), min(1.0, center + half)


def _rows(step: LedgerStep) -> Iterator[FairnessRow]:
    """Yield a row for each group, which describes the form with the larger excess, or the only form that is judged."""
    probes = probe_texts()
    outcome = step.run([probe.text for probe in probes])
    num_texts, num_removed = Counter[tuple[str, str, Form]](), Counter[tuple[str, str, Form]]()
    for probe, text, reason in zip(probes, outcome.texts, outcome.reasons, strict=True):
        key = (probe.axis, probe.group, probe.form)
        num_texts[key] += 1
        num_removed[key] += reason is not None or _normalized(probe.mention) not in _normalized(text)
    for axis, group in dict.fromkeys((probe.axis, probe.group) for probe in probes if probe.group):
        rows = [_row(step, axis, group, form, num_texts, num_removed) for form in _FORMS]
        yield max(rows, key=lambda row: (row.judged, row.excess))


def _row(step: LedgerStep, axis: str, group: str, form: Form, num_texts: Counter, num_removed: Counter) -> FairnessRow:
    key, reference = (axis, group, form), (axis, NO_GROUP, form)
    share, reference_share = num_removed[key] / num_texts[key], num_removed[reference] / num_texts[reference]
    low, high = wilson(num_removed[key], num_texts[key])
    reference_low, reference_high = wilson(num_removed[reference], num_texts[reference])
    # The ends of the excess's interval are computed below from both Wilson intervals (Newcombe, method 10).
    excess = share - reference_share
    scale = 1 - step.keep
    return FairnessRow(
        step=step.name,
        axis=axis,
        group=group,
        form=form,
        num_templates=num_texts[key],
        removed=share * scale,
        low=low * scale,
        high=high * scale,
        reference_removed=reference_share * scale,
        excess=excess * scale,
        excess_low=(excess - math.hypot(share - low, reference_high - reference_share)) * scale,
        excess_high=(excess + math.hypot(high - share, reference_share - reference_low)) * scale,
        judged=reference_share <= _MAX_REFERENCE_REMOVED,
        keep=step.keep,
        can_keep=step.can_keep,
    )


def _normalized(text: str) -> str:
    """Return the text case folded and with single spaces, so that changes of case or spaces do not count as removal."""
    return " ".join(text.casefold().split())
