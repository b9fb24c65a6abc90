"""The thresholds and stop words of each language, and how the quality and repetition steps use them."""

from dataclasses import fields

import pytest

from data.cleaning.c4_quality import C4Quality, c4_quality
from data.cleaning.fineweb_quality import FineWebQuality, fineweb_quality
from data.cleaning.gopher_quality import GopherQuality, gopher_quality
from data.cleaning.language import known_languages
from data.cleaning.language_rules import LanguageRules, _rules, adapt_settings, rules_for
from data.cleaning.recipe import Step, clean
from data.cleaning.repetition import Repetition, repetition
from data.document import Document
from data.words import WordRule

THAI = "สิทธิมนุษยชนเป็นของทุกคนและทุกคนมีสิทธิในการศึกษาที่ดี"
KHMER = "មនុស្សទាំងអស់កើតមកមានសេរីភាព និងសមភាព ក្នុងសិទ្ធិ និងសេចក្តីថ្លៃថ្នូរ។"
BURMESE = "လူတိုင်းသည် တူညီလွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် မွေးဖွားလာသူများ ဖြစ်သည်။"


def rules_of(language: str | None, text: str = "") -> LanguageRules:
    rules = rules_for(language, text)
    assert rules is not None
    return rules


def test_the_numbers_are_those_of_the_table() -> None:
    german = rules_of("de")
    assert german.stop_words[:3] == ("der", "und", "die")
    assert (german.min_mean_word_length, german.max_mean_word_length) == (0, 15)
    assert german.duplicate_ngrams == {5: 0.141, 6: 0.134, 7: 0.126, 8: 0.117, 9: 0.108, 10: 0.098}
    # At least 1.25 times the English values 0.2, 0.18 and 0.16.
    assert german.top_ngrams == {2: 0.25, 3: 0.225, 4: 0.2}
    # A word of Thai is three units, so the sizes are three times those of English.
    assert list(rules_of("th").duplicate_ngrams) == [15, 18, 21, 24, 27, 30]
    # Finnish has 0.73 times as many words as English, and as many marks.
    assert rules_of("fi").min_words == round(50 * 0.73)
    assert rules_of("fi").max_line_breaks_per_word == pytest.approx(0.3 / 0.73)


def test_every_language_of_the_table_can_be_found_by_the_step_language() -> None:
    assert not set(_rules("classes")) - set(known_languages())
    for code, rules in _rules("classes").items():
        assert rules.stop_words and len(rules.stop_words) >= 6, code
        assert 0 < rules.min_alphabetic_words <= 0.9 and rules.max_mean_word_length > rules.min_mean_word_length, code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Все люди рождаются свободными", "ru"),
        ("人人生而自由,在尊严和权利上一律平等。", "zh"),
        ("すべての人間は、生まれながらにして自由であり", "ja"),
        ("ทุกคนเกิดมา (born) free", "th"),
        (KHMER, "km"),
        ("ሰዎች ሁሉ ነጻ ሆነው ተወልደዋል", "am"),
        ("모든 인간은 태어날 때부터 자유로우며", "ko"),
    ],
)
def test_without_a_language_the_script_decides(text: str, code: str) -> None:
    assert rules_for(None, text) is rules_of(code)


def test_english_unknown_and_regional_languages() -> None:
    assert rules_for("en", KHMER) is None
    assert rules_for(None, "naïve café") is None
    assert rules_for(None, "1, 2, 3 …") is None
    assert rules_for("zh-Hant", "") is rules_for("ZH_tw", "") is rules_of("zh")
    assert rules_of("xx").stop_words == () == rules_of(None, "ᎣᏏᏲ ᏣᎳᎩ").stop_words


def test_a_field_that_is_set_keeps_its_value_and_the_others_are_those_of_the_language() -> None:
    rules = rules_of("th")
    adapted = adapt_settings(GopherQuality(max_mean_word_length=None, min_words=7), rules)
    assert (adapted.max_mean_word_length, adapted.min_words) == (None, 7)
    assert (adapted.min_mean_word_length, tuple(adapted.stop_words)) == (2, rules.stop_words)
    steps = (GopherQuality, FineWebQuality, Repetition)
    used = {field.name for step in steps for field in fields(step)} & set(LanguageRules._fields)
    own = {"units_per_word", "are_stop_words_parts", "has_sentence_marks"}
    assert used == set(LanguageRules._fields) - own, "a value of a language that no step uses"


def varied(text: str, number: int) -> str:
    """The text several times, each time with other numbers after every space, so that little is repeated."""
    return " ".join(f"{text} {index}" for index in range(number))


