"""The data path from and to an S3 server that refuses, drops, breaks off and delays: the bytes of a local run."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.storage import Storage

pytestmark = pytest.mark.slow

STEPS = [{"repair_unicode": {}}, {"length": {"min_bytes": 50}}, {"exact_duplicates": {}}, {"near_duplicates": {}}]
VARYING = ("artifact.json", "metrics.jsonl")
"""Files with times in them; `artifact.json` names the sources by their place besides."""


def write_sources(storage: Storage) -> None:
    """JSONL of 2.5 MB in one file and gzipped, and twenty small text files; a fifth of the documents are copies."""
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(2000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(20, 900))) for _ in range(900)]
    texts += draw.choices(texts, k=180)
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    storage.write_bytes("large/a.jsonl", b"".join(lines[:900]) + b"{broken\n")
    storage.write_bytes("large/b.jsonl.gz", gzip.compress(b"".join(lines[900:]), mtime=0))
    for number in range(20):
        storage.write_bytes(f"small/{number:02d}.txt", f"\n\n{' '.join(draw.choices(words, k=200))}".encode() * 3)


def run_pipeline(folder: Path, source: Storage, store: Storage) -> dict[str, bytes]:
    """The pipeline up to shards, as its user runs it, in a process that has the store's endpoint and keys in its
    environment. Returns the bytes of every file."""
    sources: list[dict[str, Any]] = [
        {"name": "large", "path": f"{source.url}/large/*", "format": "jsonl"},
        {"name": "small", "path": f"{source.url}/small/*.txt", "format": "text", "split": r"\n\n"},
    ]
    configs = {
        "pipeline": {"store": store.url, "stages": ["corpus", "vocabulary", "shards"]},
        "corpus": {"sources": sources, "steps": STEPS, "part_mib": 1, "execution": {"task_mib": 1}},
        "vocabulary": {"corpus": "corpus", "size": 600},
        "shards": {"corpus": "corpus", "tokenizer": "vocabulary", "validation_fraction": 0.05},
    }
    folder.mkdir()
    for name, values in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "jobs.cli", "run", "pipeline", str(folder / "pipeline.yaml")]
    subprocess.run(command, check=True, timeout=300)
    files = [name for name in store.files() if "/" in name]  # and not the report
    found = {name.partition("-")[0] + name[name.index("/") :]: name for name in files}
    # An artifact's id has the sources' fingerprints in it: an ETag on S3, SHA-256 here.
    return {name: store.read_bytes(place) for name, place in found.items() if not name.endswith(VARYING)}


def test_a_run_from_and_to_a_store_that_fails_gives_the_bytes_of_a_local_one(
    s3: str, object_store: Any, tmp_path: Path
):
    places = {"local": Storage(str(tmp_path / "data")), "remote": Storage(s3)}
    found = {}
    for name, place in places.items():
        write_sources(place / "in")
        found[name] = run_pipeline(tmp_path / name, place / "in", place / "store")
    assert len([name for name in found["local"] if name.startswith("corpus/documents/")]) >= 3
    assert found["local"]["corpus/quarantine/large.jsonl"].count(b"\n") == 1
    assert sorted(found["remote"]) == sorted(found["local"])
    assert [name for name, content in found["local"].items() if found["remote"][name] != content] == []
    faults = object_store.faults()
    assert all(faults.get(fault, 0) >= 2 for fault in ("slow_down", "internal", "dropped", "answer_lost", "late"))
