"""Does `decontaminate` find planted n-grams in any script, and does it keep documents that only share formulae?

    python benchmarks/contamination.py --texts FOLDER [--languages en de …] [--planted 1000] [--first-page-only]

FOLDER has HTML pages in many languages, as `<html lang="th">` or in a folder such as `th-TH`: many pages for each
language, as of a handbook, or one, as of the Universal Declaration of Human Rights. If some languages have several
versions of the same page, read the first page only. The paragraphs of a language are divided into two halves. One half
is the evaluation set. Planted: 13 words of a paragraph of this half, or as much text of a script without spaces, in
changed case, with other line breaks and punctuation, between paragraphs of the other half. Clean: the paragraphs of the
other half, of which a few share a long formula. They are shown, because only a reader can tell whether a drop is right.
Exit status 1 means that a planted n-gram was not found.
"""

import argparse
import html
import json
import random
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from data.cleaning.decontaminate import Decontaminate, decontaminate
from data.cleaning.word_runs import WORD_AMOUNT
from data.words import Unit, plain_words, split_words, unit_of

LANGUAGES = "en de fr ru el ar he hi bn ta am th km lo my bo zh ja ko vi"


def paragraphs_by_language(folder: Path, languages: list[str], first_page_only: bool) -> dict[str, list[str]]:
    """Return the different paragraphs of the HTML pages of each language."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for path in sorted(folder.rglob("*.html")):
        page = path.read_text(errors="replace")
        named = re.search(r'<html[^>]*? lang="(\w+)', page) or re.match(r"(\w+)", path.parent.name)
        language = named[1] if named else ""
        if language in languages and not (first_page_only and found[language]):
            body = re.sub(r"(?s)<(head|script|style|pre)\b.*?</\1>|</?(?:b|i|em|span|a|code|strong)\b[^>]*>", "", page)
            for paragraph in re.split(r"<[^>]+>", body):
                found[language][" ".join(html.unescape(paragraph).split())] = None
    return {language: [text for text in found[language] if text] for language in languages if found[language]}


def cut_ngram(text: str, settings: Decontaminate, draw: random.Random) -> list[str] | None:
    """Return a part of the text with exactly `ngram` words or as many units, as its words and the spaces between them.

    Returns None if too little text is left after the random start.
    """
    pieces: list[str] = []  # strings between white space, cut into units where there are no spaces
    for string in re.split(r"(\s+|་)", text):
        tokens = split_words(string)
        pieces += tokens if any(unit_of(token) is not Unit.WORD for token in tokens) else [string]
    start = draw.randrange(len(pieces))
    for end in range(start + 1, len(pieces) + 1):
        words = plain_words("".join(pieces[start:end]))
        if settings.units_per_word.amount_of_words(words) >= settings.ngram * WORD_AMOUNT:
            return pieces[start:end]
    return None


def disguise(pieces: list[str], draw: random.Random) -> str:
    """Return the text with changed case, punctuation and spaces, and with line breaks and marks between units."""
    result: list[str] = []
    for piece, following in zip(pieces, [*pieces[1:], ""], strict=True):
        if piece.isspace() or piece == "་":
            result.append(draw.choice([" ", "\n", ", ", " – "]) if piece.isspace() else piece)
            continue
        result.append(draw.choice([str, str.upper, str.capitalize])(piece))
        if {unit_of(one) for one in (piece, following or "-")} <= {Unit.IDEOGRAPH, Unit.SYLLABLE}:
            result.append(draw.choice([""] * 8 + ["\n", "、"]))
    return "".join(result)


def planted_documents(questions: list[str], others: list[str], settings: Decontaminate, count: int) -> list[str]:
    """Return documents with a disguised n-gram of a question between two other paragraphs of the language."""
    draw = random.Random(5)
    documents: list[str] = []
    for _ in range(50 * count):
        question = draw.choice(questions)
        if len(documents) < count and (pieces := cut_ngram(question, settings, draw)):
            before, after = draw.choice(others), draw.choice(others)
            documents.append(f"{before} {disguise(pieces, draw)} {after}")
    return documents


def measure(language: str, paragraphs: list[str], count: int) -> int:
    """Print what is found of planted n-grams and dropped of clean paragraphs. Returns the number that is not found."""
    random.Random(3).shuffle(paragraphs)
    questions, others = paragraphs[::2], paragraphs[1::2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in questions))
        settings = Decontaminate(files=[str(path)])
        reasons = decontaminate(others, settings).reasons
        clean = [text for text, reason in zip(others, reasons, strict=True) if reason is None]
        planted = planted_documents(questions, clean, settings, count)
        missed = decontaminate(planted, settings).reasons.count(None)
    dropped = [text for text, reason in zip(others, reasons, strict=True) if reason is not None]
    print(
        f"{language}: {len(planted) - missed} of {len(planted)} planted found; {len(dropped)} of {len(others)} clean "
        f"paragraphs dropped ({len(dropped) / len(others):.2%})"
    )
    for text in dropped[:3]:
        print(f"    {text[:150]}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--languages", nargs="*", default=LANGUAGES.split())
    parser.add_argument("--planted", type=int, default=1000)
    parser.add_argument("--first-page-only", action="store_true")
    options = parser.parse_args()
    found = paragraphs_by_language(options.texts, options.languages, options.first_page_only)
    return 1 if sum(measure(language, texts, options.planted) for language, texts in found.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