@pytest.mark.parametrize(("language", "text"), [("th", THAI), ("km", KHMER), ("my", BURMESE)])
def test_prose_without_spaces_passes_gopher_by_the_rules_of_its_language_only(language: str, text: str) -> None:
    document = varied(text, 12)
    assert gopher_quality([document], GopherQuality(), [language]).reasons == [None]
    assert gopher_quality([document], GopherQuality(), None).reasons == [None], "the script says the language"
    (reason,) = gopher_quality([document], GopherQuality(by_language=False)).reasons
    assert reason is not None


@pytest.mark.parametrize("text", [THAI, KHMER, BURMESE, "人人生而自由,在尊严上一律平等。", "すべて人は自由である。"])
@pytest.mark.parametrize("joiner", ["", " ", "\n"])
def test_a_sentence_without_spaces_that_is_repeated_is_dropped(text: str, joiner: str) -> None:
    (reason,) = repetition([joiner.join([text] * 200)], Repetition()).reasons
    assert reason is not None and reason.startswith("repetition/")
    assert repetition([text], Repetition()).reasons == [None]


def test_stop_words_are_parts_of_strings_where_there_are_no_spaces_and_whole_words_elsewhere() -> None:
    settings = GopherQuality(min_words=None, min_mean_word_length=None, max_mean_word_length=None)
    assert gopher_quality(["มนุษย์และสิทธิของคน"], settings, ["th"]).reasons == [None]
    assert gopher_quality(["มนุษย์"], settings, ["th"]).reasons == ["gopher_quality/stop_words"]
    assert gopher_quality(["Under modern Dersim"], settings, ["de"]).reasons == ["gopher_quality/stop_words"]
    assert gopher_quality(["der und"], settings, ["de"]).reasons == [None]


def test_lines_end_with_the_marks_of_their_script() -> None:
    settings = FineWebQuality(max_short_lines=None, max_line_breaks_per_word=None, min_punctuated_lines=1.0)
    ends = ["。", "！", "？」", "।", "؟", "۔", "።", "፡፡", "။", "។", "།", "։", ".", "?"]
    assert fineweb_quality([f"text{end}" for end in ends], settings).reasons == [None] * len(ends)
    without = [",", "、", "፡", "，」", "」", ":", "…"]
    reasons = fineweb_quality([f"text{end}" for end in without], settings).reasons
    assert reasons == ["fineweb_quality/punctuated_lines"] * len(without)


def test_c4_keeps_lines_and_counts_sentences_in_other_scripts() -> None:
    chinese = "人人生而自由。他们赋有理性和良心！你好吗？是的。「很好。」"
    thai = "ทุกคนเกิดมามีอิสระ และเท่าเทียมกัน ในศักดิ์ศรี และสิทธิ ทุกคนมีเหตุผล"
    hindi = "सभी मनुष्य स्वतंत्र हैं। उन्हें बुद्धि मिली है। वे समान हैं। यह सच है। वे भाई हैं।"
    assert c4_quality([chinese, thai, hindi], C4Quality()).reasons == [None] * 3
    assert c4_quality([chinese], C4Quality()).texts == [chinese]
    assert c4_quality([chinese.replace("。", "，")], C4Quality()).reasons == ["c4_quality/sentences"]
    long_paragraph = "".join(f"第{number}条人人有权享有生命。" for number in range(200))
    assert len(long_paragraph) > 1000 and c4_quality([long_paragraph], C4Quality()).reasons == [None]


def test_the_step_language_tells_the_later_steps_the_language() -> None:
    settings = GopherQuality(min_words=5, min_mean_word_length=None, min_alphabetic_words=None)
    german = "Wir gehen mit dem Hund und der Katze in den Wald, weil das Wetter heute schön ist."
    document = Document("s/1", german, "s")
    assert [reason for _, reason in clean([document], [Step(gopher_quality=settings)]).dropped] == [
        "gopher_quality/stop_words"
    ]
    labelled = Document("s/1", german, "s", {"language": "de"})
    assert len(clean([labelled], [Step(gopher_quality=settings)]).kept) == 1
    other_type = Document("s/1", german, "s", {"language": 3})
    assert len(clean([other_type], [Step(gopher_quality=settings)]).dropped) == 1


@pytest.mark.parametrize("words", ["classes", "icu"])
@pytest.mark.parametrize(("language", "text"), [("th", THAI), ("km", KHMER), ("my", BURMESE)])
def test_words_of_a_dictionary_need_no_conversion(language: str, text: str, words: WordRule) -> None:
    pytest.importorskip("icu4py")
    rules = rules_for(language, "", words)
    assert rules is not None and (rules.units_per_word == 1) == (words == "icu")
    document = varied(text, 12)
    assert gopher_quality([document], GopherQuality(words=words)).reasons == [None]
    assert repetition([text], Repetition(words=words)).reasons == [None]
    (reason,) = repetition([text * 100], Repetition(words=words)).reasons
    assert reason is not None
