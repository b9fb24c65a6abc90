"""The step `redact_pii`: examples of each kind of data, texts that only look like such data, and hostile texts."""

import importlib.util
import random
import time
from pathlib import Path

import pytest

from data.cleaning.redact_pii import RedactPII, redact_pii

OFF = {"email": None, "phone": None, "ip": None, "card": None, "iban": None, "confidential": None}


def redacted(text: str, **settings: str | None) -> str:
    return redact_pii([text], RedactPII(**settings)).texts[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Mail jo.doe+x@mail.example.org now", "Mail [EMAIL] now"),
        ("jürgen@bücher.example.", "[EMAIL]."),
        ("call +44 20 7946 0958.", "call [PHONE]."),
        ("call +49 (0) 30 123456, please", "call [PHONE], please"),
        ("call (415) 555-0132, or 415-555-0132", "call [PHONE], or [PHONE]"),
        ("1-800-555-0199 is free", "[PHONE] is free"),
        ("Tel. 020 7946 0958", "Tel. [PHONE]"),
        ("Tél. 01 23 45 67 89", "Tél. [PHONE]"),
        ("from 93.184.216.34:80", "from [IP]:80"),
        ("[2a00:1450:4001:81b::200e]", "[[IP]]"),
        ("2a00:1450:4001:81b::8.8.8.8, or 2a00:1450:4001:81b:0:1:93.184.216.34:", "[IP], or [IP]:"),
        ("2a00:1450:4001:81b::200e.443 > 2600::", "[IP].443 > [IP]"),
        ("paid with 4111 1111 1111 1111.", "paid with [CARD]."),
        ("paid with 378282246310005", "paid with [CARD]"),
        ("to GB82 WEST 1234 5698 7654 32 AND MORE", "to [IBAN] AND MORE"),
        ("to DE89370400440532013000.", "to [IBAN]."),
    ],
)
def test_personal_data_is_replaced_and_the_text_around_it_is_kept(before: str, after: str) -> None:
    assert redacted(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "from 1999-2004",
        "ISBN 978-3-16-148410-0",
        "ISBN 0 306 40615 2",
        "2018-05-02 10:20:30",
        "costs 1,000,000",
        "pi 3.14159265",
        "a@b",
        "@property",
        "1 2 3 4 5 6 7 8 9 10",
        "+1 +2 +3",
        "agent 007 2020 1999",
        "1234567890123456",
        "4111 1111 1111 1112",  # the check digit is wrong by one
        "GB82 WEST 1234 5698 7654 33",
        "192.168.100.200",  # private
        "127.0.0.1",
        "192.0.2.1",  # for documentation
        "2001:db8::1",
        "2001:db8::8.8.8.8",
        "Class2600:: and 2600::method",
        "999.10.20.30",
        "1.2.3.4",  # probably a version
        "11.1.7.12. Sections with four numbers",
        "版本：10.20.30.40",
        "バージョン10.20.30.40",
        "версии 10.20.30.40",
        "bytes F0 00 05 80 00 00 27 0A",
        "sk-ssh-ed25519-cert-v01",
        "version 10.20.30.40",
        "v10.20.30.40",
        "Ver. 10.20.30.40",
        "FileVersion: 10.20.30.40",
        "10.20.30.40.50",
        "12:30:45",
        "std::vector<int>",
        "sk-loading-spinner-animation-element",
        "-----BEGIN RSA PRIVATE KEY----- is how such a file begins",
        "commit 0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_text_that_only_looks_like_personal_data_is_kept(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("密钥AKIA" + "ABCDEFGH01234567正文", "密钥[CONFIDENTIAL]正文"),
        ("รหัสghp_" + "a1B2" * 9 + "ครับ", "รหัส[CONFIDENTIAL]ครับ"),
        ("联系a@b.com。", "联系[EMAIL]。"),
        ("联系a@b.com或www.c.com", "联系[EMAIL]或www.c.com"),
        ("联系a@b.com.谢谢", "联系[EMAIL].谢谢"),
        ("请发到123456@qq.com吧", "请发到[EMAIL]吧"),
        ("メールはuser@example.jpです", "メールは[EMAIL]です"),
        ("메일은user@example.kr입니다", "메일은[EMAIL]입니다"),
        ("письмо на адресivan@mail.ruсейчас", "письмо на адрес[EMAIL]сейчас"),
        ("راسلناuser@example.comاليوم", "راسلنا[EMAIL]اليوم"),
        ("ईमेलuser@example.inपर", "ईमेल[EMAIL]पर"),
        ("ｕｓｅｒ＠ｅｘａｍｐｌｅ．ｃｏｍ，你好", "[EMAIL]，你好"),
        ("电话：＋８６　１３８　００１３　８０００。", "电话：[PHONE]。"),
        ("手机号13800138000转", "手机号[PHONE]转"),
        ("（０３）１２３４－５６７８まで", "[PHONE]まで"),
        ("Tél. 01\u202f23\u202f45\u202f67\u202f89", "Tél. [PHONE]"),
        ("اتصل ٠١٠-١٢٣٤-٥٦٧٨ الآن", "اتصل [PHONE] الآن"),
        ("تلفن +۹۸ ۲۱ ۱۲۳۴ ۵۶۷۸ است", "تلفن [PHONE] است"),
        ("पता९३.१८४.२१६.३४है", "पता[IP]है"),
        ("ที่อยู่๙๓.๑๘๔.๒๑๖.๓๔ครับ", "ที่อยู่[IP]ครับ"),
        ("卡号４１１１１１１１１１１１１１１１。", "卡号[CARD]。"),
        ("地址：2a00:1450:4001:81b::200e。", "地址：[IP]。"),
    ],
)
def test_data_beside_letters_of_any_script_are_replaced_exactly(before: str, after: str) -> None:
    assert redacted(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("пишите на иван@почта.рф, срочно", "пишите на [EMAIL], срочно"),
        ("उपयोगकर्ता@डाटामेल.भारत लिखें", "[EMAIL] लिखें"),
        ("邮箱：用户@例子.中国的邮箱", "邮箱：[EMAIL]的邮箱"),
        ("อีเมล ทดสอบ@ตัวอย่าง.ไทย ครับ", "อีเมล [EMAIL] ครับ"),
        ("user@xn--e1afmkfd.xn--p1ai.", "[EMAIL]."),
        ("ju\u0308rgen@bu\u0308cher.example", "[EMAIL]"),
        ("关注我们@example.com吧", "关注我们@example.com吧"),  # no address has a Chinese name at an ASCII domain
        ("关注@新浪.今天我们去", "关注@新浪.今天我们去"),
    ],
)
def test_addresses_in_other_scripts_are_replaced_as_far_as_they_can_be_told(before: str, after: str) -> None:
    assert redacted(before) == after


