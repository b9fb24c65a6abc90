"""Do plain-text files come through a recipe for web pages unchanged, but for what a step names and counts?

    python benchmarks/plain_text.py FOLDER [FOLDER…] [--recipe configs/recipes/web.yaml] [--files 200]

A hash of the path chooses the files among all files below the folders that are UTF-8 text and not HTML by their name:
README, NEWS, mails, logs, source code. They are read as a source without a type, such as JSONL, beside HTML pages (the
HTML files of the folders), and go through the steps of the recipe that look at one document at a time. The table says
for every step how many files it changed, how many characters, and how many files it dropped. Then every file that
`extract_html` or `repair_unicode` changed is printed, because only a reader can tell whether it was damaged. Exit
status 1 means that a file was taken for HTML, that a page was not, or that a step changed a text without counting it.
"""

import argparse
import gzip
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.cleaning.recipe import CORPUS_WIDE_STEPS, Step, clean, name_and_settings
from data.document import Document
from jobs.corpus import CorpusConfig
from jobs.frame.config_loader import build, load_yaml

MAX_BYTES = 1 << 20
PAGE_ENDINGS = (".html", ".htm", ".xhtml")


def read_texts(folders: list[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the path and the text of every file that is UTF-8 text of at most `MAX_BYTES`."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
                continue
            try:
                content = path.read_bytes()
                text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
            except (OSError, EOFError, UnicodeDecodeError):
                continue
            if text.strip() and "\0" not in text:
                yield path, text


def is_page(path: Path) -> bool:
    """Return whether a file is an HTML page by its name."""
    return path.name.removesuffix(".gz").endswith(PAGE_ENDINGS)


def choose(files: dict[Path, str], number: int) -> list[Document]:
    """Return documents of these files, chosen by a hash of their paths."""
    paths = sorted(files, key=lambda path: hashlib.sha256(str(path).encode()).digest())[:number]
    return [Document(f"files/{path}", files[path], "files") for path in paths]


def apply_step(documents: list[Document], step: Step) -> tuple[list[Document], dict[str, str], Counter[str]]:
    """Return the documents that a step keeps, the texts before it of those that it changed, and its counts."""
    result = clean(documents, [step])
    before = {document.id: document.text for document in documents}
    changed = {document.id: before[document.id] for document in result.kept if document.text != before[document.id]}
    counts = Counter(result.counts)
    counts["dropped"] = len(result.dropped)
    return result.kept, changed, counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("configs/recipes/web.yaml"))
    parser.add_argument("--files", type=int, default=200)
    arguments = parser.parse_args()
    files = dict(read_texts(arguments.folders))
    documents = choose({path: text for path, text in files.items() if not is_page(path)}, arguments.files)
    pages = choose({path: text for path, text in files.items() if is_page(path)}, arguments.files)
    print(f"{len(documents)} plain-text files and {len(pages)} pages, chosen from {len(files):,} files")
    failures = 0
    for step in build(CorpusConfig, load_yaml(arguments.recipe)).steps:
        name = name_and_settings(step)[0]
        if name in CORPUS_WIDE_STEPS:
            continue
        documents, changed, counts = apply_step(documents, step)
        print(f"{name:20} changed {len(changed):4} files, {counts[f'{name}/characters']:8,} characters, ", end="")
        print(f"dropped {counts['dropped']:4}")
        failures += len(changed) != counts[f"{name}/documents"]
        if name in ("extract_html", "repair_unicode"):
            after = {document.id: document.text for document in documents}
            for document_id, text in changed.items():
                pairs = zip(text.split("\n"), after[document_id].split("\n"), strict=False)
                old, new = next(((old, new) for old, new in pairs if old != new), (text, after[document_id]))
                print(f"    {document_id}: {old.strip()[:90]!r} -> {new.strip()[:90]!r}")
        if name == "extract_html":
            result = clean(pages, [step])
            unchanged = result.counts["extract_html/no_markup"] + result.counts["extract_html/plain_text"]
            print(f"    pages: {unchanged} of {len(pages)} are not taken for HTML, {len(result.dropped)} are dropped")
            failures += len(changed) + counts["dropped"] + unchanged
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
