"""What good prose of each language is like: thresholds and stop words of the quality and repetition rules.

The rules of Gopher and FineWeb were set for English. The numbers for other languages are those with which FineWeb-2 was
made (Penedo et al. 2025, arXiv:2506.20920; folder configs of the repository huggingface/fineweb-2). They were measured
on Wikipedia and web pages, with a word segmenter for each language. Here they differ in these points:

- No share of repetition is above 1.5 times the English one. Some published shares are of no use, because they come from
  few pages (0.92 of the lines of a Khmer document may be duplicates). That of the most frequent n-gram is at least 1.25
  times the English one, so that short legal texts pass (`すべて人は…権利を有する`).
- Marks, word separators and English words were removed from the stop words.
- Korean is divided at spaces here, and in FineWeb-2 into morphemes, of which a Korean word has two (kiwipiepy finds
  2,323 in the 1,185 words of the Universal Declaration). So the maximum mean word length is doubled, and the shares of
  words with letters and of line breaks are converted: 0.791 / 2 against 0.209 marks is 0.654.
- A text has as many marks and lines in languages with long words (Finnish, Tamil, …) as in English, but fewer words.
  So the minimum number of words is that of 50 English words, and the shares of words with letters and of line breaks
  are at least as lenient as the English ones for the same text (`_WORDS_PER_ENGLISH_WORD`).
- Scripts without spaces are cut into smaller units than words (`data/words.py`). `units_per_word` converts them. It was
  measured on the Universal Declaration: jieba 0.42 for Chinese, fugashi 1.5 with unidic-lite for Japanese, pythainlp 5
  for Thai, laonlp 1 for Lao, khmer-nltk 1.6 for Khmer, ICU 78 for Burmese. For Tibetan, no segmenter works without a
  download. Its number gives the Declaration 1.1 times as many words as in English, as in the middle of all languages.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from math import ceil
from statistics import median_high
from typing import Any, NamedTuple, TypeVar
from unicodedata import name

from data.words import StringCache, WordRule

Settings = TypeVar("Settings", bound=Any)


class LanguageRules(NamedTuple):
    """Thresholds and stop words of a language. Fields that a step has too have the same name as in its settings."""

    units_per_word: float
    """Number of units of a script without spaces (`data/words.py`) that are as much text as one word."""
    stop_words: tuple[str, ...]
    """Frequent words. Empty if they are not known."""
    are_stop_words_parts: bool
    """Whether a stop word counts wherever its characters occur, because it is more than one unit or part of a word."""
    has_sentence_marks: bool
    """Whether sentences end with a mark. In Thai and Lao, they end with a space or a line break."""
    min_words: int
    min_mean_word_length: float
    max_mean_word_length: float
    min_alphabetic_words: float
    duplicate_lines: float
    max_line_breaks_per_word: float
    min_punctuated_lines: float
    top_ngrams: dict[int, float]
    duplicate_ngrams: dict[int, float]


def rules_for(language: str | None, text: str, words: WordRule = "classes") -> LanguageRules | None:
    """Return the rules for a text. None means those of the settings, which are meant for English.

    `language` is the ISO 639 code that the step `language` found. Without a code, the rules are those of the most
    important language of the script in which most of the text is written, and None for the Latin script. `words` is how
    text in scripts without spaces is cut.
    """
    code = language.replace("_", "-").partition("-")[0].lower() if language else _language_of_script(text)
    if code == "en":
        return None
    return _rules(words).get(code) or _unknown_language()


def adapt_settings(settings: Settings, rules: LanguageRules) -> Settings:
    """Return the settings with the values of the language for the fields that have their default values."""
    changes: dict[str, Any] = {}
    for item in fields(settings):
        default = item.default_factory() if callable(item.default_factory) else item.default
        if item.name in LanguageRules._fields and settings.__dict__[item.name] == default:
            changes[item.name] = rules._asdict()[item.name]
    return replace(settings, **changes)


class LanguageSettings:
    """The settings of a step for the documents of each language. It remembers the adapted settings."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._adapted: dict[int, Any] = {}

    def for_text(self, language: str | None, text: str) -> tuple[Any, LanguageRules]:
        """Return the settings for a text of this language, and the language's rules.

        They are the settings unchanged, and `_NO_RULES`, for English and if `by_language` is off.
        """
        rules = rules_for(language, text, self._settings.words) if self._settings.by_language else None
        if rules is None:
            return self._settings, _NO_RULES
        if id(rules) not in self._adapted:
            self._adapted[id(rules)] = adapt_settings(self._settings, rules)
        return self._adapted[id(rules)], rules


# The rules of all languages.

