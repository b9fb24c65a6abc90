"""The data path's bytes do not depend on how the work was cut, on who did it, or on who was killed meanwhile."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.storage import Storage
from jobs.frame.job_run import run_job
from jobs.frame.pipeline import load_pipeline
from jobs.frame.pipeline_run import run_pipeline

pytestmark = pytest.mark.slow

STEPS = [
    {"repair_unicode": {}},
    {"length": {"min_bytes": 200}},
    {"redact_pii": {}},
    {"exact_duplicates": {}},
    {"near_duplicates": {}},
]
VARYING = ("artifact.json", "metrics.jsonl")
"""Files with times in them; the digest of an artifact is compared apart."""


def write_documents(folder: Path, number: int) -> None:
    """So many documents of about 4 KiB in files of several sizes: one in ten is a copy, one in ten nearly one."""
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(2, 10))) for _ in range(4000)]
    texts: list[str] = []
    for index in range(number):
        if index % 10 == 3:
            texts.append(texts[draw.randrange(index)])
        elif index % 10 == 7:
            near = texts[draw.randrange(index)].split(" ")
            near[draw.randrange(len(near))] = f"changed{index}"
            texts.append(" ".join(near))
        else:
            texts.append(" ".join(draw.choices(words, k=draw.randint(20, 1100))))
    texts[5] = "short"
    folder.mkdir()
    start = 0
    for file, share in enumerate((0.05, 0.25, 0.7)):
        stop = start + round(share * number)
        lines = (json.dumps({"text": text}) for text in texts[start:stop])
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n{broken\n")
        start = stop


def write_configs(folder: Path) -> Path:
    """The four configs of a pipeline to shards; the path of the pipeline's."""
    source = {"name": "made", "path": f"{folder}/in/*.jsonl", "format": "jsonl"}
    configs = {
        "pipeline": {"store": str(folder / "unused"), "stages": ["corpus", "vocabulary", "shards"]},
        "corpus": {"sources": [source], "steps": STEPS, "part_mib": 1, "execution": {"task_mib": 1}},
        "vocabulary": {"corpus": "corpus", "size": 600},
        "shards": {"corpus": "corpus", "tokenizer": "vocabulary", "validation_fraction": 0.05},
    }
    for name, values in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder / "pipeline.yaml"


@pytest.fixture(scope="module")
def config(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's config."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_documents(folder / "in", 2000)
    return write_configs(folder)


def contents(
    config: Path, store: Path, *, part_tasks: int | None = None, workers: int | None = None
) -> dict[str, bytes]:
    """Run the pipeline into a store of its own; every file's bytes, and the digests of the artifacts."""
    overrides = [f"corpus.execution.part_tasks={part_tasks}"] if part_tasks else []
    for stage in ("corpus", "vocabulary", "shards") if workers else ():
        overrides.append(f"{stage}.execution.workers={workers}")
    artifacts = run_pipeline(load_pipeline(config, overrides, store=str(store)))
    storage = Storage(str(store))
    found = {name: storage.read_bytes(name) for name in storage.files() if Path(name).name not in VARYING}
    return found | {artifact.stage: artifact.digest.encode() for artifact in artifacts}


@pytest.fixture(scope="module")
def expected(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run makes."""
    return contents(config, tmp_path_factory.mktemp("whole"))


def test_the_corpus_that_is_compared_has_several_parts_and_all_kinds_of_drops(expected: dict[str, bytes]):
    parts = [name for name in expected if "/documents/" in name]
    drops = Path(next(name for name in expected if name.startswith("corpus-"))).parts[0]
    assert len(parts) >= 7 and f"{drops}/quarantine/made.jsonl" in expected
    assert expected[f"{drops}/quarantine/made.jsonl"].count(b"\n") == 3


@pytest.mark.parametrize(("part_tasks", "workers"), [(1, 2), (2, 1), (7, 2)])
def test_bytes_are_equal_for_any_number_of_tasks_and_workers(
    config: Path, expected: dict[str, bytes], tmp_path: Path, part_tasks: int, workers: int
):
    assert differing(contents(config, tmp_path, part_tasks=part_tasks, workers=workers), expected) == []


@contextlib.contextmanager
def kills(number: int, *, seed: int) -> Iterator[list[str]]:
    """Meanwhile so many random worker processes of this session's are killed at their work; their names.

    Ray tries a task again however often, so there has to be an end to it.
    """
    killed: list[str] = []
    over = threading.Event()
    draw = random.Random(seed)

    def kill() -> None:
        while len(killed) < number and not over.wait(0.01):
            if victims := workers_at_work():
                victim = draw.choice(victims)
                over.wait(draw.uniform(0, 0.3))
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                    name = victim.name()
                    victim.kill()
                    killed.append(name)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def workers_at_work() -> list[psutil.Process]:
    """Processes that run a task of Ray Data. Ray names a worker by its task; its own agents end the node with them."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()[:1]
        except psutil.Error:
            continue  # it ended meanwhile
        if title and title[0].startswith("ray::Map"):
            found.append(process)
    return found


@pytest.mark.parametrize("part_tasks", [2, 7])
def test_bytes_are_equal_when_workers_are_killed_in_every_stage(
    config: Path, expected: dict[str, bytes], tmp_path: Path, part_tasks: int
):
    pipeline = load_pipeline(config, [f"corpus.execution.part_tasks={part_tasks}"], store=str(tmp_path))
    for name, job in pipeline.jobs.items():
        with kills(3, seed=part_tasks) as killed:
            run_job(job, pipeline.store, wandb_group="test")
        assert killed, name
    assert differing(contents(config, tmp_path, part_tasks=part_tasks), expected) == []


def test_a_driver_that_is_told_to_end_goes_and_the_same_command_makes_the_same_bytes(
    config: Path, expected: dict[str, bytes], tmp_path: Path
):
    command = [sys.executable, "-m", "jobs.cli", "run", "corpus", str(config.parent / "corpus.yaml")]
    command += ["--store", str(tmp_path)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(tmp_path.glob("corpus-*/unfinished.json")):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "raymill: stopped by SIGINT; the same command resumes from here" in output
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert differing(contents(config, tmp_path), expected) == []


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Names whose bytes are not equal."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
