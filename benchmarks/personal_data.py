"""Does `redact_pii` find planted data beside every script, exactly, and does it leave clean text alone?

    python benchmarks/personal_data.py [--rounds 40]             data planted in sentences of fourteen languages
    python benchmarks/personal_data.py --texts FOLDER [FOLDER…]  and what it changes in the files of these folders

Data are planted between two characters of a sentence: directly beside letters, punctuation marks and line ends, but not
beside an ASCII letter, digit or sign that would make them longer. The result must be the sentence with the placeholder
at this position. Text files, HTML pages and gzipped files are read. What was changed in them is printed, because only a
reader can tell which of it is no personal data. Exit status 1 means that less than 99 % was found.
"""

import argparse
import gzip
import html
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.cleaning.pii_detectors import DETECTORS, fold_text
from data.cleaning.redact_pii import RedactPII, redact_pii

SENTENCES = {
    "Chinese": "昨天我们在图书馆里等了很久，后来决定先去吃饭。\n天黑以前，大家都平安回到了家里！",
    "Japanese": "きのう図書館でずっと待っていました。\nカレーを食べてから、みんなで家に帰りました！",
    "Korean": "어제 우리는 도서관에서 오래 기다렸습니다.\n저녁을 먹고 모두 집으로 돌아갔어요!",
    "Thai": "เมื่อวานนี้พวกเรารอที่ห้องสมุดนานมาก\nหลังจากกินข้าวแล้วทุกคนก็กลับบ้าน",
    "Khmer": "ម្សិលមិញយើងរង់ចាំនៅបណ្ណាល័យយូរណាស់។\nក្រោយពេលញ៉ាំបាយ យើងទៅផ្ទះវិញ",
    "Burmese": "မနေ့ကကျွန်တော်တို့စာကြည့်တိုက်မှာကြာကြာစောင့်ခဲ့တယ်။\nထမင်းစားပြီးအိမ်ပြန်ခဲ့ကြတယ်။",
    "Arabic": "انتظرنا أمس في المكتبة وقتا طويلا،\nثم عدنا جميعا إلى البيت بعد العشاء!",
    "Persian": "دیروز مدت زیادی در کتابخانه منتظر ماندیم،\nبعد از شام همه به خانه برگشتیم.",
    "Hebrew": "אתמול חיכינו זמן רב בספרייה,\nואחרי ארוחת הערב חזרנו כולנו הביתה!",
    "Hindi": "कल हमने पुस्तकालय में बहुत देर तक प्रतीक्षा की।\nखाना खाने के बाद सब घर लौट आए!",
    "Bengali": "গতকাল আমরা গ্রন্থাগারে অনেকক্ষণ অপেক্ষা করেছি।\nখাওয়ার পরে সবাই বাড়ি ফিরে এলাম!",
    "Russian": "Вчера мы долго ждали в библиотеке,\nа после ужина все вернулись домой!",
    "Greek": "Χθες περιμέναμε πολλή ώρα στη βιβλιοθήκη,\nκαι μετά γυρίσαμε όλοι στο σπίτι!",
    "Amharic": "ትናንት በቤተ መጻሕፍት ለረጅም ጊዜ ጠበቅን።\nከእራት በኋላ ሁላችንም ወደ ቤት ተመለስን!",
}
DIGITS = {
    "Thai": "๐๑๒๓๔๕๖๗๘๙",
    "Khmer": "០១២៣៤៥៦៧៨៩",
    "Burmese": "၀၁၂၃၄၅၆၇၈၉",
    "Arabic": "٠١٢٣٤٥٦٧٨٩",
    "Persian": "۰۱۲۳۴۵۶۷۸۹",
    "Hindi": "०१२३४५६७८९",
    "Bengali": "০১২৩৪৫৬৭৮৯",
    "Chinese": "０１２３４５６７８９",
    "Japanese": "０１２３４５６７８９",
}
LETTERS_AND_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
PLACEHOLDERS = RedactPII()


class Planted(NamedTuple):
    """A text with planted data."""

    kind: str
    text: str
    expected: str
    """The text with the placeholder instead of the data."""