_UNITS_PER_WORD = {"zh": 1.8, "yue": 1.8, "ja": 1.6, "th": 3.0, "lo": 2.5, "km": 2.7, "my": 1.6, "bo": 2.5}
_CUT_BY_ICU = ("zh", "yue", "ja", "th", "lo", "km", "my")
"""Languages for which ICU has a dictionary."""
_UNKNOWN_UNITS_PER_WORD = 2.0
"""For passages in scripts without spaces in documents of other languages."""
_NO_RULES = LanguageRules(_UNKNOWN_UNITS_PER_WORD, (), False, True, 0, 0, 0, 0, 0, 0, 0, {}, {})
"""For texts that are judged by the settings as they are. Its thresholds and stop words are not used."""
_WORDS_PER_ENGLISH_WORD = {
    "ml": 0.46, "am": 0.59, "kn": 0.61, "sa": 0.62, "te": 0.64, "os": 0.66, "ko": 0.67, "ta": 0.68, "fi": 0.73,
    "he": 0.74, "ar": 0.76, "ne": 0.77, "ka": 0.78, "la": 0.78, "sah": 0.78, "tr": 0.78, "et": 0.79, "hy": 0.79,
    "lv": 0.79, "eu": 0.8, "bn": 0.81, "tt": 0.81, "kk": 0.82, "mai": 0.82, "tk": 0.83, "zh": 0.83, "lt": 0.84,
    "hsb": 0.85, "yue": 0.85, "az": 0.86, "cs": 0.86, "hr": 0.86, "sk": 0.86, "sr": 0.86, "pl": 0.87,
    "bs": 0.88, "gu": 0.88, "hu": 0.88, "ky": 0.88, "sl": 0.88, "ug": 0.88, "sv": 0.89, "uk": 0.89, "uz": 0.89,
    "mn": 0.9, "si": 0.9, "eo": 0.91, "mr": 0.91, "ru": 0.91, "be": 0.92, "is": 0.92, "no": 0.92, "de": 0.93,
    "da": 0.94, "tg": 0.95,
}  # fmt: skip
"""For languages with long words: the number of words of the Declaration, divided by that of the English one."""
_ARE_STOP_WORDS_PARTS = ("zh", "yue", "ja", "th", "lo", "km", "ko", "te", "ta", "ml", "kn")
"""Languages whose stop words are sought in the text and not among the words. In some they are more than one unit. In
others the segmenter of FineWeb-2 splits off endings, so that some of its stop words are endings."""
_MORE_STOP_WORDS = {
    "te": "మరియు ఒక ఆ యొక్క ప్రతి అని కాదు లేదా లేక గల వారి అతని ఇది కూడా చేసిన ఉన్న తన తమ వారు అన్ని కు లో",
    "ta": "எந்த அந்த அது தமது தன் என எல்லா வேண்டும் கொண்ட போன்ற அவர்",
    "ml": "അല്ലെങ്കിൽ എല്ലാ കൂടാതെ ആ അത് തന്റെ വേണ്ടി ഉള്ള മറ്റ് ഏത് പല ഓരോ എന്നിവ അഥവാ",
    "am": "ሁሉ ያለ መሆን ማንኛውም እንዲሁም ስለ ሌላ እያንዳንዱ ሰው አለው",
    "ka": "ან რა თუ ყოველ მის უნდა აქვს ყველა თავის",
    "kn": "ಅದು ಎಲ್ಲಾ ಯಾವುದೇ ಇರುವ ಆ ಪ್ರತಿಯೊಬ್ಬ ಬೇರೆ",
}
"""Function words of languages for which FineWeb-2 has mostly words of short encyclopedia articles, such as village."""
_MIN_WORDS, _MAX_LINE_BREAKS, _MIN_PUNCTUATED_LINES = 50, 0.3, 0.12
_MARKS_PER_WORD = 0.25
"""The rules of Gopher and FineWeb for English. At least 0.8 words with letters are at most 0.25 others for each."""
_TOP_NGRAMS, _DUPLICATE_NGRAMS = (2, 3, 4), (5, 6, 7, 8, 9, 10)
_MAX_LINES = 0.45
_MIN_TOP_NGRAMS = (0.25, 0.225, 0.2)
_MAX_TOP_NGRAMS = (0.3, 0.27, 0.24)
_MAX_DUPLICATE_NGRAMS = (0.225, 0.21, 0.195, 0.18, 0.165, 0.15)
"""Bounds of the shares of repetition: 1.5 and, for the most frequent n-gram, also 1.25 times those of Gopher (Rae et
al. 2021, table A1)."""


@lru_cache(maxsize=2)
def _rules(word_rule: WordRule) -> dict[str, LanguageRules]:
    """Return the rules of each language of `_TABLE` by its code."""
    units_per_word = {**_UNITS_PER_WORD, **(dict.fromkeys(_CUT_BY_ICU, 1.0) if word_rule == "icu" else {})}
    rules: dict[str, LanguageRules] = {}
    for entry in re.split(r"\n(?! )", _TABLE.rstrip()):
        thresholds, _, stop_words = entry.partition("\n")
        code, *values = thresholds.split()
        rules[code] = _parse_rules(code, values, stop_words.split(), units_per_word)
    return rules


def _parse_rules(
    code: str, values: Sequence[str], stop_words: Sequence[str], units_per_word: Mapping[str, float]
) -> LanguageRules:
    min_length, max_length, alphabetic, lines, breaks, punctuated = map(float, values[1:7])
    top, duplicate = ([float(share) for share in shares.split(",")] for shares in values[7:])
    units = units_per_word.get(code, 1)
    length = _WORDS_PER_ENGLISH_WORD.get(code, 1)
    return LanguageRules(
        units_per_word=units_per_word.get(code, _UNKNOWN_UNITS_PER_WORD),
        stop_words=(*stop_words, *_MORE_STOP_WORDS.get(code, "").split()),
        are_stop_words_parts=code in _ARE_STOP_WORDS_PARTS,
        has_sentence_marks=code not in ("th", "lo"),
        min_mean_word_length=min_length,
        max_mean_word_length=max_length,
        min_words=round(_MIN_WORDS * length),
        min_alphabetic_words=min(alphabetic, length / (length + _MARKS_PER_WORD)),
        duplicate_lines=min(lines, _MAX_LINES),
        max_line_breaks_per_word=max(breaks, _MAX_LINE_BREAKS / length),
        min_punctuated_lines=min(punctuated, _MIN_PUNCTUATED_LINES),
        top_ngrams=_ngram_shares(_TOP_NGRAMS, map(max, top, _MIN_TOP_NGRAMS), _MAX_TOP_NGRAMS, units),
        duplicate_ngrams=_ngram_shares(_DUPLICATE_NGRAMS, duplicate, _MAX_DUPLICATE_NGRAMS, units),
    )


