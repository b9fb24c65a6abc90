"""Damaged input of every format ends with counts that close and a quarantine; whatever is intact beside it is kept."""

import gzip
import json
import random
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.plain import to_plain
from cluster.storage import Storage
from cluster.tracking import Tracker
from jobs.corpus import STAGE, CorpusConfig
from jobs.frame.config_loader import build
from jobs.frame.stage import Context

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_ray")]

DRAW = random.Random(11)
DEEP = 100_000
"""Levels of nesting, far above any parser's limit of recursion."""


def intact(number: int) -> str:
    own = [f"{word}{number}" for word in ("document", "nothing", "happened", "naïve", "and")]  # in every 5-gram
    return f"Intact {number}: a {own[0]} that {own[1]} {own[2]} to, {own[3]} {own[4]} whole."


def junk(size: int) -> bytes:
    """Random bytes on one line."""
    return DRAW.randbytes(size).translate(None, b"\r\n")


def run(folder: Path, sources: list[dict[str, Any]], steps: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The counts by source, each source's intact documents that were kept as `intact`. Raises where counts are open."""
    config = build(CorpusConfig, {"sources": sources, "steps": steps, "part_mib": 4, "execution": {"task_mib": 1}})
    STAGE.check(config)
    output = Storage(str(folder / "out"))
    tracker = Tracker(storage=output, run_id="test", name="corpus", group="test")
    summary = STAGE.run(config, Context(output=output, inputs={}, tracker=tracker))
    kept: dict[str, list[int]] = {}
    for name in output.glob("documents/*.parquet"):
        for row in pq.read_table(f"{folder}/out/{name}").to_pylist():
            if found := re.match(r"Intact (\d+):.*whole\.$", row["text"].strip()):
                kept.setdefault(row["source"], []).append(int(found[1]))
    counts = {name: to_plain(source) for name, source in summary.sources.items()}
    for name, own in counts.items():
        own["intact"] = sorted(kept.get(name, []))
        assert own["read"] == own["kept"] + sum(own["dropped"].values()) + own["quarantined"], name
        places = output.read_jsonl(f"quarantine/{name}.jsonl") if own["quarantined"] else []
        assert len(places) == own["quarantined"] and all(place["file"] and place["reason"] for place in places)
    return counts


def damaged_lines() -> list[bytes]:
    """Lines of JSONL that hold no document."""
    lines = [junk(DRAW.randint(1, 3000)) for _ in range(200)]
    lines = [line for line in lines if line.strip()]
    lines += [
        b'{"text": "broken \xff\xfe UTF-8"}',
        b'{"text": 5}',
        b"null",
        b"[]",
        b"7",
        b'{"other": "x"}',
        b'{"text": "',
    ]
    lines += [b"[" * DEEP, b'{"a":' * DEEP, b'{"text": ' + b"[" * DEEP + b"]" * DEEP + b"}"]
    lines += [b"x" * (6 << 20), '{"text": "caf\u00e9"}'.encode("latin-1"), '{"text": "x"}'.encode("utf-16")[2:-1]]
    return [line.replace(b"\n", b"") for line in lines]


def test_lines_of_json_are_lost_one_by_one(tmp_path: Path):
    lines = [json.dumps({"text": intact(number)}).encode() for number in range(500)]
    bad = damaged_lines()
    mixed = DRAW.sample([*lines, *bad], len(lines) + len(bad))
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(mixed[:400]) + b"\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(mixed[400:])))
    found = run(tmp_path, [{"name": "lines", "path": f"{tmp_path}/*.jsonl*", "format": "jsonl"}], [])["lines"]
    assert found["intact"] == list(range(500))
    assert (found["read"], found["kept"], found["quarantined"]) == (500 + len(bad), 500, len(bad))


def test_a_compressed_file_that_ends_early_costs_what_it_lacks(tmp_path: Path):
    def packed(first: int) -> bytes:
        lines = (json.dumps({"text": intact(first + number), "x": DRAW.random()}) for number in range(2000))
        return gzip.compress("\n".join(lines).encode(), mtime=0)

    (tmp_path / "a.jsonl.gz").write_bytes(packed(0))
    (tmp_path / "b.jsonl.gz").write_bytes(packed(2000)[:-5000])
    (tmp_path / "c.jsonl.gz").write_bytes(junk(5000))
    (tmp_path / "d.jsonl.gz").write_bytes(b"")
    found = run(tmp_path, [{"name": "packed", "path": f"{tmp_path}/*.gz", "format": "jsonl"}], [])["packed"]
    assert found["intact"][:2000] == list(range(2000)) and 2000 <= len(found["intact"]) < 4000
    assert found["quarantined"] >= 2


def test_files_that_are_none_of_their_format_are_set_aside(tmp_path: Path):
    table = pa.table({"text": [intact(number) for number in range(100)]})
    formats = {"parquet": b"", "json": b"", "csv": b"", "text": b""}
    for name in formats:
        (tmp_path / name).mkdir()
    pq.write_table(table, tmp_path / "parquet/whole.parquet", row_group_size=30)
    whole = (tmp_path / "parquet/whole.parquet").read_bytes()
    formats["parquet"] = whole
    formats["json"] = json.dumps([{"text": intact(number)} for number in range(100)]).encode()
    formats["csv"] = ("text,more\n" + "".join(f'"{intact(number)}","1\n2"\n' for number in range(100))).encode()
    formats["text"] = "\n\n".join(intact(number) for number in range(100)).encode()
    for name, content in formats.items():
        (tmp_path / name / f"whole.{name}").write_bytes(content)
        (tmp_path / name / f"random.{name}").write_bytes(DRAW.randbytes(50_000))
        (tmp_path / name / f"empty.{name}").write_bytes(b"")
        (tmp_path / name / f"zeros.{name}").write_bytes(bytes(50_000))
        (tmp_path / name / f"giant.{name}").write_bytes(b"x" * (5 << 20))
    (tmp_path / "json/deep.json").write_bytes(b"[" * DEEP)
    (tmp_path / "json/cut.json").write_bytes(b'[{"text": "cut')
    (tmp_path / "parquet/torn.parquet").write_bytes(whole[: len(whole) // 2] + whole[-20:])
    flipped = bytearray(whole)
    for _ in range(40):
        flipped[DRAW.randrange(4, len(whole) // 3)] ^= 0xFF
    (tmp_path / "parquet/flipped.parquet").write_bytes(bytes(flipped).replace(b"Intact", b"Damage"))
    sources = [{"name": name, "path": f"{tmp_path}/{name}/*", "format": name} for name in formats]
    sources[-1]["split"] = r"\n\n"
    found = run(tmp_path, sources, [])
    for name, own in found.items():
        assert own["intact"] == list(range(100)), name
        assert own["quarantined"] >= 1 or name == "text", name


def test_text_in_many_encodings_is_read_or_set_aside(tmp_path: Path):
    sentence = "Größe, naïveté and déjà vu are words that need more than ASCII. " * 40
    for number, encoding in enumerate(("latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "mac-roman", "cp037")):
        (tmp_path / f"{number}.txt").write_bytes(f"{sentence}{number}".encode(encoding))
    (tmp_path / "mixed.txt").write_bytes(sentence.encode() + sentence.encode("latin-1") + junk(1000))
    (tmp_path / "whole.txt").write_text(intact(0))
    found = run(tmp_path, [{"name": "books", "path": f"{tmp_path}/*.txt", "format": "text"}], [])["books"]
    assert found["read"] == 9 and found["intact"] == [0]


def warc_record(number: int, body: bytes) -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{number:032x}>\r\n"
        f"WARC-Target-URI: http://example.org/{number}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def test_pages_and_crawls_outlive_markup_that_is_none(tmp_path: Path):
    def page(number: int) -> bytes:
        return f"<html><body><main><p>{intact(number)}</p></main></body></html>".encode()

    bad = [
        junk(20_000),
        b"<div>" * DEEP,
        b"<" * DEEP,
        b"<p>\xff\xfe\x00</p>",
        b"<script>" + b"x" * (1 << 20),
        bytes(999),
    ]
    (tmp_path / "pages").mkdir()
    (tmp_path / "crawl").mkdir()
    for number in range(50):
        (tmp_path / f"pages/{number}.html").write_bytes(page(number))
    for number, content in enumerate(bad):
        (tmp_path / f"pages/bad-{number}.html").write_bytes(content)
    records = [warc_record(number, page(number)) for number in range(50)]
    records += [warc_record(100 + number, content) for number, content in enumerate(bad)]
    (tmp_path / "crawl/a.warc.gz").write_bytes(b"".join(map(gzip.compress, records)))
    (tmp_path / "crawl/cut.warc.gz").write_bytes(gzip.compress(warc_record(200, bad[0]))[:-30])
    (tmp_path / "crawl/random.warc.gz").write_bytes(DRAW.randbytes(10_000))
    (tmp_path / "crawl/length.warc").write_bytes(warc_record(201, b"<p>x</p>").replace(b"Length: ", b"Length: 9999"))
    sources = [
        {"name": "pages", "path": f"{tmp_path}/pages/*.html", "format": "html"},
        {"name": "crawl", "path": f"{tmp_path}/crawl/*", "format": "warc"},
    ]
    found = run(tmp_path, sources, [{"extract_html": {}}, {"repair_unicode": {}}])
    assert found["pages"]["intact"] == found["crawl"]["intact"] == list(range(50))
    assert found["pages"]["read"] == 50 + len(bad) and found["crawl"]["quarantined"] >= 1


def test_every_step_takes_random_text(tmp_path: Path):
    """Text of any code points through the whole recipe."""

    def noise(size: int) -> str:
        codes = struct.unpack(f"{size}I", DRAW.randbytes(4 * size))
        text = "".join(chr(code % 0x110000) for code in codes)
        return text.encode("utf-8", "ignore").decode("utf-8")

    texts = [noise(DRAW.randint(1, 3000)) for _ in range(200)]
    texts += ["\u0301" * 5000, "a" * 100_000, "\n" * 5000, "{" * 9000]
    texts += [" ".join(DRAW.choices(["the", "of", "@", "1.2.3.4", "a@b.cd", "#", "..."], k=400)) for _ in range(50)]
    records = [{"text": text} for text in [*texts, *(intact(number) for number in range(100))]]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    names = (
        "repair_unicode",
        "clean_lines",
        "repetition",
        "gopher_quality",
        "c4_quality",
        "fineweb_quality",
        "redact_pii",
    )
    rest = ("toxicity", "language", "exact_duplicates", "near_duplicates")
    steps: list[dict[str, Any]] = [{name: {}} for name in (*names, *rest)]
    open_bounds = {"min_words": 1, "min_stop_words": 0, "min_alphabetic_words": 0.5, "min_mean_word_length": None}
    steps[3] = {"gopher_quality": open_bounds | {"max_mean_word_length": None, "max_symbols_per_word": None}}
    steps[4] = {"c4_quality": {"min_sentences": None, "curly_bracket": False}}
    steps[8] = {"language": {"keep": []}}
    source = {"name": "noise", "path": f"{tmp_path}/a.jsonl", "format": "jsonl"}
    found = run(tmp_path, [source], steps)["noise"]
    assert found["intact"] == list(range(100)) and found["read"] == len(records) and found["quarantined"] == 0
    assert Counter(found["dropped"]).total() + found["kept"] == len(records)


def test_a_hundred_thousand_tiny_files_are_read_one_by_one(tmp_path: Path):
    number = 100_000
    for index in range(number):
        below = tmp_path / f"{index // 1000}"
        if index % 1000 == 0:
            below.mkdir()
        (below / f"{index}.jsonl").write_text(json.dumps({"text": intact(index)}) if index % 10 else "{broken")
    found = run(tmp_path, [{"name": "tiny", "path": f"{tmp_path}/*/*.jsonl", "format": "jsonl"}], [])["tiny"]
    assert found["intact"] == [index for index in range(number) if index % 10]
    assert found["quarantined"] == number // 10
