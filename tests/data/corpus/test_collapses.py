"""The alarm for a source of which one step takes nearly everything."""

import pytest

from data.cleaning.duplicates import ExactDuplicates, NearDuplicates
from data.cleaning.language import Language
from data.cleaning.length import Length
from data.cleaning.recipe import Step
from data.corpus.accounting import Collapse, SourceCounts
from data.corpus.collapses import describe, find_collapses

STEPS = [
    Step(length=Length()),
    Step(language=Language(keep=["en"]), for_sources=["web", "chats"]),
    Step(exact_duplicates=ExactDuplicates()),
    Step(near_duplicates=NearDuplicates()),
]


def counts(kept: int, **dropped: int) -> SourceCounts:
    by_reason = {name.replace("__", "/"): number for name, number in dropped.items()}
    return SourceCounts(read=kept + sum(dropped.values()), kept=kept, dropped=by_reason)


def test_a_step_for_the_whole_corpus_that_leaves_one_chat_of_thirty_is_an_alarm() -> None:
    sources = {"chats": counts(1, near_duplicates=29), "web": counts(90, near_duplicates=10)}
    (collapse,) = find_collapses(sources, STEPS)
    assert collapse == Collapse(source="chats", step="near_duplicates", reached=30, dropped=29)
    assert describe(collapse).startswith("near_duplicates drops 29 of the 30 documents of chats that reach it (97%): ")
    assert "system prompt" in describe(collapse)


def test_only_documents_that_reach_a_step_count() -> None:
    # 100 of 200 reach `language`, which drops 95 of them: less than half of all documents.
    web = counts(5, length__min_bytes=100, language__other=90, language__uncertain=5, fraction=1000)
    assert find_collapses({"web": web}, STEPS) == [Collapse(source="web", step="language", reached=100, dropped=95)]


@pytest.mark.parametrize(
    "source",
    [
        counts(20, language__other=179),  # 89.9 %
        counts(0, language__other=19),  # too few documents
        counts(1, mixture=500, fraction=500, forgotten=500),  # what the user asked for
        counts(0),
        SourceCounts(read=500, quarantined=500),
    ],
)
def test_other_losses_are_no_alarm(source: SourceCounts) -> None:
    assert find_collapses({"web": source}, STEPS) == []


def test_ninety_percent_of_twenty_documents_are_an_alarm_and_texts_that_become_empty_too() -> None:
    sources = {"web": counts(2, length__min_bytes=18), "books": counts(1, empty=30)}
    assert [(collapse.source, collapse.step) for collapse in find_collapses(sources, STEPS)] == [
        ("web", "length"),
        ("books", "empty"),
    ]
    assert describe(find_collapses(sources, STEPS)[1]).startswith(
        "the steps leave no text in 30 of the 31 documents of books"
    )
