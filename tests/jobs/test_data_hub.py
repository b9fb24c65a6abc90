"""Sources on a Hugging Face hub: workers read them as the command does, from a hub on this machine."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.session import hub_env

ROOT = Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location("hub_server", ROOT / "tests/hub_server.py")
assert _spec is not None and _spec.loader is not None
hub_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hub_server)


def test_only_sources_on_a_hub_bring_workers_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert hub_env(["s3://bucket/hf/a.jsonl", "/hf:/a"]) == {}
    for url in ("hf://datasets/a/b/c.jsonl", "zip://c.jsonl::hf://datasets/a/b/c.zip"):
        assert hub_env(["/a", url]) == {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://hub.example"}
    monkeypatch.setenv("HF_ENDPOINT", "http://me:secret@hub.example")
    with pytest.raises(ValueError, match="must not contain credentials"):
        hub_env(["hf://datasets/a/b/c.jsonl"])


HUB_FILES = {
    "train/a.jsonl": b"".join(b'{"text": "Text number %d of many."}\n' % number for number in range(60)),
    "train/[b].jsonl": '{"text": "文本"}\n'.encode(),
    "README.md": b"# Texts",
}


@pytest.mark.slow
def test_workers_read_from_a_hub_with_the_endpoint_and_the_token_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "corpus.yaml").write_text(
        f"sources: [{{name: s, path: 'hf://datasets/{hub_server.REPOSITORY}/train/*.jsonl', format: jsonl}}]\n"
        "execution: {workers: 2}\n"
    )
    with hub_server.serve_hub(HUB_FILES, token="hf_of_this_test") as endpoint:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_of_this_test"}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-m", "jobs.cli", "run", "corpus", "corpus.yaml", "--store", "store"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = tmp_path.glob("store/*/artifact.json")
    summary = json.loads(record.read_text())["summary"]
    assert (summary["documents"], summary["quarantined"]) == (61, 0)