def test_planted_data_are_replaced_exactly_beside_every_script() -> None:
    """At random positions in sentences of 14 scripts; each form of each kind, also in the digits of the script."""
    path = Path(__file__).parents[3] / "benchmarks" / "personal_data.py"
    specification = importlib.util.spec_from_file_location("personal_data", path)
    assert specification is not None and specification.loader is not None
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    draw = random.Random(11)
    planted = [one for _ in range(3) for name in benchmark.SENTENCES for one in benchmark.planted_texts(draw, name)]
    texts = redact_pii([one.text for one in planted], RedactPII()).texts
    assert len(planted) > 2000
    assert [(one, text) for one, text in zip(planted, texts, strict=True) if text != one.expected] == []
    clean = list(benchmark.SENTENCES.values())
    assert redact_pii(clean, RedactPII()).texts == clean


@pytest.mark.parametrize("before", ["The DNS server ", "server: ", "over ", "however, ", "driver ", "server         "])
def test_an_address_after_a_word_that_ends_like_version_is_replaced(before: str) -> None:
    assert redacted(f"{before}52.10.20.30 answered") == f"{before}[IP] answered"
    assert redacted(f"{before}8.8.8.80") == f"{before}[IP]"


# The keys are joined from parts, so that secret scanners do not report this file.
CONFIDENTIAL = [
    "AKIA" + "ABCDEFGH01234567",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2c3_" * 10,
    "glpat-" + "a1B2c" * 4,
    "hf_" + "aBcD1" * 7,
    "npm_" + "a1B2" * 9,
    "AIza" + "a1B2c" * 7,
    "pypi-AgE" + "a1B2c" * 12,
    "sk-" + "a1B2c3D4" * 5,
    "sk_live_" + "a1B2c3D4" * 3,
    "xoxb-" + "123456789012-abcdef",
    "eyJ" + "hbGciOiJI." + "eyJ" + "zdWIiOiIx." + "SflKxwRJSMeKKF2Q",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow-IBAAKC+AQ/EA==\n-----END RSA " + "PRIVATE KEY-----",
]


