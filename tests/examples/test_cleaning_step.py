"""The example of a user-provided cleaning step in docs/developing.md."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.storage import Storage
from jobs.frame.job_run import run_job
from jobs.frame.pipeline import load_stage

EXAMPLE = Path(__file__).parents[2] / "examples/cleaning_step"


@pytest.mark.usefixtures("without_ray")
def test_the_example_drops_and_changes_texts_and_the_artifact_id_depends_on_its_files(tmp_path: Path) -> None:
    for file in EXAMPLE.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    texts = ["Hello!!!", "GO AWAY", "Good morning."]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "corpus.yaml").write_text(
        f"sources: [{{name: texts, format: jsonl, path: {tmp_path}/texts.jsonl}}]\n"
        f"steps: [{{user_step: {{function: '{tmp_path}/no_shouting.py:no_shouting'}}}}]\n"
    )
    store = Storage(str(tmp_path / "store"))
    pipeline = load_stage("corpus", tmp_path / "corpus.yaml", store=store.url)
    assert not pipeline.errors
    job = pipeline.jobs["corpus"]
    artifact = run_job(job, store, wandb_group="test")
    assert artifact.summary["dropped"] == {"user_step/no_shouting": 1}
    assert artifact.summary["sources"]["texts"]["changed"] == {"no_shouting/characters": 2, "no_shouting/documents": 1}
    with artifact.storage.open("documents/part-00000.parquet") as file:
        assert sorted(pq.read_table(file)["text"].to_pylist()) == ["Good morning.", "Hello!"]
    (tmp_path / "marks.py").write_text('EXCLAMATION_MARKS = r"!{3,}"')
    changed = load_stage("corpus", tmp_path / "corpus.yaml", store=store.url).jobs["corpus"]
    assert changed.id != job.id


def test_a_missing_function_is_reported_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text("def other(text): return text\n")
    (tmp_path / "texts.jsonl").write_text('{"text": "hello"}\n')
    (tmp_path / "corpus.yaml").write_text(
        f"sources: [{{name: texts, format: jsonl, path: {tmp_path}/texts.jsonl}}]\n"
        f"steps: [{{user_step: {{function: '{tmp_path}/steps.py:step'}}}}]\n"
    )
    (error,) = load_stage("corpus", tmp_path / "corpus.yaml", store=str(tmp_path)).errors.values()
    assert "steps.py does not define 'step'" in error
