"""How texts are split into words: examples, and properties that hold for every text."""

import random
import re
import time
import unicodedata
from collections.abc import Callable

import pytest

from data.words import StringCache, check_word_rule, plain_words, space_separated_words, split_words


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Combining marks and joiners belong to their words, also before a hyphen and a full stop.
        ("सिद्धान्त-आधारित भाषा है।यह हिन्दी.", "सिद्धान्त - आधारित भाषा है । यह हिन्दी ."),
        ("বাংলা ভাষা, শ্রীলঙ্কা।", "বাংলা ভাষা , শ্রীলঙ্কা ।"),
        ("كِتَابٌ جَدِيدٌ،وَقَلَمٌ؟", "كِتَابٌ جَدِيدٌ ، وَقَلَمٌ ؟"),
        ("כָּל בְּנֵי־הָאָדָם צה״ל", "כָּל בְּנֵי ־ הָאָדָם צה״ל"),
        ("می\u200cخواهم.", "می\u200cخواهم ."),
        ("ක්\u200dරියාව", "ක්\u200dරියාව"),
        # Ethiopic word spaces separate words. Two of them are a full stop, and also other marks are split off.
        ("ሰው፡ልጅ፡ሁሉ።፡የተፈጥሮ፤ነው፡፡", "ሰው ልጅ ሁሉ ። የተፈጥሮ ፤ ነው ፡፡"),
        # Scripts without spaces are cut by classes of characters. Numbers and words in other scripts stay whole.
        ("我爱北京，2024年。人人", "我 爱 北 京 ， 2024 年 。 人 人"),
        ("東京タワーでWebしょっちゅう「々」ｶﾞｽ", "東 京 タワー で Web しょ っ ちゅ う 「 々 」 ｶﾞｽ"),
        ("คนไทยเที่ยวน้ำ ๒๕๖๗ พ.ศ.", "ค น ไท ย เที่ ย ว น้ำ ๒๕๖๗ พ . ศ ."),
        ("ສິດທິມະນຸດແຫ່ງຊາດ", "ສິ ດ ທິ ມະ ນຸ ດ ແຫ່ ງ ຊາ ດ"),
        ("ការប្រកាសសិទ្ធិ\u200bមនុស្ស។", "កា រ ប្រ កា ស សិ ទ្ធិ ម នុ ស្ស ។"),
        ("မြန်မာ အင်္ဂလိပ် ကျွန်ုပ်တို့၏။", "မြန် မာ အင်္ဂ လိပ် ကျွန်ုပ် တို့ ၏ ။"),
        ("བོད་ཀྱི་སྐད་ཡིག།", "བོད ཀྱི སྐད ཡིག །"),
        ("ꦲꦏ꧀ꦱꦫꦗꦮ", "ꦲ ꦏ꧀ꦱ ꦫ ꦗ ꦮ"),
        ("ꆈꌠꁱꂷ", "ꆈ ꌠ ꁱ ꂷ"),
        ("한국어 문장입니다.", "한국어 문장입니다 ."),
    ],
)
def test_words_of_other_scripts_are_split_as_expected(text: str, words: str) -> None:
    assert split_words(text) == words.split()


def test_only_white_space_and_word_separators_are_lost() -> None:
    generator = random.Random(0)
    alphabets = [
        "abcXYZ019 \n'’.,-–—()[]{}<>\"#*&%$€+=/:;!?…@_~^|\\`é中🙂\u00a0n'ts",
        "中々〇ーアァｶﾞあゃっ。、「」 a1๒กเแะาำิ์ๆຽໄຊ\u200b\u200c\u200dกก",
        "ကခ့်္ျ၏။១កខ្៊ា។ ལིང་།ꦏ꧀ꦱ꧉ᬓ᭄ꆈ a1-.,",
        "कि्।॥॰ ক্ষাابتِّ،؟ـאבָּ״־׳ ፡፡፡።ሀለ ԱԲ՞։ Ελ;·\u0301\u200f\u00ad-.,'",
    ]
    for alphabet in alphabets:
        for _ in range(3000):
            text = "".join(generator.choices(alphabet, k=generator.randint(0, 60)))
            # A single Ethiopic word space is a separator, but several are punctuation.
            visible = "".join(re.sub("[\u200b་]|(?<!፡)፡(?!፡)", "", string) for string in text.split())
            assert "".join(split_words(text)) == visible, repr(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("To be, or NOT to_be: that's it (1.5)!", "to be or not to be that s it 1 5"),
        ("Straße STRASSE naïve ﬁne co\u00adop", "strasse strasse naïve fine coop"),
        ("Ｗｅｂ，ｶﾞｽ。２０２４年", "web ガス 2024 年"),
        ("किताब कितना? कुत्ता, कुर्ता।", "किताब कितना कुत्ता कुर्ता"),
        ("כָּל הָאָדָם, עַל־פִּי צה״ל", "כָּל הָאָדָם עַל פִּי צהל"),
        ("می\u200cخواهم میخواهم،", "میخواهم میخواهم"),
        ("Ինչո՞ւ չէ։", "ինչու չէ"),
        ("ሰው፡ልጅ፡፡", "ሰው ልጅ"),
        ("ภาษาไทย\u200bและ", "ภา ษา ไท ย และ"),
        ("⁉ … 🙂 — ", ""),
        ("a ❤️ b 葛\U000e0100城 ក\u17b4", "a b 葛 城 ក"),
    ],
)
def test_plain_words_are_folded_and_have_no_marks(text: str, words: str) -> None:
    assert plain_words(text) == words.split()


