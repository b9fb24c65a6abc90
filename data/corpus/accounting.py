"""Counts what became of every record that a corpus read, and checks that no record is lost.

For every source, the number of records read is the number of documents kept, plus those dropped (counted by reason),
plus the records quarantined.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from data.corpus.parts import PartCounts, PartRecord

_MAX_KINDS = 50
"""Number of kinds of other records that a summary names for a source."""
_RARER_KINDS = "rarer kinds"
"""Name under which a summary counts all other kinds of a source."""


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What became of the records of one source."""

    read: int = 0
    """Number of records that are meant to be documents, including records that went to quarantine."""
    quarantined: int = 0
    """Number of records that could not be read and went to quarantine."""
    others: int = 0
    """Number of records that are not meant to be documents, such as requests in a WARC file. They are not counted in
    `read`."""
    other_kinds: dict[str, int] = field(default_factory=dict)
    """Number of these records of each kind (`SkippedRecord.kind`)."""
    bytes_read: int = 0
    """Total bytes of the texts of all documents before cleaning."""
    kept: int = 0
    """Number of kept documents."""
    bytes: int = 0
    """Total bytes of the texts of the kept documents."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of dropped documents for each reason."""
    changed: dict[str, int] = field(default_factory=dict)
    """How often cleaning steps made each kind of change (`data.cleaning.recipe.CleaningResult.counts`)."""

    def __add__(self, other: "SourceCounts") -> "SourceCounts":
        return SourceCounts(
            read=self.read + other.read,
            quarantined=self.quarantined + other.quarantined,
            others=self.others + other.others,
            other_kinds=_sum_by_name([self.other_kinds, other.other_kinds]),
            bytes_read=self.bytes_read + other.bytes_read,
            kept=self.kept + other.kept,
            bytes=self.bytes + other.bytes,
            dropped=_sum_by_name([self.dropped, other.dropped]),
            changed=_sum_by_name([self.changed, other.changed]),
        )


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """A source of which one step dropped nearly all documents that reached the step (`collapses.py`)."""

    source: str
    step: str
    """Name of the step, or `empty` if the steps left no text."""
    reached: int
    """Number of the source's documents that the steps before this one kept."""
    dropped: int
    """Number of these documents that the step dropped."""


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """The summary of a corpus in artifact.json. Its counts are sums over all sources; see `SourceCounts`."""

    documents: int
    """Number of kept documents."""
    read: int
    quarantined: int
    others: int
    bytes_read: int
    bytes: int
    dropped: dict[str, int]
    sources: dict[str, SourceCounts]
    """Counts for each source. The keys are the names of the sources."""
    content_digest: str
    """Hash of all kept documents."""
    parts: int
    """Number of parts."""
    mixture: dict[str, float]
    """Share of each source's documents that the mixture keeps. Empty without a mixture."""
    other_kinds: dict[str, int] = field(default_factory=dict)
    collapses: list[Collapse] = field(default_factory=list)
    """The sources of which one step dropped nearly everything."""


def sum_by_source(counts: Iterable[Mapping[str, SourceCounts]]) -> dict[str, SourceCounts]:
    """Add up counts for each source. The keys of every mapping in `counts` and of the result are names of sources."""
    total: dict[str, SourceCounts] = {}
    for by_source in counts:
        for source, source_counts in by_source.items():
            total[source] = total.get(source, SourceCounts()) + source_counts
    return total


def summarize(
    sources: Mapping[str, SourceCounts], parts: Sequence[PartRecord], mixture: Mapping[str, float]
) -> CorpusSummary:
    """Return the summary of a corpus with these parts. Checks that the counts of every source add up.

    `sources` maps the name of each source to the counts that the cleaning tasks made. These counts say how many records
    were read, quarantined or forgotten. The parts say which of the other documents were kept and which were dropped, so
    the counts of the parts are added. `mixture` becomes the field `CorpusSummary.mixture`.
    """
    part_counts = sum_by_source(_source_counts(part.counts) for part in parts)
    by_source = {
        name: _check_counts(name, _bound_kinds(counts + part_counts.get(name, SourceCounts())))
        for name, counts in sources.items()
    }
    all_counts = list(by_source.values())
    return CorpusSummary(
        documents=sum(counts.kept for counts in all_counts),
        read=sum(counts.read for counts in all_counts),
        quarantined=sum(counts.quarantined for counts in all_counts),
        others=sum(counts.others for counts in all_counts),
        bytes_read=sum(counts.bytes_read for counts in all_counts),
        bytes=sum(counts.bytes for counts in all_counts),
        dropped=_sum_by_name(counts.dropped for counts in all_counts),
        sources=by_source,
        content_digest=_content_digest(parts),
        parts=len(parts),
        mixture=dict(mixture),
        other_kinds=_sum_by_name(counts.other_kinds for counts in all_counts),
    )


