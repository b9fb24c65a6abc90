"""The wheel holds every file of the packages, and runs from an empty folder."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("actors", "cluster", "data", "jobs", "model")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the project: building in place would leave a build folder there."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                copy = source / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path):
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    missing = set(tracked.stdout.split()) - set(zipfile.ZipFile(wheel).namelist())
    assert not missing


@pytest.mark.slow
def test_the_wheel_runs_all_stages_of_a_pipeline_in_a_folder_of_its_own(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from planting.tiny_pipeline import STAGES, write_world

    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True)
    folder.mkdir()
    pipeline = write_world(folder)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return result.stdout

    assert python("-c", "import data.cleaning.recipe as r; print(r.__file__)").startswith(str(site))
    load_all = "from importlib.metadata import distribution as d; [e.load() for e in d('raymill').entry_points]"
    python("-c", load_all)
    assert "usage: raymill" in python("-m", "jobs.cli", "--help")
    python("-m", "jobs.cli", "run", "pipeline", pipeline.name, "serve.questions=[What is near the old sea?]")
    records = [json.loads(file.read_text()) for file in (folder / "store").glob("*/artifact.json")]
    assert {record["stage"] for record in records} == set(STAGES)
