"""The step `language` on real sentences, without network access."""

import socket
import unicodedata

import pytest

import data.cleaning.language
from data.cleaning.language import Language, identify, language

SENTENCES = {
    "en": "The weather is fine today, and we want to walk along the river to the old mill.",
    "de": "Das Wetter ist heute schön, und wir wollen am Fluss entlang zur alten Mühle gehen.",
    "fr": "Il fait beau aujourd'hui, et nous voulons marcher le long de la rivière jusqu'au moulin.",
    "ru": "Сегодня хорошая погода, и мы хотим пройти вдоль реки к старой мельнице.",
    "zh": "今天天气很好，我们想沿着河走到老磨坊去。",
    "ar": "الطقس جميل اليوم ونريد أن نمشي على طول النهر إلى الطاحونة القديمة.",
}


def test_languages_are_identified_and_only_the_listed_ones_are_kept() -> None:
    outcome = language(list(SENTENCES.values()), Language(keep=["en", "de"]))
    assert outcome.metadata is not None
    assert [found["language"] for found in outcome.metadata] == list(SENTENCES)
    assert all(0.65 <= found["language_score"] <= 1 for found in outcome.metadata)
    assert all(round(found["language_score"], 3) == found["language_score"] for found in outcome.metadata)
    assert outcome.reasons == [None, None, *["language/other"] * 4]
    assert outcome.texts == list(SENTENCES.values())


def test_an_empty_list_keeps_and_labels_all_documents() -> None:
    texts = [*SENTENCES.values(), "", "12 345 …", "hm"]
    outcome = language(texts, Language(keep=[], min_score=1.0))
    assert outcome.reasons == [None] * len(texts)
    assert outcome.metadata is not None and len(outcome.metadata) == len(texts)


def test_a_low_score_and_another_language_are_different_reasons() -> None:
    code, score = identify("Hello there my friend", max_bytes=100)
    assert code == "en" and 0.5 < score < 0.999
    for bound, reason in ((score - 0.001, None), (score + 0.001, "language/uncertain")):
        assert language(["Hello there my friend"], Language(keep=["en"], min_score=bound)).reasons == [reason]


def test_a_text_without_letters_has_no_language() -> None:
    outcome = language(["", " \n", "12:30 – 45 %"], Language(keep=["en"], min_score=0.0))
    assert outcome.metadata == [{"language": "und", "language_score": 0.0}] * 3
    assert outcome.reasons == ["language/other"] * 3


def test_more_than_eighty_characters_are_read_but_not_more_than_max_bytes() -> None:
    mixed = SENTENCES["en"] + " " + SENTENCES["de"] * 20
    assert len(SENTENCES["en"]) >= 79
    assert identify(mixed, max_bytes=len(SENTENCES["en"]))[0] == "en"
    assert identify(mixed, max_bytes=4096)[0] == "de"
    # A character of three bytes is left out if not all of its bytes are within the limit.
    assert identify("天天", max_bytes=4) == identify("天", max_bytes=100)


def test_line_breaks_and_capital_letters_do_not_change_the_result() -> None:
    text = SENTENCES["en"]
    assert identify(text.replace(" ", "\n"), max_bytes=4096) == identify(text, max_bytes=4096)
    assert identify(SENTENCES["de"].upper(), max_bytes=4096)[0] == "de"


def test_the_result_for_a_text_does_not_depend_on_the_batch() -> None:
    texts = list(SENTENCES.values()) * 3
    together = language(texts, Language(keep=["en"]))
    alone = [language([text], Language(keep=["en"])) for text in texts]
    assert together.metadata == [label for outcome in alone for label in outcome.metadata or []]
    assert together.reasons == [reason for outcome in alone for reason in outcome.reasons]


def test_the_model_is_read_from_the_package_and_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    data.cleaning.language._detector.cache_clear()
    assert identify(SENTENCES["fr"], max_bytes=4096)[0] == "fr"


def test_an_unknown_language_code_is_an_error() -> None:
    Language(keep=["en", "yue", "zh"]).check("steps[0].language")
    with pytest.raises(ValueError, match=r"steps\[0\].language.keep: 'eng' is not a language code of the model"):
        Language(keep=["eng"]).check("steps[0].language")
    with pytest.raises(ValueError, match=r"min_score: 65 must be between 0 and 1"):
        Language(min_score=65).check("steps[0].language")
    with pytest.raises(ValueError, match=r"max_bytes: 0 must be at least 1"):
        Language(max_bytes=0).check("steps[0].language")


def test_decomposed_letters_are_the_same_language() -> None:
    for code, text in {
        "ko": "오늘은 날씨가 좋아서 우리는 강을 따라 오래된 방앗간까지 걸어가려고 합니다.",
        "vi": "Hôm nay trời đẹp và chúng tôi muốn đi dọc theo con sông đến cối xay cũ.",
        "ja": "今日は天気がよいので、わたしたちは川にそって古い水車まで歩きたいです。",
    }.items():
        decomposed = unicodedata.normalize("NFD", text)
        assert decomposed != text
        assert identify(decomposed, max_bytes=4096) == identify(text, max_bytes=4096)
        assert identify(decomposed, max_bytes=4096)[0] == code
