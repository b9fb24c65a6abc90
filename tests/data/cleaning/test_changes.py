"""How many characters a step changed, and the samples of texts before and after the step."""

import random
import time

import pytest

from data.cleaning.changes import (
    MAX_SAMPLES,
    ChangedText,
    changed_characters,
    merge_samples,
    samples_without,
    select_samples,
)
from data.document import Document


def unredacted(text: str, source: str) -> str:
    return text


def changed(*texts: tuple[str, str], source: str = "s") -> list[ChangedText]:
    return [ChangedText(Document(f"{source}/{n}", before, source), after) for n, (before, after) in enumerate(texts)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", 0),
        ("same", "same", 0),
        ("naÃ¯ve", "naïve", 2),  # two characters become one
        ("，！？", ",!?", 3),
        ("a\nb\nc", "a\nc", 2),  # a line and its line break
        ("a\r\nb\r\n", "a\nb\n", 2),
        ("me@mail.org", "[EMAIL]", 11),
        ("one\ntwo", "zero\none\ntwo", 5),
        ("<p>x</p>", "x", 7),
        ("a😀b", "ab", 1),
        ("ab", "ba", 0),  # a lower bound: characters are counted without their order
        ("x" * 5000 + "é😀" * 3000, "x" * 4000 + "é" * 3000, 4000),
    ],
)
def test_changed_characters_agree_with_numbers_counted_by_hand(before: str, after: str, expected: int) -> None:
    assert changed_characters(before, after) == changed_characters(after, before) == expected


def test_characters_that_are_only_removed_or_replaced_are_counted_exactly_in_long_and_short_texts() -> None:
    generator = random.Random(1)
    alphabet = "abc déß中文😀\n"
    for length in (10, 300, 9000):
        for _ in range(20):
            text = "".join(generator.choices(alphabet, k=length))
            positions = set(generator.sample(range(length), length // 5))
            removed = "".join(character for n, character in enumerate(text) if n not in positions)
            replaced = "".join("#" if n in positions else character for n, character in enumerate(text))
            assert changed_characters(text, removed) == changed_characters(text, replaced) == len(positions)


def test_counting_takes_linear_time() -> None:
    text = "".join(map(chr, range(0x4E00, 0x9000))) * 100
    start = time.process_time()
    changed_characters(text, text[::2])
    assert time.process_time() - start < 1
    start = time.process_time()
    changed_characters(text, text[:2000])  # a long page and its short text
    assert time.process_time() - start < 1


def test_a_sample_shows_the_change_with_a_bounded_context() -> None:
    before = f"{'a' * 500} naÃ¯ve {'b' * 500}"
    (sample,) = select_samples(changed((before, before.replace("Ã¯", "ï"))), unredacted, show_before=True)
    assert sample.id == "s/0"
    assert sample.before == f"…{'a' * 57} naÃ¯ve {'b' * 57}…"
    assert sample.after == f"…{'a' * 57} naïve {'b' * 57}…"
    (long,) = select_samples(changed(("<p>" * 1000, "x")), unredacted, show_before=True)
    assert long.before is not None and len(long.before) <= 242 and long.after == "x"
    (repeated,) = select_samples(changed(("aaaa", "aa")), unredacted, show_before=True)
    assert (repeated.before, repeated.after) == ("aaaa", "aa")


def test_samples_are_redacted_and_the_text_before_redaction_is_not_shown() -> None:
    def redact(text: str, source: str) -> str:
        return text.replace("me@mail.org", "[EMAIL]") if source == "s" else text

    texts = changed(("Ã¯ me@mail.org", "ï me@mail.org"), ("me@mail.org", "[EMAIL]"))
    (sample,) = select_samples(texts, redact, show_before=True)
    assert (sample.before, sample.after) == ("Ã¯ [EMAIL]", "ï [EMAIL]")
    shown = select_samples(texts[1:], redact, show_before=False)
    assert [(sample.before, sample.after) for sample in shown] == [(None, "[EMAIL]")]
    (other,) = select_samples(changed(("me@mail.org", "x"), source="t"), redact, show_before=True)
    assert other.before == "me@mail.org"


def test_the_samples_do_not_depend_on_how_the_documents_are_divided_into_batches_and_tasks() -> None:
    texts = changed(*((f"before {n}", f"hidden {n}" if n % 3 else f"after {n}") for n in range(50)))

    def redact(text: str, source: str) -> str:
        return "" if text.removeprefix("before ").isdigit() and int(text.split()[1]) % 3 else text.replace("hidden", "")

    def samples_of(batches: list[list[ChangedText]]) -> object:
        by_batch = [{"s": {"step": select_samples(batch, redact, show_before=True)}} for batch in batches]
        return merge_samples(by_batch)

    whole = samples_of([texts])
    assert len(whole["s"]["step"]) == MAX_SAMPLES  # pyright: ignore[reportIndexIssue]
    for size in (1, 7, 20):
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        assert samples_of(batches) == samples_of(batches[::-1]) == whole


def test_samples_of_forgotten_documents_are_removed() -> None:
    samples = {"s": {"step": select_samples(changed(("a", "b"), ("c", "d")), unredacted, show_before=True)}}
    left = samples_without(samples, {"s/0"})
    assert [sample.id for sample in left["s"]["step"]] == ["s/1"]
