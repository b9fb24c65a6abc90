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
