"""The rules of Gopher: for each threshold a document that just meets it and one that just does not."""

import re
import unicodedata
from typing import Any

import pytest

from data.cleaning.gopher_quality import GopherQuality, gopher_quality

NO_GOPHER: dict[str, Any] = {
    "min_words": None,
    "max_words": None,
    "min_mean_word_length": None,
    "max_mean_word_length": None,
    "max_symbols_per_word": None,
    "max_bullet_lines": None,
    "max_ellipsis_lines": None,
    "min_alphabetic_words": None,
    "min_stop_words": None,
}


@pytest.mark.parametrize(
    ("bound", "kept", "dropped", "reason"),
    [
        ({"min_words": 3}, "one, two, 3!", "one, two - !", "min_words"),  # Punctuation marks are not words.
        ({"max_words": 3}, "one, two, 3!", "one, two, 3 four", "max_words"),
        ({"min_mean_word_length": 2}, "a bbb , .", "a bb c", "min_mean_word_length"),  # (1 + 3) / 2, (1 + 2 + 1) / 3
        ({"max_mean_word_length": 2}, "a bbb", "a bbbb", "max_mean_word_length"),
        ({"max_symbols_per_word": 0.25}, "# b c d", "# b c", "number_signs"),  # 1 of 4, 1 of 3
        ({"max_symbols_per_word": 0.25}, "b… c d", "b... c", "ellipses"),  # 1 of 4 words and punctuation marks, 1 of 3
        ({"max_bullet_lines": 0.5}, "- a\nb", " - a\n• b\nc", "bullet_lines"),
        ({"max_ellipsis_lines": 0.5}, "a...\nb", "a…\nb... \nc", "ellipsis_lines"),
        ({"min_alphabetic_words": 0.5}, "a b 1 .", "a b 1 2 .", "alphabetic_words"),
        ({"min_stop_words": 2}, "the one of it", "the one the other The", "stop_words"),
    ],
)
def test_each_gopher_rule_keeps_documents_at_its_threshold_and_drops_them_beyond(
    bound: dict[str, Any], kept: str, dropped: str, reason: str
) -> None:
    settings = GopherQuality(**(NO_GOPHER | bound))
    settings.check("here")
    assert gopher_quality([kept, dropped], settings).reasons == [None, f"gopher_quality/{reason}"]
    assert gopher_quality([kept, dropped], GopherQuality(**NO_GOPHER)).reasons == [None, None]


def test_gopher_keeps_prose_and_drops_an_empty_text_because_of_its_length() -> None:
    prose = "It was the best of times and it was the worst of times, so that we have to be glad. " * 4
    outcome = gopher_quality([prose, "", " \n"], GopherQuality())
    assert outcome.texts == [prose, "", " \n"]
    assert outcome.reasons == [None, "gopher_quality/min_words", "gopher_quality/min_words"]
    assert gopher_quality([""], GopherQuality(**NO_GOPHER)).reasons == [None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (GopherQuality(min_words=9, max_words=8), "steps.max_words: 8 must be at least min_words (9)"),
        (GopherQuality(min_mean_word_length=-1), "steps.min_mean_word_length: -1 must be at least 0"),
        (GopherQuality(min_alphabetic_words=1.5), "steps.min_alphabetic_words: 1.5 must be between 0 and 1"),
        (GopherQuality(stop_words=["a"]), "steps.min_stop_words: 2 must be at most the number of stop_words (1)"),
    ],
)
def test_the_error_names_the_wrong_setting(settings: GopherQuality, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.check("steps")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("vi", "Thành phố này được nhiều người biết đến và là một trong các nơi đẹp của vùng."),
        ("ko", "이 도시는 많은 사람들이 알고 있으며 이 지역에서 가장 아름다운 곳이다."),
        ("el", "Η πόλη αυτή είναι γνωστή για την ομορφιά της και το λιμάνι."),
        ("yo", "Ó jẹ́ ọ̀kan lára àwọn ibi tí ó wà ní orílẹ̀-èdè náà."),
    ],
)
def test_stop_words_are_found_in_composed_and_in_decomposed_letters(form: Any, language: str, text: str) -> None:
    text = unicodedata.normalize(form, text)
    settings = GopherQuality(**(NO_GOPHER | {"min_stop_words": 2}))
    assert gopher_quality([text], settings, [language]).reasons == [None]


def test_stop_words_of_the_config_may_be_decomposed() -> None:
    settings = GopherQuality(**(NO_GOPHER | {"min_stop_words": 1}), stop_words=[unicodedata.normalize("NFD", "né")])
    assert gopher_quality(["il est né", "il est nu"], settings).reasons == [None, "gopher_quality/stop_words"]
