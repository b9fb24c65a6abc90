"""Each cleaning step against hand-worked cases, and the n-gram rules against a naive count."""

import random
from collections import Counter

import ftfy
import pytest

from data.clean import (
    ExactDuplicates,
    Length,
    RedactPII,
    RepairUnicode,
    Repetition,
    Step,
    SymbolRatio,
    check_steps,
    clean,
    length,
    redact_pii,
    repair_unicode,
    repetition,
    symbol_ratio,
)
from data.document import Document
from jobs.config import build
from jobs.corpus import CorpusConfig

NO_NGRAMS = {"top_ngrams": {}, "duplicate_ngrams": {}}


def documents(*texts: str) -> list[Document]:
    return [Document(f"s/{number}", text, "s") for number, text in enumerate(texts)]


def test_repair_undoes_mojibake_and_entities_and_counts_documents() -> None:
    outcome = repair_unicode(["naÃ¯ve", "a &amp; b", "plain\ttext\n", "bell\x07", "“quoted”"], RepairUnicode())
    assert outcome.texts == ["naïve", "a & b", "plain\ttext\n", "bell", "“quoted”"]
    assert outcome.counts == {"repair_unicode/documents": 3}


def test_the_short_cut_for_ascii_changes_nothing_that_ftfy_would() -> None:
    settings = ftfy.TextFixerConfig(uncurl_quotes=False, explain=False)
    for code in range(128):
        text = f"before {chr(code)}amp; {chr(code)}[0m after\r\nend"
        assert repair_unicode([text], RepairUnicode()).texts == [ftfy.fix_text(text, settings)]
        lone = f"a{chr(code)}b"
        assert repair_unicode([lone], RepairUnicode()).texts == [ftfy.fix_text(lone, settings)]


def test_length_counts_bytes_and_includes_its_bounds() -> None:
    rule = Length(min_bytes=4, max_bytes=6)
    assert length(["abc", "éé", "abcdef", "abcdefg"], rule).reasons == [
        "length/min_bytes",
        None,
        None,
        "length/max_bytes",
    ]


def test_repeated_lines_are_judged_by_number_and_by_characters() -> None:
    rule = Repetition(duplicate_lines=0.3, duplicate_line_characters=0.5, **NO_NGRAMS)
    # One of three lines repeats (0.33 > 0.3); one of four does not pass the first bound, but its characters may.
    judged = repetition(["a\nb\na", "a\nb\nc\na", f"{'x' * 30}\nb\nc\n{'x' * 30}"], rule).reasons
    assert judged == ["repetition/duplicate_lines", None, None]
    strict = Repetition(duplicate_lines=0.3, duplicate_line_characters=0.4, **NO_NGRAMS)
    # 30 of 62 characters: 0.48.
    assert repetition([f"{'x' * 30}\nb\nc\n{'x' * 30}"], strict).reasons == ["repetition/duplicate_line_characters"]


def naive_ngram_shares(text: str, n: int) -> tuple[float, float]:
    """(top, duplicate): share of characters in the most frequent n-gram, and under any repeated one."""
    words = text.split()
    total = sum(map(len, words))
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    most = max(counts.values(), default=0)
    top = max((most * sum(map(len, gram)) for gram, count in counts.items() if count == most and most > 1), default=0)
    covered = {i + k for i, gram in enumerate(grams) if counts[gram] > 1 for k in range(n)}
    return top / total, sum(len(words[i]) for i in covered) / total


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_ngram_rules_agree_with_a_naive_count(n: int) -> None:
    generator = random.Random(n)
    for _ in range(200):
        text = " ".join(generator.choice(["a", "bb", "ccc", "dddd", "e"]) for _ in range(generator.randint(1, 30)))
        top, duplicate = naive_ngram_shares(text, n)
        for bound in (0.1, 0.3, 0.6):
            lines = {"duplicate_lines": 1.0, "duplicate_line_characters": 1.0}
            tops = Repetition(**lines, top_ngrams={n: bound}, duplicate_ngrams={})
            assert (repetition([text], tops).reasons != [None]) == (top > bound), (text, top)
            duplicates = Repetition(**lines, top_ngrams={}, duplicate_ngrams={n: bound})
            assert (repetition([text], duplicates).reasons != [None]) == (duplicate > bound), (text, duplicate)