def _ngram_shares(
    sizes: Sequence[int], shares: Iterable[float], max_shares: Sequence[float], units_per_word: float
) -> dict[int, float]:
    """Return the maximum share for each size of an n-gram, where the sizes are numbers of units."""
    return {
        ceil(n * units_per_word): min(share, max_share)
        for n, share, max_share in zip(sizes, shares, max_shares, strict=True)
    }


@lru_cache(maxsize=1)
def _unknown_language() -> LanguageRules:
    """Return the rules for a language that is not in the table: no stop words, and the median of each threshold."""
    spaced = [rules for code, rules in _rules("classes").items() if code not in _UNITS_PER_WORD]
    return LanguageRules(
        units_per_word=_UNKNOWN_UNITS_PER_WORD,
        stop_words=(),
        are_stop_words_parts=False,
        has_sentence_marks=True,
        min_words=median_high([rules.min_words for rules in spaced]),
        min_mean_word_length=min(rules.min_mean_word_length for rules in spaced),
        max_mean_word_length=median_high([rules.max_mean_word_length for rules in spaced]),
        min_alphabetic_words=median_high([rules.min_alphabetic_words for rules in spaced]),
        duplicate_lines=median_high([rules.duplicate_lines for rules in spaced]),
        max_line_breaks_per_word=median_high([rules.max_line_breaks_per_word for rules in spaced]),
        min_punctuated_lines=0,
        top_ngrams={n: median_high([rules.top_ngrams[n] for rules in spaced]) for n in _TOP_NGRAMS},
        duplicate_ngrams={n: median_high([rules.duplicate_ngrams[n] for rules in spaced]) for n in _DUPLICATE_NGRAMS},
    )


# Scripts.

_LANGUAGE_OF_SCRIPT = {
    "CYRILLIC": "ru", "GREEK": "el", "ARABIC": "ar", "HEBREW": "he", "DEVANAGARI": "hi", "BENGALI": "bn",
    "GURMUKHI": "pa", "GUJARATI": "gu", "ORIYA": "or", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn",
    "MALAYALAM": "ml", "SINHALA": "si", "THAI": "th", "LAO": "lo", "KHMER": "km", "MYANMAR": "my",
    "TIBETAN": "bo", "CJK": "zh", "HANGUL": "ko", "ETHIOPIC": "am", "GEORGIAN": "ka", "ARMENIAN": "hy",
    "THAANA": "dv", "HIRAGANA": "ja", "KATAKANA": "ja", "LATIN": "en",
}  # fmt: skip
"""The language with most speakers of each script, by the first word of the names of the script's characters."""
_MAX_EXAMINED_CHARACTERS = 1000
_MAX_BYTES_OF_LATIN = 1.1
"""Mean number of bytes of a character in UTF-8 up to which a text is taken for Latin without looking at its letters.
All letters of other scripts have at least two bytes."""
_MIN_KANA = 0.05
"""Minimum share of kana in a text of kana and ideographs for it to be Japanese."""


_SCRIPTS = StringCache(lambda character: name(character, "").partition(" ")[0] if character.isalpha() else "")
"""The script of each letter, as the first word of its Unicode name. Empty for other characters."""


def _language_of_script(text: str) -> str:
    start = text[:_MAX_EXAMINED_CHARACTERS]
    if len(start.encode(errors="replace")) <= _MAX_BYTES_OF_LATIN * len(start):
        return "en"
    scripts = Counter(map(_SCRIPTS.__getitem__, start))
    del scripts[""]
    kana = scripts.pop("HIRAGANA", 0) + scripts.pop("KATAKANA", 0)
    if kana > _MIN_KANA * (kana + scripts["CJK"]):
        scripts["HIRAGANA"] = kana + scripts.pop("CJK", 0)
    (script, count), *_ = scripts.most_common(1) or [("LATIN", 0)]
    return _LANGUAGE_OF_SCRIPT.get(script, script) if count else "en"


