"""How texts are split into words: examples, and properties that hold for every text."""

import random

import pytest

from data.cleaning.words import StringCache, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("To be, or not to be: that's it.", "To be , or not to be : that 's it ."),
        ("Don't! They'll… we're can't", "Do n't ! They 'll … we 're ca n't"),
        ("(the U.S.) Mr. Smith e.g. here.", "( the U.S. ) Mr. Smith e.g. here ."),
        ("state-of-the-art COVID-19 1999-2004", "state - of - the - art COVID-19 1999 - 2004"),
        ("costs $1,000.50 or 50% of 10km at 3:30", "costs $ 1,000.50 or 50 % of 10 km at 3:30"),
        ("see https://example.org/a?b=1, me@mail.org", "see https://example.org/a?b=1 , me@mail.org"),
        ("end.The next,then wait...what", "end . The next , then wait ... what"),
        ("# A • «naïve» “quote”", "# A • « naïve » “ quote ”"),
        ("cannot rock'n'roll foo_bar", "can not rock'n'roll foo_bar"),
        (" \t\n\u00a0", ""),
    ],
)
def test_words_punctuation_contractions_and_numbers_are_split_as_expected(text: str, words: str) -> None:
    assert split_words(text) == words.split()


def test_only_white_space_is_lost() -> None:
    generator = random.Random(0)
    alphabet = "abcXYZ019 \n'’.,-–—()[]{}<>\"#*&%$€+=/:;!?…@_~^|\\`é中🙂\u00a0n'ts"
    for _ in range(3000):
        text = "".join(generator.choices(alphabet, k=generator.randint(0, 60)))
        assert "".join(split_words(text)) == "".join(text.split()), repr(text)


def test_a_string_that_is_too_long_for_a_word_is_split_by_the_simple_rule() -> None:
    assert split_words("a-b" * 100) == ["a"] + ["-", "ba"] * 99 + ["-", "b"]


def test_the_cache_is_bounded_and_does_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.cleaning.words._MAX_CACHE_ENTRIES", 3)
    lengths = StringCache(len)
    for number in range(20):
        assert lengths["x" * number] == number
        assert len(lengths) <= 3
    assert lengths["x" * 1000] == 1000
    assert "x" * 1000 not in lengths
