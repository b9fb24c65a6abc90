"""Pages without a declared encoding, and declarations that are hard to find."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.sources.charset import decode_html, decode_plain_text

SENTENCES = {
    "windows-1251": ("cp1251", "Погода сегодня хорошая, и мы идём гулять в парк вместе с детьми и собакой."),
    "koi8-r": ("koi8-r", "Вчера вечером мы смотрели старый фильм о жизни на севере и долго говорили."),
    "koi8-u": ("koi8-u", "Увечері ми сиділи біля річки й розповідали історії про її давніх мешканців."),
    "iso-8859-5": ("iso8859-5", "Книги лежат на столе, а окно открыто, потому что в комнате было жарко."),
    "ibm866": ("cp866", "Поезд прибыл на станцию точно по расписанию, и пассажиры вышли на платформу."),
    "gb18030": ("gb18030", "今天天气很好，我们一起去公园散步，孩子们在湖边喂鸭子，老人们在树下下棋。"),
    "big5": ("big5", "昨天晚上我們在家裡看電影，後來又去夜市吃東西，大家都覺得非常開心。"),
    "shift_jis": ("cp932", "昨日は雨が降っていたので、家で本を読みながらお茶を飲んで過ごしました。"),
    "euc-jp": ("euc_jp", "春になると公園の桜が咲いて、たくさんの人がお弁当を持って集まります。"),
    "iso-2022-jp": ("iso2022_jp", "駅の前の小さな店で、毎朝パンとコーヒーを買っています。"),
    "euc-kr": ("cp949", "어제는 친구들과 함께 산에 올라갔는데 날씨가 맑아서 경치가 아주 아름다웠습니다."),
    "windows-1256": ("cp1256", "ذهبنا في الصباح الباكر إلى السوق لشراء الخضار والفواكه ثم عدنا إلى البيت."),
    "windows-1255": ("cp1255", "הלכנו בבוקר לשוק כדי לקנות ירקות ופירות ואחר כך חזרנו הביתה ברגל."),
    "windows-1253": ("cp1253", "Το πρωί πήγαμε στην αγορά για να αγοράσουμε φρέσκα λαχανικά και ψωμί."),
    "windows-874": ("cp874", "เมื่อวานนี้พวกเราไปเดินเล่นที่ตลาดริมแม่น้ำและซื้อผลไม้กลับมาบ้าน"),
    "windows-1250": ("cp1250", "Wczoraj wieczorem poszliśmy na spacer wzdłuż rzeki i zjedliśmy lody z wiśniami."),
    "windows-1254": ("cp1254", "Dün akşam arkadaşlarımızla birlikte sahilde yürüdük ve güneşin batışını izledik."),
    "windows-1252": (
        "cp1252",
        "L’été dernier, nous avons traversé la forêt à pied, malgré la chaleur de midi.",
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_the_encoding_of_a_page_is_detected_where_nothing_is_declared(name: str) -> None:
    codec, sentence = SENTENCES[name]
    page = f"<html><head><title>x</title></head><body><p>{sentence}</p></body></html>"
    assert decode_html(page.encode(codec)) == page
    assert decode_plain_text(sentence.encode(codec)) == sentence


@pytest.mark.parametrize("name", SENTENCES)
def test_a_page_cut_within_a_character_stays_utf8_and_loses_only_that_character(name: str) -> None:
    sentence = SENTENCES[name][1]
    cut = max(index for index, character in enumerate(sentence) if not character.isascii())
    for missing in range(1, len(sentence[cut].encode())):
        raw = f"<p>{sentence[: cut + 1]}".encode()[:-missing]
        assert decode_html(raw) == f"<p>{sentence[:cut]}\ufffd"


def test_damaged_utf8_stays_utf8_and_a_single_accent_is_windows_1252() -> None:
    sentence = SENTENCES["windows-1251"][1].encode()
    assert decode_html(sentence[:12] + b"\xff" + sentence[12:]).count("\ufffd") == 1
    assert decode_html(b"<p>caf\xe9") == "<p>café"
    assert decode_html(b"<p>caf\xe9</p>") == "<p>café</p>"


DECLARATIONS = {
    "a description is no declaration": (b'<meta name=description content="how to set charset=koi8-r"><p>', "utf-8"),
    "without http-equiv": (b'<meta content="text/html; charset=koi8-r"><p>', "utf-8"),
    "an attribute of another tag": (b'<a title="<meta charset=koi8-r>"><p>', "utf-8"),
    "a comment": (b"<!--<meta charset=koi8-r>--><p>", "utf-8"),
    "the shortest comment": (b"<!--><meta charset=koi8-r><p>", "koi8-r"),
    "attributes in order": (
        b"<meta content='text/html;charset = \"koi8-r\"' HTTP-EQUIV=Content-Type><p>",
        "koi8-r",
    ),
    "the first of two": (b"<meta charset=koi8-r><meta charset=utf-8><p>", "koi8-r"),
    "an unknown one is passed over": (b"<meta charset=klingon><meta charset=koi8-r><p>", "koi8-r"),
    "slashes": (b"<meta/charset='koi8-r'/><p>", "koi8-r"),
    "after the first 1024 bytes": (b"<p>" + b"x" * 2000 + b"<meta charset=koi8-r>", "koi8-r"),
}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_declarations_are_found_as_in_the_standard(name: str) -> None:
    head, encoding = DECLARATIONS[name]
    raw = head + ("Ж" * 9).encode(encoding)
    assert decode_html(raw) == head.decode() + "Ж" * 9


def test_a_page_in_an_encoding_that_browsers_refuse_is_quarantined(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a.html").write_bytes(b"<meta charset=hz-gb-2312>~{VPND~}")
    (tmp_path / "b.html").write_bytes("<p>中".encode())
    found = find(tmp_path / "*.html", "html")
    assert found.texts == ["<p>中"]
    assert [bad.reason for bad in found.bad] == [
        "page in an encoding that browsers do not decode, such as hz-gb-2312 or iso-2022-kr"
    ]