@pytest.mark.parametrize("value", CONFIDENTIAL)
def test_keys_and_tokens_are_replaced_completely(value: str) -> None:
    outcome = redact_pii([f"before {value} after", f'key="{value}"'], RedactPII())
    assert outcome.texts == ["before [CONFIDENTIAL] after", 'key="[CONFIDENTIAL]"']
    assert outcome.counts["redact_pii/confidential"] == 2
    assert redacted(value, confidential=None, phone=None, card=None) == value


def test_luhn_and_iban_checks_agree_with_their_definitions() -> None:
    # 4539 1488 0343 6467, every second digit doubled (less 9): 8+5+6+9 + 2+4+7+8 + 0+3+8+3 + 3+4+3+7 = 80.
    for last in range(10):
        text = f"453914880343646{last}"
        assert (redacted(text) == "[CARD]") == (last == 7)
    # GB82 WEST…: of the 100 pairs of check digits only those congruent to 82 modulo 97.
    right = [pair for pair in range(100) if redacted(f"GB{pair:02} WEST 1234 5698 7654 32") == "[IBAN]"]
    assert right == [82]


def test_only_kinds_with_a_placeholder_are_replaced_and_counted() -> None:
    text = "jo@mail.org, +44 20 7946 0958, 93.184.216.34, 4111111111111111, DE89370400440532013000"
    outcome = redact_pii([text, text], RedactPII())
    assert outcome.counts == {
        "redact_pii/email": 2,
        "redact_pii/phone": 2,
        "redact_pii/ip": 2,
        "redact_pii/card": 2,
        "redact_pii/iban": 2,
        "redact_pii/confidential": 0,
    }
    assert outcome.reasons == [None, None]
    only_mail = redact_pii([text], RedactPII(**(OFF | {"email": ""})))
    assert only_mail.texts == [text.replace("jo@mail.org", "")]
    assert only_mail.counts == {"redact_pii/email": 1}


def test_a_second_redaction_changes_nothing() -> None:
    text = "jo@mail.org or +44 20 7946 0958 from 93.184.216.34 with 4111 1111 1111 1111 " + " ".join(CONFIDENTIAL)
    once = redact_pii([text], RedactPII()).texts
    again = redact_pii(once, RedactPII())
    assert again.texts == once and not any(again.counts.values())


HOSTILE = {
    "letters before an at": "a" * 999 + "@",
    "dots before an at": "a." * 500 + "@",
    "ats": "@" * 1000,
    "mails without an end": "a@a." * 250,
    "Chinese before an at": "中" * 999 + "@",
    "Chinese labels": "中@" + "中." * 500,
    "mixed labels": "@中.a." * 200,
    "full-width digits": "１" * 1000,
    "digits": "1" * 1000,
    "signed runs": ("+" + "1" * 27 + "a") * 35,
    "spaced digits": "+" + "1 " * 500,
    "parentheses": "+1(1)1(1)" * 110,
    "dotted digits": "1." * 500,
    "fours": "4111 " * 200,
    "zeros": "020 " * 250,
    "pairs": "01 23 " * 170,
    "accounts": "AB12 " * 200,
    "joined accounts": "AB12" * 250,
    "beginnings of keys": "-----BEGIN RSA " + "PRIVATE KEY-----\nAAAA" * 40,
    "dashes": "PRIVATE KEY" + "-" * 990,
    "tokens": "eyJ-" * 250,
    "dotted tokens": "eyJaaaaaaaa." * 80,
    "sk": "sk-" * 330,
    "xox": "xoxb-" * 200,
    "addresses": "2001:" * 200,
    "joined addresses": "2001::1" * 140,
    "mixed addresses": "2001:1:1:1:1:1:1.1.1." * 50,
    "joined mixed addresses": "2001::1.1.1.1:" * 70,
    "spaces": " " * 1000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_time_is_linear_in_the_length_of_the_text(name: str) -> None:
    def seconds(times: int) -> float:
        start = time.thread_time()
        redact_pii([HOSTILE[name] * times], RedactPII())
        return time.thread_time() - start

    seconds(4)
    small, large = min(seconds(16) for _ in range(3)), seconds(256)  # 16 kB, a quarter of a megabyte
    # Quadratic time would be 256 times as long, linear time is 16 times as long.
    assert large < max(64 * small, 0.02)


def test_names_of_images_for_high_resolutions_are_no_addresses() -> None:
    text = "![Logo](img/logo@2x.png) 图标icon@3x.webp"
    assert redact_pii([text, "an@2x.pn.org 图标an@3x.de"], RedactPII()).texts == [text, "[EMAIL] 图标[EMAIL]"]
