"""The error for a corpus that keeps no document."""

import pytest

from data.corpus.accounting import CorpusSummary, SourceCounts, check_not_empty, summarize


def empty_summary(**counts: int | dict[str, int]) -> CorpusSummary:
    return summarize({"s": SourceCounts(**counts)}, [], {})  # pyright: ignore[reportArgumentType]


def test_sources_without_a_record_are_named_as_the_reason_for_an_empty_corpus() -> None:
    with pytest.raises(ValueError, match=r"^corpus: the sources contain no record .*\(3 other records were skipped\)"):
        check_not_empty(empty_summary(others=3))


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("forgotten", "add documents that are not forgotten"),
        ("fraction", "raise the fraction of the sources"),
        ("empty", "check that the sources contain text"),
        ("gopher_quality/words", "loosen the settings of gopher_quality"),
    ],
)
def test_the_error_for_an_empty_corpus_has_a_remedy_for_each_reason(reason: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"most were lost to {reason} .*{remedy}"):
        check_not_empty(empty_summary(read=3, quarantined=1, dropped={reason: 2}))


def test_the_kinds_of_other_records_are_named_and_the_rare_ones_of_a_source_added_up() -> None:
    kinds = {f"response image/{number:02d}": 100 - number for number in range(60)}
    summary = empty_summary(others=sum(kinds.values()), other_kinds=kinds)
    counts = summary.sources["s"].other_kinds
    assert len(counts) == 51 and counts["response image/49"] == 51
    assert counts["rarer kinds"] == sum(100 - number for number in range(50, 60))
    assert summary.other_kinds == counts
    assert summarize(summary.sources, [], {}).other_kinds == counts  # as `forget` does it
    with pytest.raises(ValueError, match="4,230 other records were skipped: rarer kinds 455, response image/00 100, "):
        check_not_empty(summary)


def test_the_error_for_an_empty_corpus_says_where_the_quarantine_is() -> None:
    with pytest.raises(
        ValueError, match=r"lost to quarantine .*; see .* quarantine s3://bucket/corpus/quarantine for the"
    ):
        check_not_empty(empty_summary(read=3, quarantined=3), "s3://bucket/corpus/quarantine")
