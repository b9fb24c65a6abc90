"""The report on a corpus: what became of the records, and the fairness ledger."""

from collections.abc import Sequence
from itertools import groupby, islice

from cluster.plain import from_plain
from data.cleaning.fairness import FAIRNESS, FairnessRow
from data.corpus.accounting import CorpusSummary
from jobs.frame.artifact import Artifact
from jobs.report.charts import share_bar
from jobs.report.page import Html, data_size, element, join, section, table
from jobs.report.part import ReportPart, words

_SHOWN_GROUPS = 5


def report_corpus(artifact: Artifact) -> ReportPart:
    """What became of the records of each source, what was changed in texts, and the fairness ledger."""
    summary = artifact.read_summary(CorpusSummary)
    reasons = sorted(summary.dropped.items(), key=lambda item: -item[1])
    fates = [("kept", summary.documents), *((words(reason), count) for reason, count in reasons)]
    if summary.quarantined:
        fates.append(("quarantined", summary.quarantined))
    rows = [
        [
            element("b", name),
            f"{counts.read:,}",
            f"{counts.kept:,}",
            f"{sum(counts.dropped.values()):,}",
            f"{counts.quarantined:,}",
            data_size(counts.bytes),
        ]
        for name, counts in summary.sources.items()
    ]
    lead = (
        f"{summary.read:,} records were read and {summary.documents:,} kept, {data_size(summary.bytes)} of text. "
        "Every other one has a reason, and the counts add up."
    )
    header = ["source", "read", "kept", "dropped", "quarantined", "text kept"]
    by_source = table(header, rows, numeric=range(1, 6))
    return ReportPart(
        section=section("corpus", "Corpus", lead, share_bar(fates), by_source, _changed(summary), _fairness(artifact)),
        facts=[f"{data_size(summary.bytes)} of text"],
    )


def _changed(summary: CorpusSummary) -> Html | None:
    total: dict[str, int] = {}
    for counts in summary.sources.values():
        for change, count in counts.changed.items():
            total[change] = total.get(change, 0) + count
    if not total:
        return None
    changes = ", ".join(
        f"{words(change)} {count:,}" for change, count in sorted(total.items(), key=lambda item: -item[1])
    )
    return element("p", f"Changed and kept: {changes}.", class_="note")


def _fairness(artifact: Artifact) -> Html:
    """The groups whose neutral mentions each step removes most in excess of the same text without a mention.

    Every pair of step and group is listed below them, folded.
    """
    ledger = [from_plain(FairnessRow, row) for row in artifact.storage.read_json(FAIRNESS)]
    unjudged = sorted({row.step for row in ledger if not row.judged})
    harmed = sorted((row for row in ledger if row.excess > 0 and row.judged), key=lambda row: (row.step, -row.excess))
    shown = [row for _, rows in groupby(harmed, key=lambda row: row.step) for row in islice(rows, _SHOWN_GROUPS)]
    lead = (
        "How often a step removes neutral sentences about a group, beside the same sentences without a mention. "
        + (f"{len(harmed)} of {len(ledger)} pairs of step and group show an excess." if harmed else "No step does.")
        + (f" {', '.join(unjudged)} removes most of either, which says little." if unjudged else "")
    )
    rows = [
        [
            element("code", row.step),
            element("b", row.group),
            words(row.axis),
            f"{row.removed:.1%}",
            element("span", f"{row.low:.1%} to {row.high:.1%}", class_="bounds"),
            f"{row.reference_removed:.1%}",
        ]
        for row in shown
    ]
    header = ["step", "group", "axis", "removed", "95 % interval", "without the mention"]
    worst = table(header, rows, numeric=[3, 5]) if rows else None
    return element("div", element("p", lead, class_="note"), worst, _whole_ledger(ledger) if ledger else None)


def _whole_ledger(ledger: Sequence[FairnessRow]) -> Html:
    rows = [
        [
            element("code", row.step),
            element("b", row.group),
            words(row.axis),
            _rate(row.removed, row.low, row.high),
            f"{row.reference_removed:.1%}",
            _rate(row.excess, row.excess_low, row.excess_high, signed=True),
            f"{row.keep:g}",
            "yes" if row.judged else "no",
        ]
        for row in ledger
    ]
    header = ["step", "group", "axis", "removed", "without the mention", "excess", "keep", "judged"]
    summary = element("summary", f"All {len(rows)} pairs of step and group, with 95 % intervals")
    return element("details", summary, table(header, rows, numeric=[3, 4, 5, 6]))


def _rate(value: float, low: float, high: float, *, signed: bool = False) -> Html:
    """A share above its interval, all in percent."""
    form = "+.1%" if signed else ".1%"
    bounds = element("span", f"{low:{form}} to {high:{form}}", class_="bounds")
    return join(f"{value:{form}} ", bounds)
