"""The numbers of the fairness ledger, and its rows for filters whose effect on each group is known."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from data.cleaning.fairness import FairnessRow, Ledger, LedgerStep, build_ledger, check_budget, smallest_keep, wilson
from data.cleaning.fairness_sentences import _DIALECT_SENTENCES, _STANDARD_SENTENCES, probe_texts
from data.cleaning.language import Language, identify, language
from data.cleaning.length import Length
from data.cleaning.recipe import Step, fairness_ledger
from data.cleaning.repetition import Repetition
from data.cleaning.step import Outcome, filter_outcome
from data.cleaning.toxicity import Toxicity, toxicity

AXES = ["religion", "gender", "sexuality", "ethnicity", "disability", "dialect"]


def dropping(drops: Callable[[str], bool]) -> Callable[[list[str]], Outcome]:
    return lambda texts: filter_outcome(texts, lambda text: "step/rule" if drops(text) else None)


def ledger_rows(steps: list[LedgerStep]) -> list[FairnessRow]:
    return build_ledger(steps).rows


def by_group(rows: list[FairnessRow]) -> dict[str, FairnessRow]:
    return {row.group: row for row in rows}


def test_wilson_intervals_agree_with_newcombes_table() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    published = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
    for count, total, low, high in published:
        assert wilson(count, total) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_every_group_has_at_least_thirty_sentences_in_both_forms() -> None:
    rows = ledger_rows([LedgerStep("none", dropping(lambda text: False))])
    assert list(dict.fromkeys(row.axis for row in rows)) == AXES
    assert all(row.num_templates >= 30 for row in rows)
    assert all((row.removed, row.low, row.excess, row.judged) == (0.0, 0.0, 0.0, True) for row in rows)
    assert {"Muslim", "Christian", "women", "men", "gay", "straight", "Black", "white", "Deaf"} <= set(by_group(rows))
    for probe in probe_texts():
        assert probe.mention.lower() in probe.text.lower() and "{" not in probe.text
        assert not re.search(r"\ba [aeio]|\ban [^aeihAEI]", probe.text), probe.text  # The articles must be right.
    assert all(len(sentences) == len(_STANDARD_SENTENCES) == 30 for sentences in _DIALECT_SENTENCES.values())


def test_paragraphs_are_long_enough_for_filters_that_drop_short_texts() -> None:
    lengths = [len(probe.text.split()) for probe in probe_texts() if probe.form == "paragraph"]
    assert min(lengths) >= 60 and max(lengths) <= 160


def test_a_filter_of_one_word_has_an_excess_only_for_its_group() -> None:
    rows = ledger_rows([LedgerStep("steps[0].words", dropping(lambda text: "lesbian" in text.lower()))])
    found = {row.group: row for row in rows if row.excess > 0}
    assert list(found) == ["lesbian"]
    row = found["lesbian"]
    assert (row.axis, row.removed, row.reference_removed, row.excess, row.judged) == ("sexuality", 1.0, 0.0, 1.0, True)
    assert (row.low, row.high) == wilson(row.num_templates, row.num_templates)
    # Newcombe's lower end for n of n minus 0 of m is 1 - sqrt((1 - low)^2 + high_m^2).
    reference = sum(probe.axis == "sexuality" and not probe.group and probe.form == row.form for probe in probe_texts())
    low = 1 - ((1 - row.low) ** 2 + wilson(0, reference)[1] ** 2) ** 0.5
    assert row.excess_low == pytest.approx(low, abs=1e-12) and row.excess_high == pytest.approx(1.0)


def test_a_length_filter_has_no_excess_and_does_not_hide_other_excesses() -> None:
    def short_or_gay(text: str) -> bool:
        return len(text) < 200 or "gay" in text.lower()

    short = ledger_rows([LedgerStep("length", dropping(lambda text: len(text) < 200))])
    assert all(row.excess == 0 and row.judged and row.form == "paragraph" for row in short)
    hidden = by_group(ledger_rows([LedgerStep("length", dropping(short_or_gay))]))
    assert hidden["gay"].form == "paragraph" and hidden["gay"].excess == 1.0
    assert hidden["straight"].excess == 0.0


def test_a_step_that_removes_everything_is_not_judged_and_a_budget_says_so() -> None:
    everything = LedgerStep("steps[0].all", dropping(lambda text: True))
    ledger = build_ledger([everything])
    assert all(row.removed == 1.0 and row.excess == 0.0 and not row.judged for row in ledger.rows)
    assert ledger.judges_nothing
    assert ledger.not_judged == [
        "steps[0].all removes 100% of the sentences even without a mention, so it is not judged ("
        + ", ".join(AXES)
        + ")"
    ]
    with pytest.raises(ValueError, match=r"fairness_budget: 5.0% cannot be checked.*steps\[0\].all removes 100%.*null"):
        check_budget(ledger, 0.05)
    both = build_ledger([everything, LedgerStep("steps[1].none", dropping(lambda text: False))])
    assert both.not_judged == ledger.not_judged and not both.judges_nothing
    check_budget(both, 0.0)


def test_a_step_that_is_not_judged_still_breaks_the_budget_with_an_excess() -> None:
    groups = {probe.text for probe in probe_texts() if probe.group}
    references = sorted({probe.text for probe in probe_texts()} - groups)
    kept = set(references[::3])
    most = LedgerStep("most", dropping(lambda text: text not in kept))
    ledger = build_ledger([most])
    assert any(not row.judged and row.excess_low > 0 for row in ledger.rows)
    with pytest.raises(ValueError, match="most: removes 100.0% of neutral texts"):
        check_budget(replace(ledger, judges_nothing=False), 0.05)


@pytest.mark.parametrize(
    ("steps", "judges_nothing", "notes"),
    [
        ([Step(language=Language(keep=["zh"]))], True, ["removes texts in en and keeps zh: nothing is judged in zh"]),
        ([Step(language=Language(keep=["th", "hi"])), Step(length=Length())], True, ["nothing is judged in th, hi"]),
        ([Step(language=Language(keep=["en", "de"], min_score=0.0))], False, ["keeps de: nothing is judged in de"]),
        ([Step(language=Language(keep=["zh"]), for_sources=["web"])], False, ["nothing is judged in zh"]),
        ([Step(language=Language())], False, []),
        (
            [Step(length=Length(min_bytes=5000))],
            False,
            ["steps[0].length removes"],
        ),
        ([], False, []),
    ],
)
def test_the_ledger_says_in_which_languages_it_judged_nothing(
    steps: list[Step], judges_nothing: bool, notes: list[str]
) -> None:
    ledger = fairness_ledger([*steps, Step(repetition=Repetition())] if steps and not judges_nothing else steps)
    assert ledger.judges_nothing == judges_nothing and ledger.language == "en"
    text = "; ".join(ledger.not_judged)
    assert all(note in text for note in notes) and bool(text) == bool(notes)
    if judges_nothing:
        with pytest.raises(ValueError, match=r"judges nothing .*steps\[0\].language removes texts in en"):
            check_budget(ledger, 0.05)


def test_a_mention_that_a_step_cuts_out_counts_as_removed() -> None:
    def cut(texts: list[str]) -> Outcome:
        left = [". ".join(part for part in text.split(". ") if "Sikh" not in part) for text in texts]
        return Outcome(left, [None] * len(texts))

    rows = by_group(ledger_rows([LedgerStep("lines", cut)]))
    assert rows["Sikh"].excess == 1.0
    assert all(row.excess == 0 for group, row in rows.items() if group != "Sikh")


def test_the_toxicity_filter_exceeds_the_budget_and_a_length_filter_does_not() -> None:
    steps = [
        LedgerStep("steps[0].length", dropping(lambda text: len(text) < 100)),
        LedgerStep("steps[3].toxicity", lambda texts: toxicity(texts, Toxicity(max_score=0.8))),
    ]
    rows = ledger_rows(steps)
    check_budget(Ledger(rows=[row for row in rows if row.step == "steps[0].length"], not_judged=[]), 0.0)
    toxic = by_group([row for row in rows if row.step == "steps[3].toxicity"])
    assert toxic["gay"].excess > 0.1 and toxic["gay"].excess_low > 0.05
    assert toxic["straight"].excess == 0.0
    with pytest.raises(
        ValueError, match=r"steps\[3\].toxicity: removes .*sexuality.*95 %.*fairness_budget of 5.0%.*keep"
    ):
        check_budget(Ledger(rows=rows, not_judged=[]), 0.05)


def test_with_the_smallest_keep_the_filter_is_in_the_budget_and_with_less_it_is_not() -> None:
    def step(keep: float) -> LedgerStep:
        return LedgerStep("steps[3].toxicity", lambda texts: toxicity(texts, Toxicity(max_score=0.8)), keep)

    whole = ledger_rows([step(0.0)])
    keep = max(smallest_keep(row, 0.05) for row in whole)
    assert 0 < keep < 1
    with pytest.raises(ValueError, match=f"`keep: {keep}`"):
        check_budget(Ledger(rows=whole, not_judged=[]), 0.05)
    thinned = ledger_rows([step(keep)])
    check_budget(Ledger(rows=thinned, not_judged=[]), 0.05)
    for before, after in zip(whole, thinned, strict=True):
        assert after.removed == pytest.approx(before.removed * (1 - keep))
        assert (after.low, after.high) == pytest.approx((before.low * (1 - keep), before.high * (1 - keep)))
    with pytest.raises(ValueError, match=f"`keep: {keep}`"):  # The same `keep` is needed.
        check_budget(build_ledger([step(keep - 0.01)]), 0.05)


def test_the_error_suggests_keep_only_if_the_step_can_have_it() -> None:
    rows = ledger_rows([LedgerStep("words", dropping(lambda text: "Arab" in text), can_keep=False)])
    with pytest.raises(
        ValueError, match=r"above the fairness_budget of 5.0%. Loosen the step's settings or remove the step$"
    ):
        check_budget(Ledger(rows=rows, not_judged=[]), 0.05)


def test_smallest_keep_agrees_with_hand_computed_values() -> None:
    (row,) = [
        row for row in ledger_rows([LedgerStep("w", dropping(lambda text: "Arab" in text))]) if row.group == "Arab"
    ]
    assert row.excess == 1.0
    assert smallest_keep(row, 0.05) == 0.95
    assert smallest_keep(row, 0.333) == 0.67  # 0.667 rounded up to hundredths
    assert smallest_keep(row, 0.0) == 1.0
    assert smallest_keep(row, 1.0) == 0.0
    # With a `keep` of 0.5, the excess is 0.5. At most 0.1 may be removed, so `keep` must be 0.9.
    assert smallest_keep(replace(row, excess=0.5, keep=0.5), 0.1) == 0.9


def test_an_excess_that_may_be_chance_is_ignored_by_the_budget() -> None:
    rows = ledger_rows([LedgerStep("one", dropping(lambda text: text == _DIALECT_SENTENCES["Indian English"][0]))])
    row = by_group(rows)["Indian English"]
    assert row.excess == pytest.approx(1 / 30) and row.excess_low < 0
    check_budget(Ledger(rows=rows, not_judged=[]), 0.01)


def test_a_filter_of_a_dialects_words_has_an_excess_for_this_dialect() -> None:
    rows = by_group(
        ledger_rows([LedgerStep("words", dropping(lambda text: "ain't" in text.lower() or "finna" in text))])
    )
    assert rows["African American English"].form == "paragraph"
    assert rows["African American English"].excess > 0.5
    assert rows["Scottish English"].excess == rows["Indian English"].excess == 0.0


def test_the_ledger_measures_the_step_language() -> None:
    settings = Language(keep=["en"], min_score=0.4)
    rows = by_group(ledger_rows([LedgerStep("steps[1].language", lambda texts: language(texts, settings))]))

    def lost(sentences: tuple[str, ...]) -> int:
        labels = [identify(sentence, max_bytes=4096) for sentence in sentences]
        return sum(code != "en" or score < 0.4 for code, score in labels)

    scottish = rows["Scottish English"]
    assert lost(_DIALECT_SENTENCES["Scottish English"]) > lost(_STANDARD_SENTENCES)
    assert scottish.removed == pytest.approx(lost(_DIALECT_SENTENCES["Scottish English"]) / 30)
    assert scottish.reference_removed == pytest.approx(lost(_STANDARD_SENTENCES) / 30)
    # All paragraphs are kept, whatever their dialect or group. Only single sentences are dropped.
    assert all(row.form == "sentence" for row in rows.values() if row.excess > 0)