def test_symbol_ratio_drops_hash_marks_and_numbers() -> None:
    texts = [
        "# a # b",
        "one two three four # five six seven eight nine",
        "12 34 56 word",
        "Fine words … here and there, ten in all.",
    ]
    assert symbol_ratio(texts, SymbolRatio(max_symbols_per_word=0.2)).reasons == [
        "symbol_ratio/symbols_per_word",
        None,
        "symbol_ratio/alphabetic_words",
        None,
    ]


def test_redaction_finds_mail_and_phone_and_leaves_other_numbers() -> None:
    found = [
        ("Mail jo.doe+x@mail.example.org now", "Mail [EMAIL] now"),
        ("call +44 20 7946 0958.", "call [PHONE]."),
        ("call (415) 555-0132, or 415-555-0132", "call [PHONE], or [PHONE]"),
        ("1-800-555-0199 is free", "[PHONE] is free"),
    ]
    left = [
        "from 1999-2004",
        "ISBN 978-3-16-148410-0",
        "2018-05-02",
        "costs 1,000,000",
        "192.168.100.200",
        "a@b",
        "pi 3.14159265",
    ]
    outcome = redact_pii([before for before, _ in found] + left, RedactPII())
    assert outcome.texts == [after for _, after in found] + left
    assert outcome.counts == {"redact_pii/email": 1, "redact_pii/phone": 4}


def test_every_document_is_kept_or_dropped_with_one_reason_and_steps_see_what_is_left() -> None:
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
    assert result.counts == {"repair_unicode/documents": 2, "redact_pii/email": 1, "redact_pii/phone": 0}


def test_steps_are_functions_of_the_text_alone_whatever_the_batch() -> None:
    steps = [Step(repair_unicode=RepairUnicode()), Step(repetition=Repetition()), Step(redact_pii=RedactPII())]
    batch = documents("one &amp; two", "a b " * 20, "me@mail.org wrote", "fine words stay here")
    alone = [clean([document], steps) for document in batch]
    together = clean(batch, steps)
    assert together.kept == [document for result in alone for document in result.kept]


def test_wrong_recipes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="exact_duplicates must be the last step"):
        check_steps([Step(exact_duplicates=ExactDuplicates()), Step(length=Length())])
    with pytest.raises(ValueError, match="names exactly one step"):
        check_steps([Step()])
    with pytest.raises(ValueError, match=r"steps\[0\].length.max_bytes: 5 must be at least min_bytes \(9\)"):
        check_steps([Step(length=Length(min_bytes=9, max_bytes=5))])
    with pytest.raises(ValueError, match=r"steps\[0\].repetition.top_ngrams\[2\]: 1.5 must be between 0 and 1"):
        check_steps([Step(repetition=Repetition(top_ngrams={2: 1.5}))])


def test_a_misspelt_step_or_parameter_is_refused_with_the_nearest_name() -> None:
    source = {"name": "s", "path": "x", "format": "text"}
    with pytest.raises(ValueError, match=r"steps\[0\].lenght is not a field; did you mean steps\[0\].length"):
        build(CorpusConfig, {"sources": [source], "steps": [{"lenght": {}}]})
    with pytest.raises(ValueError, match=r"did you mean steps\[0\].length.min_bytes"):
        build(CorpusConfig, {"sources": [source], "steps": [{"length": {"min_byte": 3}}]})
    config = build(CorpusConfig, {"sources": [source], "steps": [{"repetition": {}}, {"length": {"min_bytes": 3}}]})
    assert config.steps == [Step(repetition=Repetition()), Step(length=Length(min_bytes=3))]
