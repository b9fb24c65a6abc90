"""The order and the checks of a recipe's steps, and what `keep` does."""

from dataclasses import replace

import pytest

from data.cleaning.c4_quality import C4Quality
from data.cleaning.clean_lines import CleanLines
from data.cleaning.duplicates import ExactDuplicates, NearDuplicates
from data.cleaning.extract_html import ExtractHTML
from data.cleaning.language import Language
from data.cleaning.length import Length
from data.cleaning.recipe import Step, check_step_sources, check_steps, clean, ledger_steps, name_and_settings
from data.cleaning.redact_pii import RedactPII
from data.cleaning.repair_unicode import RepairUnicode
from data.cleaning.repetition import Repetition
from data.document import Document, Source
from jobs.corpus import CorpusConfig
from jobs.frame.config_loader import build
from jobs.frame.identity import changed_fields


def documents(*texts: str) -> list[Document]:
    return [Document(f"s/{number}", text, "s") for number, text in enumerate(texts)]


def test_every_document_is_kept_or_dropped_with_one_reason_and_a_step_gets_the_kept_documents() -> None:
    steps = [
        Step(repair_unicode=RepairUnicode(control_characters=True)),
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
    assert result.counts["redact_pii/email"] == result.counts["redact_pii/documents"] == 1
    assert (result.counts["repair_unicode/documents"], result.counts["repair_unicode/characters"]) == (2, 5)


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
        check_step_sources([source], [Step(language=Language())])


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


def test_every_step_that_changes_texts_counts_documents_and_characters_and_has_samples() -> None:
    steps = [
        Step(extract_html=ExtractHTML()),
        Step(repair_unicode=RepairUnicode()),
        Step(clean_lines=CleanLines()),
        Step(redact_pii=RedactPII()),
    ]
    result = clean(documents("<p>It was naÃ¯ve.</p>", "one  \ntwo", "Write to me@mail.org", "fine"), steps)
    assert {name: count for name, count in result.counts.items() if name.endswith(("/documents", "/characters"))} == {
        "extract_html/documents": 1,
        "extract_html/characters": 7,
        "repair_unicode/documents": 1,
        "repair_unicode/characters": 2,
        "clean_lines/documents": 1,
        "clean_lines/characters": 2,
        "redact_pii/documents": 1,
        "redact_pii/characters": 11,
    }
    assert {step: [tuple(sample) for sample in samples] for step, samples in result.samples.items()} == {
        "extract_html": [("s/0", "<p>It was naÃ¯ve.</p>", "It was naÃ¯ve.")],
        "repair_unicode": [("s/0", "It was naÃ¯ve.", "It was naïve.")],
        "clean_lines": [("s/1", "one  \ntwo", "one\ntwo")],
        "redact_pii": [("s/2", None, "Write to [EMAIL]")],
    }


def test_what_redact_pii_removes_is_in_no_sample_of_an_earlier_step() -> None:
    steps = [Step(repair_unicode=RepairUnicode()), Step(redact_pii=RedactPII(phone=None))]
    text = "naÃ¯ve me@mail.org +49 30 1234567"
    (sample,) = clean(documents(text), steps).samples["repair_unicode"]
    assert sample.before == "naÃ¯ve [EMAIL] +49 30 1234567"
    (sample,) = clean(documents(text), steps[:1]).samples["repair_unicode"]  # this recipe keeps the address
    assert sample.before == text


def test_a_step_for_some_sources_leaves_the_others_and_their_order_unchanged() -> None:
    batch = [Document(f"{source}/{n}", "x &amp; y", source) for n in range(3) for source in ("crawl", "books")]
    steps = [Step(repair_unicode=RepairUnicode(), for_sources=["crawl"]), Step(length=Length(min_bytes=6))]
    result = clean(batch, steps)
    assert [document.id for document in result.kept] == ["books/0", "books/1", "books/2"]
    assert {document.text for document in result.kept} == {"x &amp; y"}
    assert {document.source for document, _ in result.dropped} == {"crawl"}
    assert result.counts["repair_unicode/documents"] == 3
    both = clean(batch, [Step(repair_unicode=RepairUnicode(), for_sources=["books", "crawl"])])
    assert both.kept == clean(batch, [Step(repair_unicode=RepairUnicode())]).kept


def test_keep_selects_the_same_documents_of_a_source_with_and_without_for() -> None:
    batch = documents(*["short"] * 200)
    everywhere = clean(batch, [Step(length=Length(min_bytes=9), keep=0.3)])
    limited = clean(batch, [Step(length=Length(min_bytes=9), keep=0.3, for_sources=["s"])])
    assert everywhere.kept == limited.kept


def test_for_is_a_key_of_the_config_and_names_sources_that_exist() -> None:
    sources = [{"name": name, "path": "x", "format": "text"} for name in ("crawl", "books")]
    config = build(CorpusConfig, {"sources": sources, "steps": [{"length": {}, "for": ["crawl"]}]})
    assert config.steps == [Step(length=Length(), for_sources=["crawl"])]
    check_step_sources(config.sources, config.steps)
    with pytest.raises(ValueError, match=r"steps\[0\].for: 'crwal' is not one of the sources; did you mean crawl\?"):
        check_step_sources(config.sources, [Step(length=Length(), for_sources=["crwal"])])
    with pytest.raises(ValueError, match=r"steps\[0\].for: exact_duplicates compares the documents of all sources"):
        check_steps([Step(exact_duplicates=ExactDuplicates(), for_sources=["crawl"])])
    with pytest.raises(ValueError, match=r"steps\[0\].for: must be a list"):
        build(CorpusConfig, {"sources": sources, "steps": [{"length": {}, "for": "crawl"}]})
    with pytest.raises(ValueError, match=r"steps\[0\].for_sources is not a field"):
        build(CorpusConfig, {"sources": sources, "steps": [{"length": {}, "for_sources": ["crawl"]}]})


def test_an_unset_for_is_not_part_of_the_identity() -> None:
    assert changed_fields(Step(length=Length())) == {"length": {}}
    assert changed_fields(Step(length=Length(), for_sources=["a"])) == {"length": {}, "for_sources": ["a"]}


def test_the_step_language_may_be_limited_to_sources_whose_metadata_it_does_not_overwrite() -> None:
    sources = [Source(name=name, path="x", format="jsonl", metadata=[name]) for name in ("language", "other")]
    check_step_sources(sources, [Step(language=Language(), for_sources=["other"])])
    with pytest.raises(ValueError, match="would overwrite the column language"):
        check_step_sources(sources, [Step(language=Language())])
