"""The order and the checks of a recipe's steps, and what `keep` does."""

from dataclasses import replace

import pytest

from data.cleaning.c4_quality import C4Quality
from data.cleaning.clean_lines import CleanLines
from data.cleaning.duplicates import ExactDuplicates, NearDuplicates
from data.cleaning.language import Language
from data.cleaning.length import Length
from data.cleaning.recipe import Step, check_metadata, check_steps, clean, ledger_steps, name_and_settings
from data.cleaning.redact_pii import RedactPII
from data.cleaning.repair_unicode import RepairUnicode
from data.cleaning.repetition import Repetition
from data.document import Document, Source
from jobs.corpus import CorpusConfig
from jobs.frame.config_loader import build


def documents(*texts: str) -> list[Document]:
    return [Document(f"s/{number}", text, "s") for number, text in enumerate(texts)]


def test_every_document_is_kept_or_dropped_with_one_reason_and_a_step_gets_the_kept_documents() -> None:
    steps = [
        Step(repair_unicode=RepairUnicode()),
        Step(length=Length(min_bytes=3)),
        Step(redact_pii=RedactPII(email="")),
    ]
    result = clean(documents("ab", "\x07", "me@mail.org", "a &amp; b"), steps)
    assert [document.text for document in result.kept] == ["a & b"]
    assert [(document.id, reason) for document, reason in result.dropped] == [
        ("s/0", "length/min_bytes"),
        ("s/1", "length/min_bytes"),
        ("s/2", "empty"),
    ]
    assert (result.counts["repair_unicode/documents"], result.counts["redact_pii/email"]) == (2, 1)


def test_keep_keeps_its_share_of_the_documents_to_drop_and_selects_the_same_documents_in_any_batch() -> None:
    steps = [Step(length=Length(min_bytes=9), keep=0.3)]
    batch = documents(*["short"] * 1000, "long enough")
    result = clean(batch, steps)
    assert 250 < len(result.kept) - 1 < 350 and result.counts["length/kept_anyway"] == len(result.kept) - 1
    assert [kept for document in batch for kept in clean([document], steps).kept] == result.kept


def test_keep_keeps_documents_with_all_their_lines_and_only_real_changes_are_counted() -> None:
    text_with_notices, plain_text = "A line that is a sentence.\nwe use cookies\n" * 2, "A line that is a sentence."
    for step in (Step(clean_lines=CleanLines(), keep=0.3), Step(c4_quality=C4Quality(min_sentences=1), keep=0.3)):
        name = name_and_settings(step)[0]
        batch = documents(*[text_with_notices] * 500, *[plain_text] * 500)
        result = clean(batch, [step])
        assert [document.id for document in result.kept] == [document.id for document in batch]
        unchanged = [document for document in result.kept if document.text == text_with_notices]
        assert 110 < len(unchanged) < 190 and result.counts[f"{name}/kept_anyway"] == len(unchanged)
        without_keep = clean([document for document in batch if document not in unchanged], [replace(step, keep=0.0)])
        counts = {change: count for change, count in result.counts.items() if not change.endswith("kept_anyway")}
        assert counts == without_keep.counts and sum(counts.values()) > 0
        assert [kept for document in batch for kept in clean([document], [step]).kept] == result.kept


def test_the_ledger_knows_which_steps_can_have_a_keep() -> None:
    steps = [Step(c4_quality=C4Quality(), keep=0.2), Step(repair_unicode=RepairUnicode()), Step(redact_pii=RedactPII())]
    check_steps(steps)
    assert [(step.keep, step.can_keep) for step in ledger_steps(steps)] == [(0.2, True), (0.0, False), (0.0, False)]


def test_what_a_step_finds_out_is_added_to_the_metadata() -> None:
    text = "The water of the lake was calm in the morning, and the boats lay still at the shore."
    (kept,) = clean([Document("s/0", text, "s", {"url": "u"})], [Step(language=Language(keep=["en"]))]).kept
    assert kept.metadata["url"] == "u" and kept.metadata["language"] == "en"
    source = Source(name="s", path="x", format="jsonl", metadata=["language"])
    with pytest.raises(
        ValueError, match=r"sources.s.metadata: the step `language` would overwrite the column language"
    ):
        check_metadata([source], [Step(language=Language())])


def test_the_result_for_a_text_does_not_depend_on_the_batch() -> None:
    steps = [Step(repair_unicode=RepairUnicode()), Step(repetition=Repetition()), Step(redact_pii=RedactPII())]
    batch = documents("one &amp; two", "a b " * 20, "me@mail.org wrote", "fine words stay here")
    alone = [clean([document], steps) for document in batch]
    together = clean(batch, steps)
    assert together.kept == [document for result in alone for document in result.kept]


def test_the_error_of_a_wrong_recipe_names_the_step() -> None:
    exact, near = Step(exact_duplicates=ExactDuplicates()), Step(near_duplicates=NearDuplicates())
    check_steps([Step(length=Length()), exact, near])
    for wrong in ([exact, Step(length=Length())], [near], [near, exact], [exact, exact]):
        with pytest.raises(ValueError, match="the steps that compare documents must be at the end of the list"):
            check_steps(wrong)
    with pytest.raises(ValueError, match=r"steps\[0\].keep: redact_pii is not a filter"):
        check_steps([Step(redact_pii=RedactPII(), keep=0.5)])
    with pytest.raises(ValueError, match=r"steps\[0\]: each item must name exactly one step"):
        check_steps([Step()])
    with pytest.raises(ValueError, match=r"steps\[0\].length.max_bytes: 5 must be at least min_bytes \(9\)"):
        check_steps([Step(length=Length(min_bytes=9, max_bytes=5))])
    with pytest.raises(ValueError, match=r"steps\[0\].length.max_bytes: 0 must be at least 1"):
        check_steps([Step(length=Length(max_bytes=0))])
    with pytest.raises(ValueError, match=r"steps\[0\].repetition.top_ngrams\[2\]: 1.5 must be between 0 and 1"):
        check_steps([Step(repetition=Repetition(top_ngrams={2: 1.5}))])


def test_the_error_of_a_misspelled_step_or_setting_names_the_nearest_one() -> None:
    source = {"name": "s", "path": "x", "format": "text"}
    with pytest.raises(ValueError, match=r"steps\[0\].lenght is not a field; did you mean steps\[0\].length"):
        build(CorpusConfig, {"sources": [source], "steps": [{"lenght": {}}]})
    with pytest.raises(ValueError, match=r"did you mean steps\[0\].length.min_bytes"):
        build(CorpusConfig, {"sources": [source], "steps": [{"length": {"min_byte": 3}}]})
    config = build(CorpusConfig, {"sources": [source], "steps": [{"repetition": {}}, {"length": {"min_bytes": 3}}]})
    assert config.steps == [Step(repetition=Repetition()), Step(length=Length(min_bytes=3))]
