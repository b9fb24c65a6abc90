"""The report section on a corpus: how many records were kept or dropped and why, and the fairness ledger.

For each cleaning step, the fairness ledger shows how often the step removes neutral sentences because they mention a
group of people (`data/cleaning/fairness.py`).
"""

from collections.abc import Mapping, Sequence
from itertools import groupby, islice

from cluster.plain import from_plain
from data.cleaning.changes import SAMPLES, ChangeSample, read_samples
from data.cleaning.fairness import FAIRNESS, FairnessRow, Ledger
from data.corpus.accounting import CorpusSummary
from data.corpus.collapses import describe
from jobs.frame.artifact import Artifact
from jobs.report.charts import share_bar
from jobs.report.page import Html, element, format_bytes, join, section, table
from jobs.report.part import ReportPart, readable_name

_MAX_GROUPS_PER_STEP = 5  # number of groups per step in the table that is always visible; the full table is folded


def report_corpus(artifact: Artifact) -> ReportPart:
    """Return a section with the counts of records by source and reason, changes to texts, and the fairness ledger."""
    summary = artifact.read_summary(CorpusSummary)
    reasons = sorted(summary.dropped.items(), key=lambda item: -item[1])
    outcomes = [("kept", summary.documents), *((readable_name(reason), count) for reason, count in reasons)]
    if summary.quarantined:
        outcomes.append(("quarantined", summary.quarantined))
    rows = [
        [
            element("b", name),
            f"{counts.read:,}",
            f"{counts.kept:,}",
            f"{sum(counts.dropped.values()):,}",
            f"{counts.quarantined:,}",
            format_bytes(counts.bytes),
        ]
        for name, counts in summary.sources.items()
    ]
    introduction = (
        f"{summary.read:,} records were read and {summary.documents:,} were kept, with {format_bytes(summary.bytes)} "
        "of text. Every other record was dropped for a reason shown below, or quarantined because it was unreadable."
    )
    header = ["source", "records read", "kept", "dropped", "quarantined", "text kept"]
    by_source = table(header, rows, numeric=range(1, 6))
    return ReportPart(
        section=section(
            "corpus",
            "Corpus",
            introduction,
            share_bar(outcomes),
            by_source,
            _collapses(summary),
            _other_records(summary),
            _changes(artifact, summary),
            _fairness(artifact),
        ),
        facts=[f"{format_bytes(summary.bytes)} of text"],
    )


def _collapses(summary: CorpusSummary) -> Html | None:
    """Return a list of the sources of which one step dropped nearly everything. None if there are none."""
    if not summary.collapses:
        return None
    items = [element("li", element("b", "Alarm: "), describe(collapse), ".") for collapse in summary.collapses]
    return element("ul", items)


def _other_records(summary: CorpusSummary) -> Html | None:
    """Return a line with the number of records of each kind that are not meant to be documents. None if there are
    none."""
    if not summary.other_kinds:
        return None
    kinds = sorted(summary.other_kinds.items(), key=lambda item: -item[1])
    text = "Not counted above, because they are not meant to be documents: "
    return element("p", text + ", ".join(f"{kind} {count:,}" for kind, count in kinds) + ".", class_="note")


def _changes(artifact: Artifact, summary: CorpusSummary) -> Html | None:
    """Return how many documents and characters each step changed in each source, and folded samples of the changes.

    Returns None if no text was changed.
    """
    rows = [
        [element("b", source), readable_name(step), *_step_counts(step, counts.changed)]
        for source, counts in summary.sources.items()
        for step in dict.fromkeys(name.partition("/")[0] for name in counts.changed)
    ]
    if not rows:
        return None
    samples = read_samples(artifact.storage) if artifact.storage.exists(SAMPLES) else {}
    drawn = [
        _change_sample(source, step, sample)
        for source, by_step in samples.items()
        for step, step_samples in by_step.items()
        for sample in step_samples
    ]
    header = ["source", "step", "documents changed", "characters changed", "kinds"]
    summary_line = element("summary", f"Show {len(drawn)} texts before and after a step")
    return element(
        "div",
        element("p", "What cleaning steps changed in the texts, besides dropping some:", class_="note"),
        table(header, rows, numeric=[2, 3]),
        element("details", summary_line, element("div", drawn, class_="samples")) if drawn else None,
    )


