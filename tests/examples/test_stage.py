"""The example of a stage in docs/developing.md, which is added to a copy of Raymill as the page describes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "cluster", "data", "jobs", "model")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of Raymill to which the example stage was added."""
    copy = tmp_path / "raymill"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "examples/stage/lengths.py", copy / "jobs/lengths.py")
    stages = copy / "jobs/frame/stages.py"
    before = stages.read_text()
    stages.write_text(before.replace('    "corpus",\n', '    "corpus",\n    "lengths",\n'))
    assert stages.read_text() != before
    return copy


def raymill(checkout: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    completed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


@pytest.mark.slow
def test_the_example_stage_can_be_planned_and_run_and_is_in_the_report(checkout: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    texts = ["four", "sixsix", "twelve bytes"]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "corpus.yaml").write_text("sources: [{name: texts, format: jsonl, path: texts.jsonl}]\n")
    (folder / "lengths.yaml").write_text("percentiles: [0, 50, 100]\n")
    (folder / "pipeline.yaml").write_text("store: runs\nstages: [corpus, lengths]\n")
    plan = raymill(checkout, folder, "plan", "pipeline", "pipeline.yaml")
    assert "lengths" in plan and "percentiles 3" in plan
    raymill(checkout, folder, "run", "pipeline", "pipeline.yaml")
    (record,) = (json.loads(path.read_text()) for path in folder.glob("runs/lengths-*/artifact.json"))
    assert record["summary"] == {"documents": 3, "bytes_by_percentile": {"0": 4.0, "50": 6.0, "100": 12.0}}
    assert "3 documents." in (folder / "runs/report.html").read_text()