_TABLE = """\
af afr_Latn 3 11 .707 .412 .209 .053 .707,.557,.418 .192,.162,.149,.128,.113,.101
  die van in en is n het wat sy op word
als gsw_Latn 3 11 .765 .467 .183 .103 .706,.485,.442 .262,.241,.221,.202,.182,.164
  dr isch d und vo de im het in un s e vom vu mit z wo em
am amh_Ethi 1 24 .824 .672 .417 0 .535,.433,.388 .273,.242,.228,.205,.183,.157
  ነው እና ምሳሌ ላይ ነበር ውስጥ ግን ወደ ልጆች እንደ የአማርኛ ወይም ነገር በኋላ ጊዜ ቀን ሲሆን ጋር ዘመን ዓ.ም. እስከ ይህ ትርጉሙ የኢትዮጵያ
an arg_Latn 3 13 .811 .449 .184 .167 .527,.476,.415 .272,.255,.233,.209,.185,.163
  de en a y o que ye d'o d'a una la con un se os
ar arb_Arab 2 9 .787 .304 .189 .143 .197,.172,.146 .165,.153,.142,.131,.12,.109
  في من على إلى عام أن مع أو هو عن التي كان بين ما كانت هي المتحدة بعد
arz arz_Arab 3 8 .83 .368 .308 .188 .269,.249,.225 .223,.207,.19,.174,.158,.143
  فى و من لينكات هيا اللى برانيه يوم مواليد حياته كان
as asm_Beng 3 19 .812 .211 .125 .094 .176,.153,.133 .119,.108,.101,.09,.082,.074
  আৰু হয় কৰা কৰে এই তেওঁ পৰা বাবে চনত কৰিছিল আছিল হৈছে কৰি হৈছিল তেওঁৰ বা চনৰ ইয়াৰ হিচাপে এক এটা হৈ বুলি লাভ ৰ
  আছে
ast ast_Latn 3 10 .824 .679 .167 .195 1.597,1.59,1.469 .412,.379,.328,.313,.306,.287
  de la y a del en los que el les so una un
az azj_Latn 3 13 .725 .879 .179 .188 .514,.475,.405 .3,.271,.252,.227,.202,.179
  və ilə ildə bir bu azərbaycan olan üçün sonra də kimi il isə o görə da tərəfindən çox ki onun edir idi
azb azb_Arab 3 14 .719 .379 .25 .111 .403,.33,.245 .225,.2,.179,.16,.144,.129
  و اینگیلیسجه بیر قایناق‌لار تاریخینده طرفیندن ایشلدنلری مقاله‌سیندن گؤتورولوبدور ویکی‌پدیاسی‌نین
  یوْخلانیلیبدیر). دیر بۇ
ba bak_Cyrl 3 11 .72 .217 .134 .222 .221,.171,.133 .128,.12,.103,.092,.084,.077
  һәм буйынса һыу менән йылға йылда бассейны йылдың рәсәй дәүләт тиклем була коды өсөн бер гө км был ул уҡ йыл
  уның урынлашҡан халыҡ тип
bar bar_Latn 2 17 .772 .591 .25 0 .681,.635,.529 .38,.356,.326,.301,.274,.247
  da de und in vo a is im des hod
be bel_Cyrl 3 11 .72 .261 .216 .143 .196,.153,.135 .124,.116,.103,.094,.084,.075
  і у ў з на года да годзе па ад за быў не што г. для таксама а яго як вобласці пасля
bg bul_Cyrl 3 10 .756 .317 .142 .154 .173,.157,.139 .17,.158,.144,.131,.12,.108
  на и в е от за се г. с през да по
bn ben_Beng 3 24 .8 .203 .171 .125 .177,.158,.147 .118,.108,.099,.09,.082,.073
  এবং ও হয় করে একটি তিনি করা থেকে
bo bod_Tibt 1 23 .824 .261 .417 0 .206,.205,.175 .174,.153,.14,.129,.115,.102
  དང ལ ཀྱི དུ ནས གི གྱི ནི
br bre_Latn 3 12 .805 .196 .253 .062 .242,.181,.157 .114,.099,.083,.075,.068,.062
  e ar a an ha gant da en ur hag eus zo oa eo
bs bos_Latn 1 16 .764 .262 .196 .1 .157,.142,.128 .144,.136,.127,.117,.108,.098
  je i u se na su od za da godine
ca cat_Latn 2 11 .832 .294 .118 .154 .216,.189,.168 .159,.149,.137,.126,.116,.105
  de el la a i d l' en d' que va els per un les una amb es
ce che_Cyrl 4 10 .679 .244 .294 .333 .262,.228,.203 .101,.09,.081,.073,.069,.06
  а климат йу кхузахь эвла хуьлу шийла аса бахархой сахьтан барамехь географи йовха кӏоштара ду уггаре ӏа
  бахархойн сахьт континенталан
ceb ceb_Latn 3 11 .829 .248 .194 .008 .674,.553,.445 .14,.124,.112,.098,.088,.078
  sa ang nga mga ug ni c niini palibot nasod km milimetro gi basihan kasarangang bulan
ckb ckb_Arab 3 36 .81 .242 .246 0 .176,.164,.151 .14,.133,.122,.115,.103,.097
  لە و بە کە بۆ ساڵی لەگەڵ بوو ئەم ئەو وەک بووە یان کرد دوای لەسەر گوندی
co cos_Latn 2 11 .833 .454 .441 .091 .759,.742,.675 .255,.242,.227,.217,.201,.184
  di u a in à è i hè da una chì so un si sò e
cs ces_Latn 3 11 .781 .311 .182 .06 .206,.183,.165 .168,.157,.145,.133,.121,.109
  v a se na je z s do
cv chv_Cyrl 3 11 .68 .243 .269 .116 .205,.186,.169 .109,.102,.091,.084,.076,.062
  шыв юханшыв кочĕ кĕрет раççей тата бассейн бассейнĕ патшалăх км хыпарĕпе реестрĕн гт юханшывăн юхса чăваш
  территоринчи и çулта тăршшĕ юхать обь кĕçĕн территорипе çулхи м. хуçалăх в рф хатĕрленĕ том федераци номерĕ
  кăларăм хыпарĕсем системин гидрологи территорин агентстви районĕсен ресурсĕсен объекчĕн реестрĕнчи тĕпчевленӳ
  геоинформаци совет те с а. ял
cy cym_Latn 3 9 .828 .269 .167 .25 .258,.196,.165 .144,.131,.12,.108,.097,.088
  yn y a ffilm o gan 'r ar mae yw cyfarwyddwr ei i oedd wedi
da dan_Latn 3 11 .798 .305 .182 .1 .367,.297,.232 .169,.158,.147,.134,.123,.112
  i og af en til er den at som på for med det blev var der fra de han et
de deu_Latn 0 15 .774 .263 .152 0 .169,.153,.137 .141,.134,.126,.117,.108,.098
  der und die in von im den des mit das er dem als wurde für
dv div_Thaa 4 70 .898 .281 .25 .1 .179,.161,.146 .157,.145,.135,.125,.113,.104
  އަދި އެވެ. އަކީ ވަނަ އެންމެ ނުވަތަ ވެސް ގެ އާއި ތެރޭގައި މި ވަރަށް މިއީ މީހުން އަށް ހުންނަ އަހަރު ފުރަތަމަ
  ވެއެވެ. ދިވެހި މަހުގެ ގައި ހުރެއެވެ. ގޮތުގައި އެއީ ބައެއް
el ell_Grek 3 11 .809 .31 .116 .167 .194,.175,.156 .174,.163,.153,.142,.13,.119
  του και το της η την από ο με τον να που των στην για στο σε είναι τη τα οι
eo epo_Latn 3 12 .78 .218 .207 .125 .42,.285,.207 .088,.08,.071,.065,.06,.052
  la de en kaj estas al estis li
es spa_Latn 3 14 .825 .252 .138 .182 .156,.14,.125 .145,.136,.127,.117,.108,.099
  de la en el y a que del los se por un con una las su
et ekk_Latn 3 13 .722 .363 .213 .143 .345,.268,.215 .172,.161,.15,.139,.125,.113
  ja on oli ta aastal eesti ka ning et mis kui aasta ei või see oma tema
eu eus_Latn 4 11 .788 .298 .25 .167 .263,.227,.192 .152,.14,.129,.118,.108,.096
  eta da ziren zen bat zuen zeuden izan
fa fas_Arab 2 9 .812 .246 .15 .2 .189,.164,.143 .157,.147,.137,.127,.117,.107
  در و به از که است این را با یک
fi fin_Latn 3 14 .755 .293 .161 .114 .253,.202,.179 .153,.143,.133,.122,.112,.101
  ja on oli hän vuonna myös joka se ei sen ovat sekä mutta että tai vuoden kanssa hänen s. jälkeen
fr fra_Latn 2 11 .812 .264 .185 .1 .161,.149,.134 .15,.141,.131,.121,.111,.1
  de la le et à en l' des du les est d' un une il dans par au
fy fry_Latn 2 11 .811 .248 .181 .056 .243,.213,.176 .12,.113,.102,.093,.083,.075
  de fan yn it en in e op is mei dat
ga gle_Latn 2 11 .816 .395 .214 0 .533,.421,.379 .203,.181,.181,.155,.145,.132
  an a na agus ar i is le sa go é ag sé bhí de
gd gla_Latn 2 12 .788 .276 .364 0 .487,.363,.267 .148,.138,.127,.118,.107,.097
  an a ann na e tha agus air a' am 's bha
gl glg_Latn 1 10 .824 .906 .182 .136 .629,.399,.354 .266,.242,.221,.2,.18,.159
  de a e o en que do da un no os na é unha como
gu guj_Gujr 3 22 .812 .299 .097 .2 .204,.178,.151 .132,.122,.113,.102,.094,.084
  છે અને આ જ એક આવેલા તેમ કે ગામમાં પણ માટે ખેતી આવે કરવામાં ભાગમાં તે હતી હતા પર મુખ્ય હતો જે ભારત હતું આવેલું
  ગામ સાથે ગુજરાત કરી રાજ્યના પશ્ચિમ દેશના તરીકે દ્વારા મુખ્યત્વે જેવી પ્રાથમિક અન્ય શાળા હોય એ પશુપાલન ગામના
  ખેતમજૂરી આંગણવાડી વ્યવસાય પંચાયતઘર ડેરી કરે પ્રાપ્ય દૂધની સવલતો લોકોનો તાલુકામાં જિલ્લામાં
he heb_Hebr 2 9 .799 .34 .126 .2 .239,.202,.173 .16,.151,.14,.129,.118,.108
  של את על הוא עם בשנת גם היה היא לאחר לא ידי בין או כי
hi hin_Deva 2 21 .837 .206 .316 .091 .208,.198,.161 .135,.125,.116,.108,.099,.09
  के में है की और से का को एक हैं पर
hif hif_Latn 1 15 .83 .437 .179 .167 .513,.475,.414 .278,.259,.239,.22,.202,.182
  ke hae me mein ek aur rahaa se film fiji
hr hrv_Latn 2 11 .751 .312 .198 .099 .215,.19,.165 .173,.162,.15,.138,.126,.113
  je u i se na su za od s a
hsb hsb_Latn 2 11 .735 .434 .381 .058 .485,.432,.376 .277,.259,.224,.198,.174,.159
  a w je na wot so z do
ht hat_Latn 2 20 .825 .476 .605 .028 .691,.603,.529 .267,.242,.221,.197,.176,.159
  nan de se li yo vil sa yon ak ayisyen kòm istwa relasyon la te ayiti jewografi kiba
hu hun_Latn 3 15 .766 .322 .231 .067 .226,.198,.172 .169,.159,.148,.136,.124,.112
  a az és is egy volt hogy nem meg de magyar első el között
hy hye_Armn 4 11 .778 .285 .16 .167 .225,.206,.184 .157,.146,.133,.123,.111,.099
  է և են էր թվականի թվականին որ իր ծրագիր նա նաև որը այն հետ համար ու նրա այդ առաջին մի էին իսկ որպես
id ind_Latn 3 12 .805 .241 .157 .111 .194,.166,.145 .166,.155,.144,.133,.122,.111
  dan yang di pada dari ini dengan adalah untuk dalam
ilo ilo_Latn 3 10 .842 .304 .184 .077 .989,.82,.699 .176,.159,.144,.126,.111,.097
  ti a iti ket nga ken dagiti kadagiti idi maysa daytoy
is isl_Latn 2 13 .8 .292 .25 .095 .21,.183,.163 .157,.15,.143,.126,.114,.104
  og í á að sem er var til við en af um hann með
it ita_Latn 3 21 .807 .246 .2 .025 .198,.156,.133 .144,.136,.127,.118,.109,.1
  di e il la in a del che è della un per nel l' con da i una
ja jpn_Jpan 1 6 .759 .328 .13 .096 .239,.196,.172 .243,.225,.207,.19,.175,.159
  の に を は た て が と で 年 し 月 れ さ
jv jav_Latn 1 12 .777 .369 .222 .094 .639,.506,.445 .256,.236,.221,.203,.176,.158
  ing lan kang iku sing saka ingkang iki
ka kat_Geor 3 13 .754 .332 .222 .111 .225,.189,.167 .157,.146,.134,.122,.111,.1
  და წლის წელს იყო რომელიც რომ მისი შემდეგ რესურსები ინტერნეტში ამ იგი არ როგორც საქართველოს
kk kaz_Cyrl 3 12 .694 .304 .186 .176 .172,.147,.127 .159,.148,.136,.126,.115,.104
  және су бойынша мен жылы коды өзен орналасқан мәліметтер жер бұл саны тұрғындарының адамды оның болып алып
  мемлекеттік құрайды жаңа ол гз бар жатқан
km khm_Khmr 2 13 .905 .917 .361 0 .594,.523,.438 .175,.16,.148,.135,.121,.109
  មាន បាន ដែល ជា និង នៅ របស់ ក្នុង ថា នេះ នៃ ហើយ ទៅ ដោយ
kn kan_Knda 3 67 .783 .25 .193 .095 .214,.183,.165 .135,.126,.118,.11,.101,.093
  ಮತ್ತು ಈ ಒಂದು ಎಂದು ಅಥವಾ ಅವರು ಇದು ಹಾಗೂ ಅವರ ಎಂಬ ಮೇಲೆ ನಂತರ ತನ್ನ ಆದರೆ ತಮ್ಮ ರಲ್ಲಿ ಮೂಲಕ ಹೆಚ್ಚು
ko kor_Hang 1 12 .654 .374 .34 .062 .282,.228,.185 .201,.184,.168,.154,.14,.127
  의 다 이 는 에 을 한 년 하 은 를 했 고 에서 가 있 으로 인 월 로 되
ku kmr_Latn 2 10 .783 .236 .167 .222 .253,.201,.14 .112,.103,.097,.089,.081,.073
  û li bi ji de di ye ku ya jî xwe e ser
ky kir_Cyrl 4 12 .623 .311 .17 .133 .247,.189,.161 .167,.16,.136,.125,.119,.111
  жана менен боюнча кыргыз суу ж. бир мамлекеттик колдонулган адабияттар жылы ал коду isbn башкы болгон б
  шилтемелер б. да болуп энциклопедия үчүн бул же борбору анын а. калкы эле тил
la lat_Latn 3 11 .762 .452 .281 .1 .15,.147,.14 .457,.449,.436,.42,.4,.378
  et in est anno praefecturae de a ad
lb ltz_Latn 1 16 .783 .409 .26 .048 .616,.509,.445 .24,.218,.197,.177,.161,.143
  de an der d' vun a vum den am ass déi regie huet eng
li lim_Latn 3 12 .803 .673 .154 .136 .546,.51,.432 .261,.239,.218,.196,.169,.149
  de 't in en van vaan is 'n op
lo lao_Laoo 2 9 .85 .327 .2 0 .198,.175,.143 .187,.175,.163,.149,.135,.123
  ແລະ ໃນ ຂອງ ເປັນ ທີ່ ໄດ້ ມີ
lt lit_Latn 3 12 .688 .32 .19 .167 .247,.21,.174 .175,.163,.15,.137,.126,.114
  m ir buvo į nuo iš d su yra lietuvos a iki o kaip kad apie po km
lv lvs_Latn 2 13 .727 .329 .169 .125 .526,.337,.242 .173,.16,.148,.135,.122,.109
  un ir no ar gadā gada par bija arī
mai mai_Deva 3 28 .793 .335 .481 .059 .33,.295,.261 .214,.207,.191,.174,.144,.129
  अछि आ छी एक छल ई के मे विकास ओ
mg plt_Latn 2 10 .769 .332 .317 0 .33,.293,.264 .151,.137,.129,.119,.109,.099
  ny dia amin'ny ao ary i taona tanàna kaominina ara koa tamin'ny
mhr mhr_Cyrl 2 12 .646 .239 .533 .2 .55,.413,.253 .144,.138,.121,.11,.094,.083
  марий влак ола эл йошкар ял с. ий да республики
mk mkd_Cyrl 2 10 .781 .248 .172 .133 .199,.189,.172 .138,.128,.119,.109,.099,.09
  на во и од се за со е година да како
ml mal_Mlym 4 37 .774 .239 .174 .111 .191,.18,.164 .138,.132,.125,.116,.108,.099
  ഒരു ഈ ൽ എന്ന ഇത് അദ്ദേഹം നിന്ന് ചെയ്തു ആണ് അവർ ഓഫ് ഏറ്റവും മുതൽ പ്രധാന
mn khk_Cyrl 2 11 .781 .324 .222 .077 .184,.165,.143 .181,.169,.156,.144,.132,.12
  нь онд оны юм улсын байна сарын болон байсан энэ бөгөөд их монгол ба олон улс гэж хүн нэг байдаг
mr mar_Deva 2 35 .798 .233 .351 .008 .156,.15,.137 .145,.138,.131,.122,.114,.105
  आहे आणि हे व या एक ते हा आहेत स असते होते ही येथे मध्ये केले असतो महाराष्ट्र हवामान इ गाव राज्यातील जाते केली
  जिल्ह्यातील म्हणून पर्यंत
ms zsm_Latn 3 11 .808 .331 .214 .125 .264,.252,.225 .185,.176,.166,.156,.145,.134
  dan di yang pada dalam dengan untuk ini
mt mlt_Latn 3 13 .823 .395 .162 .111 .949,.746,.548 .212,.193,.175,.159,.142,.125
  l- tal- u ta' il- li fl- fil- mill-
my mya_Mymr 2 21 .75 .278 .07 0 .161,.152,.133 .167,.155,.145,.134,.124,.113
  သည် များ ကို တွင် ဖြစ် သော ခဲ့ နှင့် ရှိ တို့ မှာ ဦး က မ မှ
nap nap_Latn 2 15 .781 .711 1.143 0 .497,.436,.391 .405,.381,.357,.322,.299,.279
  e comune a d''a o pruvincia è nu l' italia giugrafia reggione ll' ca
nds nds_Latn 3 12 .59 .568 .162 .12 .611,.542,.472 .351,.328,.292,.267,.245,.218
  de in un vun dat is ’n en von to den an hett he
ne npi_Deva 3 37 .824 .155 .278 .125 .114,.103,.091 .098,.09,.083,.076,.069,.062
  र छ थियो हो एक पनि मा थिए यो
nl nld_Latn 3 17 .828 .296 .154 .102 .213,.182,.158 .156,.146,.136,.126,.115,.104
  de van in het een en is op voor met door zijn werd hij uit
nn nno_Latn 3 11 .815 .281 .195 .125 .899,.705,.375 .16,.149,.135,.125,.114,.102
  i og av er som til på ein det med for den han vart frå var dei
no nob_Latn 3 12 .783 .283 .167 .107 .204,.175,.15 .146,.139,.128,.119,.11,.099
  i og av som en er til på for ble med den det var han de å fra
oc oci_Latn 2 12 .833 .521 .471 .091 .651,.526,.411 .283,.253,.222,.202,.186,.164
  de la e lo en a es per que un una del dins las
or ory_Orya 3 30 .786 .225 .889 0 .227,.201,.184 .155,.15,.137,.13,.116,.106
  ଓ ଏହି ସେ ଏକ ଏବଂ କରିଥିଲେ ଏହା ପାଇଁ ମଧ୍ୟ ଭାବରେ ମସିହାରେ ପରେ ଜଣେ ହୁଏ କରି ବା ତାଙ୍କ ଥିଲେ ଭାରତୀୟ ଏହାର ଅଟେ ଓଡ଼ିଶା କରିବା
os oss_Cyrl 3 10 .667 .266 .769 0 .262,.243,.225 .118,.111,.097,.089,.08,.072
  у æмæ йæ азы сахар ис сты ирыстоны уый сæ иу ирон дæр районы цæгат уыцы административон хуссар центр хъæу
  кодта дзы цаутæ кæнæ амардысты райгуырдысты гæсгæ та уæрæсейы мыггаг чи нæ уыдис тыххæй облæсты уыд сæйраг
  фыццаг
pa pan_Guru 2 19 .83 .328 .117 .153 .191,.154,.133 .153,.142,.129,.119,.109,.098
  ਵਿੱਚ ਦੇ ਹੈ ਅਤੇ ਦੀ ਨੂੰ ਦਾ ਸੀ ਇੱਕ ਤੋਂ ਨੇ ਹਨ ਤੇ ਲਈ ਨਾਲ
pl pol_Latn 3 12 .726 .32 .158 .087 .222,.198,.176 .172,.16,.148,.136,.123,.111
  w i na z do się roku od a jest przez po jako oraz o został był nie
pnb pnb_Arab 2 21 .883 .178 .333 0 .228,.151,.136 .089,.082,.076,.07,.064,.059
  دے وچ تے د‏‏ی دا اے نے تو‏ں اس نو‏‏ں سی اک اُتے
ps pbt_Arab 2 21 .867 .236 .222 .029 .167,.154,.136 .119,.108,.098,.088,.081,.072
  د په او کې چې له ته سره
pt por_Latn 3 13 .814 .287 .186 .077 .371,.191,.163 .163,.153,.141,.13,.119,.108
  de a e o em do da que um no uma com para na é foi
rm roh_Latn 1 10 .857 .274 .2 .1 .408,.347,.278 .177,.163,.156,.132,.128,.123
  da la il en l’ e dal a è ils las che ha per cun ina in d’
ro ron_Latn 1 14 .779 .289 .207 .081 .161,.146,.131 .16,.149,.138,.127,.117,.106
  de în a și din la o cu este un pe fost care al
ru rus_Cyrl 3 11 .713 .322 .139 .231 .184,.164,.146 .168,.156,.145,.133,.121,.109
  в и на с года по году из был к не от что за для его как а он также до после
rue rue_Cyrl 3 15 .739 .658 1.429 0 .84,.763,.698 .381,.36,.326,.288,.261,.231
  в и ся на з і року до є
sa san_Deva 4 52 .732 .234 .961 .034 .367,.318,.258 .133,.122,.109,.102,.095,.082
  च इति अस्ति भवति न आसीत् एव अपि
sah sah_Cyrl 1 13 .711 .401 .299 .143 .547,.521,.439 .24,.228,.202,.172,.157,.136
  уонна диэн киһи саха бу ол с сыллаахха да сыл дьон буолар улахан суох биир баар эрэ оҕо аан сөп
sc srd_Latn 3 32 .833 .271 .16 .1 1.214,.971,.813 .16,.146,.13,.115,.104,.093
  de su in sa a e est chi sos is dae unu cun pro una
sd snd_Arab 2 50 .799 .248 7.25 0 .211,.171,.127 .129,.118,.107,.099,.09,.08
  جي جو آهي کي تي کان سان
si sin_Sinh 2 58 .833 .274 .226 0 .236,.216,.194 .164,.156,.146,.136,.125,.114
  සහ අතර හා වන ලෙස මෙම වූ විය ඇති විසින් කරන සඳහා ද වේ ඇත දී එය හෝ කර ඔහු කළ කිරීම ශ්‍රී යන නම් බව
sk slk_Latn 2 11 .752 .319 .214 0 .316,.218,.171 .176,.165,.152,.14,.127,.115
  v a na sa je z roku s
sl slv_Latn 2 12 .781 .317 .273 .045 .262,.225,.189 .17,.158,.146,.135,.123,.111
  je v in na so se ki za leta z
so som_Latn 2 74 .831 .405 .29 0 .812,.846,.811 .285,.27,.251,.232,.211,.191
  oo iyo ka ah ee ku u waa la waxaa ay soo uu waxay
sq als_Latn 1 14 .788 .241 .273 .066 .152,.136,.116 .131,.122,.113,.105,.096,.087
  të e në dhe i një me nga për është që më u si
sr srp_Cyrl 3 10 .8 .257 .239 .156 .176,.158,.141 .147,.137,.126,.116,.106,.096
  у је и на се од су године да за из са насеље
su sun_Latn 2 9 .789 .411 .149 .25 .604,.483,.416 .271,.251,.228,.206,.181,.162
  di nu astéroid jeung nyaéta anu ieu dina tina jadi kabupatén pikeun indonésia
sv swe_Latn 3 12 .841 .292 .135 .2 .242,.195,.174 .156,.147,.136,.125,.116,.105
  i och är av en som den med på till att för
sw swh_Latn 3 9 .802 .302 .167 .143 .396,.282,.231 .193,.17,.155,.14,.126,.113
  ya na wa katika kwa ni la za mwaka
ta tam_Taml 4 37 .779 .276 .195 .125 .23,.212,.19 .149,.14,.132,.123,.114,.104
  மற்றும் ஒரு இந்த ஆம் இது என்ற இவர் உள்ள ஆகும் ஆண்டு அல்லது என்பது முதல் உள்ளது என்று இந்திய மக்கள் ஊராட்சி இல்
  இருந்து மேலும் பல
te tel_Telu 4 68 .739 .256 .18 .08 .21,.18,.162 .142,.133,.122,.114,.105,.096
  నుండి కి ఉన్నాయి మీ గ్రామం ఉంది దూరంలో ఈ కేంద్రం
tg tgk_Cyrl 3 11 .71 .291 .316 .111 .217,.183,.151 .151,.142,.133,.122,.113,.103
  дар ва аз ба ки аст соли бо деҳа дорад
th tha_Thai 2 10 .9 .349 .153 0 .221,.197,.162 .185,.168,.152,.137,.124,.111
  ใน ที่ และ ของ เป็น มี การ ได้
tk tuk_Latn 1 24 .769 .276 1 0 .406,.337,.274 .17,.151,.138,.125,.117,.104
  we bilen hem bu üçin bir ol boýunça ýylda da bolsa onuň de bolup bolan öz uly dünýä şol ýaly iň ýylyň
tl fil_Latn 3 12 .821 .263 .159 .091 .286,.228,.179 .15,.141,.129,.119,.11,.1
  ng sa ang na mga ay at isang noong
tr tur_Latn 3 21 .773 .272 .222 .091 .214,.168,.147 .154,.144,.134,.124,.113,.103
  ve bir olarak bu ile için olan da de tarafından yılında sonra en daha ilk
tt tat_Cyrl 3 11 .692 .356 .308 .333 .26,.259,.243 .197,.187,.168,.16,.149,.136
  урнашкан һәм климаты географиясе c уртача халык
ug uig_Arab 2 15 .782 .293 .394 0 .2,.159,.134 .136,.123,.108,.097,.087,.079
  ۋە بىر بىلەن بۇ بولۇپ بولغان ياكى ئۇيغۇر ئۇ دەپ ئۈچۈن بولىدۇ ئۇنىڭ قىلىپ بار
uk ukr_Cyrl 3 11 .694 .3 .175 .167 .189,.172,.153 .16,.148,.136,.124,.113,.102
  у в на і з та до року за що
ur urd_Arab 2 31 .839 .204 .222 .1 .139,.123,.107 .125,.115,.107,.098,.089,.081
  کے میں کی اور ہے سے کا نے اس پر کو ایک
uz uzn_Cyrl 3 11 .719 .202 .091 -1 .166,.151,.135 .12,.112,.104,.096,.088,.079
  ва билан ҳам у мен учун бу деб улар бир эди
vi vie_Latn 3 11 .803 .293 .103 .333 .223,.197,.171 .178,.163,.15,.136,.124,.111
  là và của một được trong năm các có loài này đã người
yi ydd_Hebr 2 14 .83 .355 .222 .083 .321,.319,.281 .189,.174,.162,.15,.137,.126
  די פון אין און איז א דער האט ער צו וואס דעם רבי
yo yor_Latn 1 12 .86 .433 .069 .139 .516,.446,.387 .232,.215,.19,.189,.153,.14
  ní ni ti tí ó jẹ́ àwọn o ibi àti kékeré ástẹ́rọ́ìdì ìgbàjá plánẹ́tì
yue yue_Hani 1 5 .765 .442 .238 .111 1.238,.854,.623 .241,.216,.204,.193,.182,.17
  嘅 係 年 喺 有 佢 月 個 咗 香港 一 同 呢 人 唔 都 到 號 國 啲 後 就 會 市 鎮 而 嚟 可以 由 嗰 做 為
zh cmn_Hani 1 5 .735 .287 .178 .106 .256,.201,.171 .198,.182,.167,.154,.14,.127
  的 年 在 月 是 和 日 了 於 為 有 被 人 中 为 他 與 後 也 而 由
"""
"""Two or more lines for each language. First the code, FineWeb-2's name of the language, the minimum and the maximum of
the mean word length, min_alphabetic_words, duplicate_lines, max_line_breaks_per_word, min_punctuated_lines, the shares
of top_ngrams (2, 3 and 4 words) and those of duplicate_ngrams (5 to 10 words). Then, indented, the stop words."""