def _step_counts(step: str, changed: Mapping[str, int]) -> list[str]:
    """Return the cells with the numbers of documents and characters that a step changed, and with its other counts."""
    counts = {name.partition("/")[2]: count for name, count in changed.items() if name.partition("/")[0] == step}
    documents, characters = counts.pop("documents", 0), counts.pop("characters", 0)
    kinds = sorted(counts.items(), key=lambda item: -item[1])
    return [f"{documents:,}", f"{characters:,}", ", ".join(f"{readable_name(kind)} {count:,}" for kind, count in kinds)]


def _change_sample(source: str, step: str, sample: ChangeSample) -> Html:
    """Return an excerpt of a document before and after a step."""
    before = element("i", "not shown") if sample.before is None else sample.before
    excerpts = [
        element("div", element("small", label), element("p", text), class_="answer")
        for label, text in (("before", before), ("after", sample.after))
    ]
    head = element("p", f"{readable_name(step)}, {source}, ", element("code", sample.id), class_="note")
    return element("div", head, element("div", excerpts, class_="answers"), class_="sample")


def _fairness(artifact: Artifact) -> Html:
    """Return the fairness ledger: the groups with the largest excess at each step, and a folded table of all groups.

    Rows that are not `judged` are left out of the first table, because their step removes most of the sentences even
    without a mention.
    """
    content = from_plain(Ledger, artifact.storage.read_json(FAIRNESS))
    ledger = content.rows
    harmed = sorted((row for row in ledger if row.excess > 0 and row.judged), key=lambda row: (row.step, -row.excess))
    shown = [row for _, rows in groupby(harmed, key=lambda row: row.step) for row in islice(rows, _MAX_GROUPS_PER_STEP)]
    introduction = (
        "How often each cleaning step removes neutral sentences that mention a group of people, compared with the same "
        "sentences without the mention. The excess is the difference. "
        + (
            f"{len(harmed)} of {sum(row.judged for row in ledger)} pairs of a step and a group have an excess above 0."
            if harmed
            else "No step has an excess above 0 for any group."
        )
        + " The sentences are in English, so the ledger says nothing about texts in other languages."
    )
    rows = [
        [
            element("code", row.step),
            element("b", row.group),
            readable_name(row.axis),
            f"{row.removed:.1%}",
            element("span", f"{row.low:.1%} to {row.high:.1%}", class_="bounds"),
            f"{row.reference_removed:.1%}",
        ]
        for row in shown
    ]
    header = ["step", "group", "kind of group", "removed", "95 % interval", "removed without the mention"]
    largest = table(header, rows, numeric=[3, 5]) if rows else None
    verdict = element("b", "The ledger judges nothing in this corpus. ") if content.judges_nothing else None
    not_judged = (
        element("p", verdict, "; ".join(content.not_judged), ".", class_="note") if content.not_judged else None
    )
    all_rows = _all_rows(ledger) if ledger else None
    return element("div", element("p", introduction, class_="note"), not_judged, largest, all_rows)


def _all_rows(ledger: Sequence[FairnessRow]) -> Html:
    """Return a folded table of all rows of the ledger."""
    rows = [
        [
            element("code", row.step),
            element("b", row.group),
            readable_name(row.axis),
            _rate(row.removed, row.low, row.high),
            f"{row.reference_removed:.1%}",
            _rate(row.excess, row.excess_low, row.excess_high, signed=True),
            f"{row.keep:g}",
            "yes" if row.judged else "no",
        ]
        for row in ledger
    ]
    header = [
        "step",
        "group",
        "kind of group",
        "removed",
        "removed without the mention",
        "excess",
        "kept anyway",
        "counted",
    ]
    summary = element("summary", f"Show all {len(rows)} pairs of a step and a group, with 95 % intervals")
    return element("details", summary, table(header, rows, numeric=[3, 4, 5, 6]))


def _rate(value: float, low: float, high: float, *, signed: bool = False) -> Html:
    """Return a share and its interval in percent. With `signed`, positive numbers have a plus sign."""
    number_format = "+.1%" if signed else ".1%"
    bounds = element("span", f"{low:{number_format}} to {high:{number_format}}", class_="bounds")
    return join(f"{value:{number_format}} ", bounds)