def random_data(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (kind, data) in every form that the step knows. All digits and letters are drawn anew."""

    def characters(count: int, alphabet: str = LETTERS_AND_DIGITS) -> str:
        return "".join(draw.choices(alphabet, k=count))

    def digits(count: int) -> str:
        return characters(count, "0123456789")

    name, host = characters(6, LETTERS_AND_DIGITS[26:52]), characters(7, LETTERS_AND_DIGITS[26:52])
    for local in (name, f"{name}.{host}", f"{name}+{digits(3)}", digits(8), f"{name}_{digits(2)}", name.upper()):
        domain = f"{draw.choice(['', 'mail.'])}{host}{draw.choice(['', '-1'])}.{draw.choice(['com', 'co.jp', 'cn'])}"
        yield "email", f"{local}@{domain}"
    for first, length in (("AKIA", 16), ("ASIA", 16)):
        yield "confidential", first + characters(length, LETTERS_AND_DIGITS[:26] + "0123456789")
    for prefix, length in (("ghp_", 36), ("github_pat_", 82), ("glpat-", 20), ("hf_", 34), ("npm_", 36), ("AIza", 35)):
        yield "confidential", prefix + characters(length)
    for prefix, length in (("pypi-AgE", 150), ("sk-", 48), ("sk-proj-", 120), ("sk_live_", 24)):
        yield "confidential", prefix + characters(length) + "7a"
    yield "confidential", f"xoxb-{digits(12)}-{digits(12)}-{characters(24)}"
    yield "confidential", f"eyJ{characters(30)}.eyJ{characters(60)}.{characters(43)}"
    body = "\n".join(characters(64, LETTERS_AND_DIGITS + "+/") for _ in range(3))
    yield "confidential", f"-----BEGIN RSA PRIVATE KEY-----\n{body}==\n-----END RSA PRIVATE KEY-----"
    yield "phone", f"+49 30 {digits(7)}"
    yield "phone", f"+86-138-{digits(4)}-{digits(4)}"
    yield "phone", f"(415) 555-{digits(4)}"
    yield "phone", f"020 7946 {digits(4)}"
    yield "phone", f"01 23 {digits(2)} {digits(2)} {digits(2)}"
    yield "phone", f"090-{digits(4)}-{digits(4)}"
    yield "phone", f"138 {digits(4)} {digits(4)}"
    yield "ip", f"93.184.{draw.randint(20, 255)}.{draw.randint(0, 255)}"
    yield "ip", f"2a00:1450:{characters(4, 'abcdef0123456789')}:81b::{characters(3, 'abcdef')}"
    card = "4" + digits(14)
    yield "card", next(card + last for last in "0123456789" if luhn_sum(card + last) % 10 == 0)
    account = f"37040044{digits(10)}"
    yield "iban", f"DE{98 - int(account + '131400') % 97:02}{account}"  # D is 13 and E is 14


def luhn_sum(number: str) -> int:
    return sum(sum(divmod(int(digit) * (1 + at % 2), 10)) for at, digit in enumerate(reversed(number)))


def other_forms(data: str, kind: str, digits: str | None) -> Iterator[str]:
    """Yield the data, and also with the digits of the script and in full-width characters, if this is usual."""
    yield data
    if kind in ("email", "phone", "card") or kind == "ip" and "." in data:
        full_width = {code: code + 0xFEE0 for code in range(0x30, 0x7F)}
        yield data.translate({**full_width, ord("."): "．", ord("-"): "－", ord("+"): "＋"})
        if digits and kind != "email":
            yield data.translate(str.maketrans("0123456789", digits))


def planted_texts(draw: random.Random, language: str) -> Iterator[Planted]:
    """Yield the sentences of a language with each form of data at a random position."""
    sentence = SENTENCES[language]
    for kind, data in random_data(draw):
        for form in other_forms(data, kind, DIGITS.get(language)):
            position = draw.randint(0, len(sentence))
            before, after = sentence[:position], sentence[position:]
            if before.endswith(".") or after.startswith("."):  # A full stop directly before data may be a part of it.
                before, after = before + "\n", "\n" + after
            placeholder = str(PLACEHOLDERS.__dict__[kind])
            yield Planted(kind, before + form + after, before + placeholder + after)


def measure_planted(rounds: int, seed: int = 0) -> float:
    """Print the share of planted data that is redacted exactly, for each language, and return the lowest."""
    draw = random.Random(seed)
    shares: list[float] = []
    for language in SENTENCES:
        planted = [one for _ in range(rounds) for one in planted_texts(draw, language)]
        texts = redact_pii([one.text for one in planted], PLACEHOLDERS).texts
        missed = Counter(one.kind for one, text in zip(planted, texts, strict=True) if text != one.expected)
        shares.append(1 - missed.total() / len(planted))
        print(f"{language:10} {len(planted):6} planted, {shares[-1]:.3%} redacted exactly; missed: {dict(missed)}")
    return min(shares)


def read_text(path: Path) -> str:
    """Return the text of a file. An HTML page loses its tags."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = content.decode(errors="replace")
    return html.unescape(re.sub(r"(?s)<(script|style).*?</\1>|<[^>]+>", "\n", text)) if path.suffix == ".html" else text


def measure_clean(folder: Path, *, shown: int) -> None:
    """Print which share of the characters of a folder's files is changed, and the commonest changes of each kind."""
    num_characters, num_changed = 0, 0
    found: dict[str, Counter[str]] = {kind: Counter() for kind in DETECTORS}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".html", ".txt", ".gz", ".py", ".md") or not path.is_file():
            continue
        text = read_text(path)
        num_characters += len(text)
        for kind, detectors in DETECTORS.items():
            for detector in detectors:
                for span in reversed(list(detector.find_spans(fold_text(text)))):
                    found[kind][text[span.start : span.stop]] += 1
                    num_changed += span.stop - span.start
                    text = f"{text[: span.start]}[{kind}]{text[span.stop :]}"
    share = num_changed / max(num_characters, 1)
    print(f"{folder}: {num_characters:,} characters, {share:.4%} of them in what is replaced")
    for kind, values in found.items():
        if values:
            common = ", ".join(f"{value!r} {count}" for value, count in values.most_common(shown))
            print(f"  {kind} {values.total()} ({len(values)} different): {common}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--shown", type=int, default=20, help="number of changes of each kind that are printed")
    options = parser.parse_args()
    lowest = measure_planted(options.rounds)
    for folder in options.texts:
        measure_clean(folder, shown=options.shown)
    return 0 if lowest >= 0.99 else 1


if __name__ == "__main__":
    sys.exit(main())
