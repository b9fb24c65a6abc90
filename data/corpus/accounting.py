"""The account of a corpus: of every source, records read = documents kept + dropped (by reason) + quarantined."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from data.corpus.parts import PartCounts, PartRecord


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What became of the records of one source."""

    read: int = 0
    """Records that should hold a document; those in quarantine are among them."""
    quarantined: int = 0
    others: int = 0
    """Records of another purpose, such as a WARC file's requests; not among those read."""
    bytes_read: int = 0
    """Of the texts, before cleaning."""
    kept: int = 0
    bytes: int = 0
    """Of the texts that are kept."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Documents by reason."""
    changed: dict[str, int] = field(default_factory=dict)
    """How often each cleaning step made each change."""

    def __add__(self, other: "SourceCounts") -> "SourceCounts":
        return SourceCounts(
            read=self.read + other.read,
            quarantined=self.quarantined + other.quarantined,
            others=self.others + other.others,
            bytes_read=self.bytes_read + other.bytes_read,
            kept=self.kept + other.kept,
            bytes=self.bytes + other.bytes,
            dropped=_sum_by_name([self.dropped, other.dropped]),
            changed=_sum_by_name([self.changed, other.changed]),
        )


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """What artifact.json says of a corpus. Counts are over all sources, as in `SourceCounts`."""

    documents: int
    read: int
    quarantined: int
    others: int
    bytes_read: int
    bytes: int
    dropped: dict[str, int]
    sources: dict[str, SourceCounts]
    content_digest: str
    """Identity of all documents."""
    parts: int
    mixture: dict[str, float]
    """The share of each source's documents that the mixture keeps; empty without a mixture."""


def sum_by_source(counts: Iterable[Mapping[str, SourceCounts]]) -> dict[str, SourceCounts]:
    """The sums by source."""
    total: dict[str, SourceCounts] = {}
    for by_source in counts:
        for source, more in by_source.items():
            total[source] = total.get(source, SourceCounts()) + more
    return total


def summarize(
    sources: Mapping[str, SourceCounts], parts: Sequence[PartRecord], mixture: Mapping[str, float]
) -> CorpusSummary:
    """The summary of a corpus of these parts. `sources` holds all counts but for those of the parts, for every source.

    Checks that every source's account closes.
    """
    in_parts = sum_by_source(_source_counts(part.counts) for part in parts)
    by_source = {
        name: _check_counts(name, counts + in_parts.get(name, SourceCounts())) for name, counts in sources.items()
    }
    every = list(by_source.values())
    return CorpusSummary(
        documents=sum(counts.kept for counts in every),
        read=sum(counts.read for counts in every),
        quarantined=sum(counts.quarantined for counts in every),
        others=sum(counts.others for counts in every),
        bytes_read=sum(counts.bytes_read for counts in every),
        bytes=sum(counts.bytes for counts in every),
        dropped=_sum_by_name(counts.dropped for counts in every),
        sources=by_source,
        content_digest=_content_digest(parts),
        parts=len(parts),
        mixture=dict(mixture),
    )


def summary_without_forgotten(
    summary: CorpusSummary, forgotten: Mapping[str, int], parts: Sequence[PartRecord]
) -> CorpusSummary:
    """The summary after documents are forgotten, so many of each source, and the parts are rewritten.

    What cleaning changed in texts stays as it was counted when that was done.
    """
    sources: dict[str, SourceCounts] = {}
    for name, counts in summary.sources.items():
        dropped = {"forgotten": counts.dropped.get("forgotten", 0) + forgotten.get(name, 0)}
        sources[name] = replace(counts, kept=0, bytes=0, dropped=dropped)
    return summarize(sources, parts, summary.mixture)


def check_not_empty(summary: CorpusSummary) -> None:
    """Raise ValueError naming the filter that took most when no document is left."""
    if summary.documents:
        return
    taken = sorted({**summary.dropped, "quarantine": summary.quarantined}.items(), key=lambda item: -item[1])
    account = ", ".join(f"{reason} {number:,}" for reason, number in taken if number)
    most = taken[0][0]
    remedy = "see quarantine for the reasons" if most == "quarantine" else f"loosen {most.partition('/')[0]}"
    raise ValueError(f"corpus: no document is left of {summary.read:,} read; most went to {most} ({account}); {remedy}")


def _source_counts(parts: Mapping[str, PartCounts]) -> dict[str, SourceCounts]:
    return {
        name: SourceCounts(kept=counts.kept, bytes=counts.bytes, dropped=counts.dropped)
        for name, counts in parts.items()
    }


def _check_counts(source: str, counts: SourceCounts) -> SourceCounts:
    """The counts, checked to add up."""
    closed = counts.kept + sum(counts.dropped.values()) + counts.quarantined
    assert counts.read == closed, f"{source}: {counts.read} records read, but {closed} accounted for: {counts}"
    return counts


def _sum_by_name(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums by name, in the order of the names; zeros are left out."""
    total: Counter[str] = Counter()
    for by_name in counts:
        total.update(by_name)
    return {name: total[name] for name in sorted(total) if total[name]}


def _content_digest(parts: Iterable[PartRecord]) -> str:
    return hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest()