def summary_without_forgotten(
    summary: CorpusSummary, num_forgotten: Mapping[str, int], parts: Sequence[PartRecord]
) -> CorpusSummary:
    """Return the summary of a corpus from which documents were forgotten.

    `summary` is the summary before that. `num_forgotten` maps the name of a source to the number of its newly forgotten
    documents. `parts` are the records of all parts after these documents were removed. `SourceCounts.changed` still
    includes the changes made to the forgotten documents, because subtracting them would need another cleaning run.
    """
    sources: dict[str, SourceCounts] = {}
    for name, counts in summary.sources.items():
        dropped = {"forgotten": counts.dropped.get("forgotten", 0) + num_forgotten.get(name, 0)}
        # `summarize` adds the kept documents and the other dropped documents, because the parts count them.
        sources[name] = replace(counts, kept=0, bytes=0, dropped=dropped)
    return summarize(sources, parts, summary.mixture)


def check_not_empty(summary: CorpusSummary, quarantine_url: str = "") -> None:
    """Raises ValueError if no document is kept. The message names the most frequent reason why documents were lost.

    If no record was read at all, the message says so. `quarantine_url` is the folder that lists the quarantined
    records.
    """
    if summary.documents:
        return
    if not summary.read:
        kinds = sorted(summary.other_kinds.items(), key=lambda item: -item[1])
        named = ": " + ", ".join(f"{kind} {count:,}" for kind, count in kinds) if kinds else ""
        raise ValueError(
            "corpus: the sources contain no record that is meant to be a document "
            f"({summary.others:,} other records were skipped{named}); add files to the sources"
        )
    losses = sorted({**summary.dropped, "quarantine": summary.quarantined}.items(), key=lambda item: -item[1])
    counts_by_reason = ", ".join(f"{reason} {count:,}" for reason, count in losses if count)
    most_frequent = losses[0][0]
    remedies = {
        "quarantine": f"see the corpus's folder quarantine {quarantine_url} for the reasons",
        "empty": "check that the sources contain text and that no step removes all of it",
        "forgotten": "add documents that are not forgotten to the sources",
        "fraction": "raise the fraction of the sources",
        "mixture": "change the weights of the mixture",
    }
    remedy = remedies.get(most_frequent, f"loosen the settings of {most_frequent.partition('/')[0]}")
    raise ValueError(
        f"corpus: none of {summary.read:,} documents read is kept; most were lost to {most_frequent} "
        f"({counts_by_reason}); {remedy}"
    )


def _source_counts(part_counts: Mapping[str, PartCounts]) -> dict[str, SourceCounts]:
    """Convert the counts of a part to `SourceCounts`."""
    return {
        name: SourceCounts(kept=counts.kept, bytes=counts.bytes, dropped=counts.dropped)
        for name, counts in part_counts.items()
    }


def _check_counts(source: str, counts: SourceCounts) -> SourceCounts:
    """Check that kept, dropped and quarantined records add up to the records read. Returns the counts."""
    total = counts.kept + sum(counts.dropped.values()) + counts.quarantined
    assert counts.read == total, (
        f"{source}: {counts.read} records were read, but {total} were kept, dropped or quarantined: {counts}"
    )
    return counts


def _bound_kinds(counts: SourceCounts) -> SourceCounts:
    """Return the counts with the rare kinds of other records added up, because a crawl may have any number of kinds."""
    named = [item for item in counts.other_kinds.items() if item[0] != _RARER_KINDS]
    named.sort(key=lambda item: (-item[1], item[0]))
    rare = sum(count for _, count in named[_MAX_KINDS:]) + counts.other_kinds.get(_RARER_KINDS, 0)
    return replace(counts, other_kinds=_sum_by_name([dict(named[:_MAX_KINDS]), {_RARER_KINDS: rare}]))


def _sum_by_name(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts for each name. Names are sorted, and names with the sum 0 are left out."""
    total: Counter[str] = Counter()
    for by_name in counts:
        total.update(by_name)
    return {name: total[name] for name in sorted(total) if total[name]}


def _content_digest(parts: Iterable[PartRecord]) -> str:
    """Return the hash of the documents of all parts."""
    return hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest()
