"""The report on a corpus: what became of the records, and the fairness ledger."""

from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from typing import Any

from jobs.frame.artifact import Artifact
from jobs.report.charts import share_bar
from jobs.report.page import Html, data_size, element, join, section, table
from jobs.report.part import ReportPart, words

_SHOWN_GROUPS = 5


# One section for each stage.


def report_corpus(artifact: Artifact) -> ReportPart:
    """What became of the records of each source, what was changed in texts, and the fairness ledger."""
    found = artifact.summary
    reasons = sorted(found["dropped"].items(), key=lambda item: -item[1])
    fates = [("kept", found["documents"]), *((words(reason), count) for reason, count in reasons)]
    if found["quarantined"]:
        fates.append(("quarantined", found["quarantined"]))
    rows = [
        [
            element("b", name),
            f"{own['read']:,}",
            f"{own['kept']:,}",
            f"{sum(own['dropped'].values()):,}",
            f"{own['quarantined']:,}",
            data_size(own["bytes"]),
        ]
        for name, own in found["sources"].items()
    ]
    lead = (
        f"{found['read']:,} records were read and {found['documents']:,} kept, {data_size(found['bytes'])} of text. "
        "Every other one has a reason, and the counts add up."
    )
    header = ["source", "read", "kept", "dropped", "quarantined", "text kept"]
    counts = table(header, rows, numeric=range(1, 6))
    return ReportPart(
        section=section("corpus", "Corpus", lead, share_bar(fates), counts, _changed(found), _fairness(artifact)),
        facts=[f"{data_size(found['bytes'])} of text"],
    )


def _changed(found: Mapping[str, Any]) -> Html | None:
    total: dict[str, int] = {}
    for own in found["sources"].values():
        for change, count in own["changed"].items():
            total[change] = total.get(change, 0) + count
    if not total:
        return None
    said = ", ".join(f"{words(change)} {count:,}" for change, count in sorted(total.items(), key=lambda item: -item[1]))
    return element("p", f"Changed and kept: {said}.", class_="note")


def _fairness(artifact: Artifact) -> Html:
    """Of every step that removes some group's neutral mentions more often than the same text without one: the groups
    that it does so to most; folded below, every step and group."""
    ledger = artifact.storage.read_json("fairness.json")
    unjudged = sorted({row["step"] for row in ledger if not row["judged"]})
    harmed = sorted(
        (row for row in ledger if row["excess"] > 0 and row["judged"]), key=lambda row: (row["step"], -row["excess"])
    )
    shown = [row for _, rows in groupby(harmed, key=lambda row: row["step"]) for row in islice(rows, _SHOWN_GROUPS)]
    lead = (
        "How often a step removes neutral sentences about a group, beside the same sentences without a mention. "
        + (f"{len(harmed)} of {len(ledger)} pairs of step and group show an excess." if harmed else "No step does.")
        + (f" {', '.join(unjudged)} removes most of either, which says little." if unjudged else "")
    )
    rows = [
        [
            element("code", row["step"]),
            element("b", row["group"]),
            words(row["axis"]),
            f"{row['removed']:.1%}",
            element("span", f"{row['low']:.1%} to {row['high']:.1%}", class_="bounds"),
            f"{row['reference_removed']:.1%}",
        ]
        for row in shown
    ]
    header = ["step", "group", "axis", "removed", "95 % interval", "without the mention"]
    worst = table(header, rows, numeric=[3, 5]) if rows else None
    return element("div", element("p", lead, class_="note"), worst, _whole_ledger(ledger) if ledger else None)


def _whole_ledger(ledger: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        [
            element("code", row["step"]),
            element("b", row["group"]),
            words(row["axis"]),
            _rate(row, "removed", "low", "high"),
            f"{row['reference_removed']:.1%}",
            _rate(row, "excess", "excess_low", "excess_high", signed=True),
            f"{row['keep']:g}",
            "yes" if row["judged"] else "no",
        ]
        for row in ledger
    ]
    header = ["step", "group", "axis", "removed", "without the mention", "excess", "keep", "judged"]
    summary = element("summary", f"All {len(rows)} pairs of step and group, with 95 % intervals")
    return element("details", summary, table(header, rows, numeric=[3, 4, 5, 6]))


def _rate(row: Mapping[str, Any], value: str, low: str, high: str, *, signed: bool = False) -> Html:
    """A share above its interval, all in per cent."""
    form = "+.1%" if signed else ".1%"
    bounds = element("span", f"{row[low]:{form}} to {row[high]:{form}}", class_="bounds")
    return join(f"{row[value]:{form}} ", bounds)