@pytest.mark.parametrize(
    "text", ["Ｗｅｂ Ｔｅｓｔ", "e\u0301te\u0301", "ΑΣ ας", "ﷺ ½", "ｶﾞｷﾞ", "각", "น้ำ ນ້ຳ", "ǅ İ ŉ", "kapı İzmir Iğdır"]
)
def test_plain_words_do_not_depend_on_form_or_case(text: str) -> None:
    words = plain_words(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert plain_words(unicodedata.normalize(form, text)) == words
    assert plain_words(text.upper()) == words == plain_words(" ".join(words))


def test_space_separated_words_keep_their_marks_except_in_scripts_without_spaces() -> None:
    assert space_separated_words('"Well-known," he said...') == ['"Well-known,"', "he", "said..."]
    assert space_separated_words("«naïve» — हिन्दी,।") == ["«naïve»", "—", "हिन्दी,।"]
    assert space_separated_words("我爱Web2,北京。 (abc)") == [*"我爱", "Web2,", *"北京", "(abc)"]
    assert space_separated_words("สิทธิ \n") == ["สิ", "ท", "ธิ"]


def test_a_string_that_is_too_long_for_a_word_is_split_by_the_simple_rule() -> None:
    assert split_words("a-b" * 100) == ["a"] + ["-", "ba"] * 99 + ["-", "b"]


@pytest.mark.parametrize("split", [split_words, plain_words, space_separated_words])
@pytest.mark.parametrize("part", ["เ", "ກໄ", "ꪵ", "ကမ", "က္", "เก็", "しょ", "a\u0301", "'é"])
def test_long_strings_without_spaces_take_linear_time(split: Callable[[str], list[str]], part: str) -> None:
    text = part * (100_000 // len(part))
    start = time.process_time()
    assert "".join(split(text)) == text or split is not split_words
    assert time.process_time() - start < 5


def test_the_cache_is_bounded_and_does_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.words._MAX_CACHE_ENTRIES", 3)
    lengths = StringCache(len)
    for number in range(20):
        assert lengths["x" * number] == number
        assert len(lengths) <= 3
    assert lengths["x" * 1000] == 1000
    assert "x" * 1000 not in lengths


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("今日は東京タワーへ行きました。", "今日 は 東京タワー へ 行き ま した 。"),
        ("我爱北京天安门，𠀀𠮷a。", "我 爱 北京 天安门 ， 𠀀𠮷 a 。"),
        ("การยอมรับนับถือ ๒๕๖๗", "การ ยอมรับ นับถือ ๒๕๖๗"),
        ("ສິດທິມະນຸດ", "ສິດທິ ມະນຸດ"),
        ("សិទ្ធិ\u200bមនុស្ស។", "សិទ្ធិ មនុស្ស ។"),
        ("ကျွန်ုပ်တို့၏။", "ကျွန်ုပ် တို့ ၏ ။"),
        ("ꦲꦏ꧀ꦱ don't हिन्दी है।", "ꦲ ꦏ꧀ꦱ do n't हिन्दी है ।"),
    ],
)
def test_icu_cuts_the_scripts_for_which_it_has_a_dictionary(text: str, words: str) -> None:
    pytest.importorskip("icu4py")
    assert split_words(text, "icu") == words.split()


def test_icu_loses_no_character() -> None:
    pytest.importorskip("icu4py")
    generator = random.Random(0)
    alphabet = "中々〇ーアァｶﾞあっ。、𠀀𠮷🙂 a1๒กเแะาำิ์ๆຊສິ\u200cကခ့်္ျ၏។កខ្៊ាꦏ꧀ꦱ"
    for _ in range(2000):
        text = "".join(generator.choices(alphabet, k=generator.randint(0, 40)))
        assert "".join(split_words(text, "icu")) == "".join(text.split()), repr(text)


def test_a_rule_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_word_rule("steps[0].repetition.words", "classes")
    monkeypatch.setattr("data.words.find_spec", lambda name: None)
    check_word_rule("steps[0].repetition.words", "classes")
    with pytest.raises(ValueError, match=r"steps\[0\].repetition.words: icu needs the package icu4py, which is not"):
        check_word_rule("steps[0].repetition.words", "icu")
